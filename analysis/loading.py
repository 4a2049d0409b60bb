"""Loading a trained network, and choosing its device."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from analysis.weights import read_weights
from common.errors import InputError, is_out_of_memory
from common.files import expanded
from common.text import one_line
from config import Asked
from images import sources
from images.sources import Labelled
from lightning_module import LitCustomResNet
from machine.hardware import cuda_problem
from training.resume import WEIGHTS_SUFFIX, Checkpoint, read_checkpoint

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "cifar10.safetensors"


def load_model(path: str | Path | None = None) -> LitCustomResNet:
    """The network of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: A checkpoint that train.py wrote, or weights that export.py wrote; None
            for those that come with the project.

    Raises:
        InputError: It is not there, damaged, or of something else.
    """
    if path is None and not WEIGHTS.is_file():
        raise InputError(
            f"{WEIGHTS}: no such file, so there are no default weights; give "
            "--ckpt_path FILE, a checkpoint that train.py has written"
        )
    path = WEIGHTS if path is None else expanded(path)
    saved = read_trained(path)
    try:
        module = LitCustomResNet(**saved["hyper_parameters"])
        module.load_state_dict(saved["state_dict"])
    except (KeyError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"--ckpt_path {path}: the weights do not fit the network; give a "
            "checkpoint of this version of the project"
        ) from None
    module.mirrors = saved.get("config", {}).get("flip") != "none"
    module.features = saved.get("features")
    return module.eval().requires_grad_(False)


def read_trained(path: Path, flag: str = "ckpt_path") -> Checkpoint:
    """The content of a checkpoint, or of weights that export.py wrote.

    Args:
        path: The file.
        flag: The flag that named it, for messages.

    Raises:
        InputError: It is not there, damaged, or of something else.
    """
    if not path.is_file():
        raise InputError(
            f"--{flag} {one_line(path)}: no such file; give a checkpoint that "
            "train.py has written"
        )
    if path.suffix == WEIGHTS_SUFFIX:
        return read_weights(path, flag)
    return read_checkpoint(path, flag, to_resume=False)


def read_test_images(
    model: LitCustomResNet, data: Asked, data_dir: str, split_dir: str | None = None
) -> Labelled:
    """Test images, uint8 (N, 32, 32, 3), and labels, int64 (N,), as the network counts.

    Raises:
        InputError: They cannot be read, or one is of a class that it does not know.
    """
    known = list(model.hparams["classes"])
    if split_dir is None:
        folder = expanded(data_dir).absolute()
        if sources.settle(data, folder) == "cifar10":  # before it is downloaded
            check_known(folder, sources.CIFAR10_CLASSES, known)
        source = sources.fetch(data, folder)
        (images, labels), classes = sources.load_test(source, folder)
    else:
        folder = expanded(split_dir)
        (images, labels), classes = sources.load_split(folder)
    check_known(folder, classes, known)
    ours: Tensor = torch.tensor([known.index(name) for name in classes])
    return images, ours[labels]


def check_known(folder: Path, classes: Sequence[str], known: Sequence[str]) -> None:
    """Make sure that a network knows all classes.

    Raises:
        InputError: One is of none that it knows.
    """
    for name in classes:
        if name not in known:
            raise InputError(
                f"{one_line(folder)}: the network knows no class {name!r}, only "
                f"{', '.join(known)}; leave it out, rename its folder, or give "
                "images of these"
            )


def settle_device(name: str) -> torch.device:
    """The device that `--device` names.

    Args:
        name: Its type; "auto" for a GPU where there is one that can be used.

    Raises:
        InputError: It is not there, or cannot be used.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    here = ["cpu"] if found is None else [found.type, "cpu"]
    if name not in ("auto", *here):
        raise InputError(f"--device {name} is not there; give {' or '.join(here)}")
    chosen = here[0] if name == "auto" else name
    if chosen == "cuda" and (problem := cuda_problem()):
        if name == "cuda":
            raise InputError(f"--device cuda: {problem}, or give --device cpu")
        log.warning(f"continuing without the GPU: {problem}")
        chosen = "cpu"
    return torch.device(chosen)
