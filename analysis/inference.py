"""A trained network and what it says of images."""

import logging
import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, show_traceback
from images.image_folder import read_image
from lightning_module import LitCustomResNet

log = logging.getLogger(__name__)

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
