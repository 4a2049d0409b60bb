"""A trained network and what it says of images."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.weights import read_weights
from common.errors import InputError, is_out_of_memory, show_traceback
from common.text import one_line
from datamodule import CIFAR10DataModule
from images.image_folder import read_image
from lightning_module import LitCustomResNet
from machine.hardware import cuda_problem
from training.resume import WEIGHTS_SUFFIX, Checkpoint, read_checkpoint

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "cifar10.safetensors"
BATCH_SIZE = 500  # images at once
UNSURE = math.log(2)  # entropy of a network that cannot choose between two classes
OF_GUESSING = 0.9  # share of the entropy of guessing that is unsure in any case
FLOOR = 0.01  # share of what a network says of a class that is always left to it


class Guess(TypedDict):
    """A class that an image may be of."""

    label: str
    probability: float


class Prediction(TypedDict):
    """What a network says of a file.

    Attributes:
        file: Its path, as it was given.
        predictions: The most probable classes first; none if it cannot be read.
        known: Whether the image is probably of any of the classes.
        error: Why it cannot be read, or None.
    """

    file: str
    predictions: list[Guess]
    known: bool
    error: str | None


def load_model(path: Path | None = None) -> LitCustomResNet:
    """The network of a checkpoint, on the CPU, ready for `ask` and `grad_cam`.

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
    path = path or WEIGHTS
    if not path.is_file():
        raise InputError(
            f"--ckpt_path {one_line(path)}: no such file; give a checkpoint that "
            "train.py has written"
        )
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
    return module.eval().requires_grad_(False)


def read_trained(path: Path) -> Checkpoint:
    """The content of a checkpoint, or of weights that export.py wrote.

    Raises:
        InputError: It is damaged, or of something else.
    """
    if path.suffix == WEIGHTS_SUFFIX:
        return read_weights(path)
    return read_checkpoint(path, to_resume=False)


def check_same_images(
    model: LitCustomResNet, images: CIFAR10DataModule, path: Path
) -> None:
    """Make sure that a network was trained with images of this source.

    Args:
        model: As `load_model` gives it.
        images: The data module, set up.
        path: The network's checkpoint, for the message.

    Raises:
        InputError: Their classes, mean or standard deviation are others.
    """
    for name in ("classes", "mean", "std"):
        if list(model.hparams[name]) != list(getattr(images, name)):
            raise InputError(
                f"--data_dir {images.data_dir}: the {name} of the images are not those "
                f"that {path} was trained with; put its images there"
            )


def settle_device(name: str) -> torch.device:
    """The device of `--device`, where a network is to be.

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
        log.warning(f"going on without the GPU: {problem}")
        chosen = "cpu"
    return torch.device(chosen)


def logits(model: LitCustomResNet, images: Tensor) -> Tensor:
    """What the network says of images.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU.
    """
    with torch.inference_mode():
        batches = [model(batch.to(model.device)) for batch in images.split(BATCH_SIZE)]
    return torch.cat(batches).float().cpu()


def probabilities(scores: Tensor, label_smoothing: float) -> Tensor:
    """How probable each class is, whatever the label smoothing of the training.

    A network that was trained with a smoothing of s has learnt to say (1 - s) p + s / C
    where the probability is p. Here that is turned round. What it says less than s / C
    of is not impossible, only unlikely, and keeps its rank.

    Args:
        scores: float (N, C), logits.
        label_smoothing: That of the network's training.

    Returns:
        float (N, C), all above 0; each row's sum is 1.
    """
    said = scores.softmax(dim=1)
    shares = torch.maximum(said - label_smoothing / said.shape[1], FLOOR * said)
    return shares / shares.sum(dim=1, keepdim=True)


def ask(model: LitCustomResNet, images: Tensor) -> Tensor:
    """How probable each class is for each image.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU, in the order of `model.hparams["classes"]`.
    """
    return probabilities(logits(model, images), model.hparams["label_smoothing"])


def classify(shares: Tensor, classes: Sequence[str], top: int) -> list[list[Guess]]:
    """The most probable classes of each image.

    Args:
        shares: float32 (N, C), as `ask` gives them.
        classes: Name of each of the C classes.
        top: How many at most.
    """
    highest, labels = shares.topk(min(top, len(classes)))
    return [
        [
            {"label": classes[label], "probability": round(share, 6)}
            for share, label in zip(*image, strict=True)
        ]
        for image in zip(highest.tolist(), labels.tolist(), strict=True)
    ]


def entropy(shares: Tensor) -> Tensor:
    """How unsure a network is of each image, in nats.

    Args:
        shares: float (N, C), as `ask` gives them.

    Returns:
        float (N,).
    """
    found: Tensor = torch.special.entr(shares).sum(dim=1)
    return found


def is_known(shares: Tensor) -> Tensor:
    """Whether each image is probably of any of the classes.

    It is not if the network is less sure of it than if it had to choose between two
    classes, or where it knows no more than two, nearly as unsure as if it guessed;
    benchmarks/unknown_images.py says how often that is so.

    Args:
        shares: float (N, C), as `ask` gives them.

    Returns:
        bool (N,).
    """
    return entropy(shares) < min(UNSURE, OF_GUESSING * math.log(shares.shape[1]))


def read_images(paths: Sequence[str]) -> tuple[Tensor, dict[str, str]]:
    """Read those image files that can be read.

    Returns:
        uint8 (N, 3, 32, 32), in the order of their paths, and why each of the others
        cannot be read.
    """
    pixels: list[np.ndarray] = []
    errors: dict[str, str] = {}
    for path in paths:
        try:
            pixels.append(read_image(path)[0])
        except InputError as error:
            errors[path] = str(error)
            show_traceback()
    blank = np.empty((0, 32, 32, 3), np.uint8)
    images = torch.from_numpy(np.stack(pixels) if pixels else blank)
    return images.permute(0, 3, 1, 2), errors


def confident_mistakes(shares: Tensor, labels: Tensor, count: int) -> Tensor:
    """Which images are put into a wrong class, the surest first.

    Args:
        shares: float32 (N, C), as `ask` gives them.
        labels: int64 (N,), the true classes.
        count: How many at most.

    Returns:
        int64 (M,), positions of the M <= `count` images.
    """
    surest, said = shares.max(dim=1)
    order = surest.argsort(descending=True, stable=True)
    return order[said[order] != labels[order]][:count]


def grad_cam(model: LitCustomResNet, images: Tensor, labels: Tensor) -> Tensor:
    """Where in each image the network sees a class (Grad-CAM, arXiv 1610.02391).

    The maps are those of the last convolution that has more than 3 x 3 places.

    Args:
        model: As `load_model` gives it.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), the class in question of each image.

    Returns:
        float32 (N, 32, 32) on the CPU, from 0 to 1 in each image; all 0 where nothing
        speaks for the class.
    """
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        # A copy: the next layers work in place.
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()

    hook = model.net.layer2.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            scores = model(images.to(model.device))
            chosen = scores.gather(1, labels.to(model.device)[:, None]).sum()
            [maps] = kept
            [gradients] = torch.autograd.grad(chosen, maps)
    finally:
        hook.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * maps.detach()).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear").squeeze(1)
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.where(peak > 0, 1)).float().cpu()
