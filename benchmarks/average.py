"""Average the weights of networks that began from the same weights.

    python benchmarks/average.py a.ckpt b.ckpt c.safetensors --output FILE.safetensors

Such an average can be better than each of them ("model soup", Wortsman et al., arXiv
2203.05482). Batch statistics are averaged like weights. Everything else in the file,
such as class names and the flags of the training, is that of the first network; only
where the features of training images lie is measured anew.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import torch
from torch import Tensor

from analysis.loading import load_model, read_trained
from analysis.weights import save_weights
from benchmarks.plain_training import load_images
from common import cli
from common.errors import InputError
from common.files import check_output, expanded, replacing
from common.text import one_line
from config import DEFAULT_DIR
from export import make_contiguous, shaping_flags
from lightning_module import LitCustomResNet
from training.features import SAMPLE, measure_features
from training.resume import WEIGHTS_SUFFIX


def average(
    networks: list[str],
    output: str,
    data_dir: str = DEFAULT_DIR,
    overwrite: bool = False,
) -> None:
    """Write the average of networks, as weights in a file.

    Args:
        networks: Checkpoints, or weights of export.py; two or more.
        output: File to write, which ends in .safetensors.
        data_dir: Folder of the images that the first one was trained on.
        overwrite: Replace the file that is there.

    Raises:
        InputError: There are fewer than two, they do not fit each other, or a file
            cannot be read or written.
    """
    if len(networks) < 2:
        raise InputError(f"give two networks or more, got {len(networks)}")
    target = expanded(output)
    check_output(target, overwrite=overwrite)
    if target.suffix != WEIGHTS_SUFFIX:
        raise InputError(
            f"--output {one_line(target)}: give a name that ends in {WEIGHTS_SUFFIX}"
        )
    paths = [expanded(path) for path in networks]
    mixed = average_of(paths)
    config = shaping_flags(read_trained(paths[0]))
    kind = f"average of {len(paths)} networks"
    split = config.get("val_size", 0), config.get("seed", 0)
    pixels = load_images("auto", data_dir, *split).sample(SAMPLE)
    notes = {
        "config": config,
        "measured": {"recipe": kind},
        "features": measure_features(mixed, mixed.state_dict(), pixels),
    }
    make_contiguous(mixed)
    with replacing(target) as file:
        save_weights(mixed, notes, Path(file.name))
    print(f"{one_line(target)}: {kind}")


def average_of(paths: list[Path]) -> LitCustomResNet:
    """The first network, with the mean of the weights of all.

    Raises:
        InputError: One cannot be read, or does not fit the first.
    """
    models = [load_model(path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if meaning(model) != meaning(models[0]):
            raise InputError(
                f"{one_line(path)}: another network, other classes or another "
                "--logit_scale than the first one has; give networks that began from "
                "the same weights"
            )
    states = [model.net.state_dict() for model in models]
    models[0].net.load_state_dict(mean_state(states))
    return models[0]


def meaning(model: LitCustomResNet) -> list[Any]:
    """What networks must have in common for an average of their weights to be one."""
    known = model.hparams
    shapes = {name: value.shape for name, value in model.net.state_dict().items()}
    seen = [[*known[name]] for name in ("classes", "mean", "std")]
    return [shapes, *seen, known["logit_scale"]]


def mean_state(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; of counters, which are whole numbers, the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


if __name__ == "__main__":
    cli.run("average.py", average, outlasts_readers=True)
