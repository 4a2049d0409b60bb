"""Fine-tuning: which weights of a trained network a new training begins with."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import InputError
from common.text import one_line
from config import Config
from networks import build_network
from training.resume import Checkpoint

log = logging.getLogger(__name__)


def starting_weights(
    origin: Checkpoint, config: Config, classes: Sequence[str]
) -> dict[str, Tensor]:
    """Take from a trained network whatever fits by name and shape, and say so.

    The classifier, whose tensors have a row a class, is taken where the classes have
    the same names, each row for its own name whatever their order. Otherwise it stays
    new.

    Args:
        origin: As `read_trained` gives it.
        config: All flags.
        classes: Name of each label of the training to come.

    Returns:
        Entries of the network's `state_dict`.

    Raises:
        InputError: Nothing in it fits.
    """
    theirs = {
        name.removeprefix("net."): value for name, value in origin["state_dict"].items()
    }
    ours, larger = (_shapes(config, len(classes) + more) for more in (0, 1))
    fitting = {
        name: theirs[name]
        for name, shape in ours.items()
        if name in theirs and theirs[name].shape == shape
    }
    classifier = {name for name, shape in ours.items() if larger[name] != shape}
    before = list(origin["hyper_parameters"].get("classes", ()))
    is_known = sorted(before) == sorted(classes) and classifier <= fitting.keys()
    for name in classifier & fitting.keys():
        value = fitting.pop(name)
        if is_known:
            value = value[[before.index(one) for one in classes]]
            before_scale = float(origin["hyper_parameters"].get("logit_scale", 1.0))
            fitting[name] = value * (before_scale / config.logit_scale)
    if not any(value.ndim for value in fitting.values()):  # more than counters
        raise InputError(
            f"--init_from {config.init_from}: no weight in it fits --net {config.net} "
            f"--base_width {config.base_width}; {_describe(origin)}"
        )
    kept, file = "kept" if is_known else "new", one_line(str(config.init_from))
    log.info(
        f"{len(fitting)} of {len(ours)} tensors from {file}; "
        f"{kept} classifier of {len(classes)} classes"
    )
    return fitting


def _shapes(config: Config, num_classes: int) -> dict[str, torch.Size]:
    """Shapes of all tensors of a network, which is not made for it."""
    with torch.device("meta"):
        net = build_network(config.net, num_classes, config.base_width)
    return {name: value.shape for name, value in net.state_dict().items()}


def _describe(origin: Checkpoint) -> str:
    """What to give instead."""
    known = origin["hyper_parameters"]
    if "base_width" not in known:
        return "give weights of this project"
    net = known.get("net", "custom_resnet")
    return f"it is of --net {net} --base_width {known['base_width']}, give these"
