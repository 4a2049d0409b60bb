"""Inference: logits, probabilities and predictions of images."""

import logging
import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, show_traceback
from images.image_folder import read_views
from lightning_module import LitCustomResNet

log = logging.getLogger(__name__)

BATCH_SIZE = 500  # images at once
ENTROPY_THRESHOLD = math.log(2)  # nats: that of two classes with the same probability
GUESSING_THRESHOLD = 0.9  # of the entropy of uniform probabilities
FLOOR = 0.01  # least share of a softmax output that stays when smoothing is removed


class LabelProbability(TypedDict):
    """A class and its probability."""

    label: str
    probability: float


class Prediction(TypedDict):
    """The prediction for an image file.

    Attributes:
        file: Its path, as it was given.
        predictions: The most probable classes first; none if it cannot be read.
        known: Whether the image is probably of any of the classes.
        error: Why it cannot be read, or None.
    """

    file: str
    predictions: list[LabelProbability]
    known: bool
    error: str | None


def predict_logits(model: LitCustomResNet, images: Tensor) -> Tensor:
    """Logits of images, in batches.

    Args:
        model: As `load_model` returns it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU.
    """
    with torch.inference_mode():
        batches = [model(batch.to(model.device)) for batch in images.split(BATCH_SIZE)]
    return torch.cat(batches).float().cpu()


def to_probabilities(logits: Tensor, label_smoothing: float) -> Tensor:
    """Class probabilities, with the label smoothing of the training removed.

    A network that was trained with a smoothing of s has learnt to output
    (1 - s) p + s / C where the probability is p. This is the inverse. Outputs below
    s / C become small, not zero, and keep their rank.

    Args:
        logits: float (N, C).
        label_smoothing: That of the network's training.

    Returns:
        float (N, C), all above 0; each row's sum is 1.
    """
    smoothed = logits.softmax(dim=1)
    probabilities = torch.maximum(
        smoothed - label_smoothing / smoothed.shape[1], FLOOR * smoothed
    )
    return probabilities / probabilities.sum(dim=1, keepdim=True)


def predict_proba(model: LitCustomResNet, images: Tensor) -> Tensor:
    """Class probabilities of images.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU, in the order of `model.hparams["classes"]`.
    """
    return to_probabilities(
        predict_logits(model, images), model.hparams["label_smoothing"]
    )


def predict_views(model: LitCustomResNet, views: Tensor) -> Tensor:
    """Class probabilities of images that are looked at in several ways.

    They follow from the mean logits of all views and, where the network was trained
    with mirrored images, of their mirror images.

    Args:
        model: As `load_model` gives it, on any device.
        views: uint8 (N, V, 3, 32, 32), of `read_images`.

    Returns:
        float32 (N, C), on the CPU, in the order of `model.hparams["classes"]`.
    """
    logits = mean_logits(model, views, mirrored=model.mirrors)
    return to_probabilities(logits, model.hparams["label_smoothing"])


def mean_logits(model: LitCustomResNet, views: Tensor, *, mirrored: bool) -> Tensor:
    """Logits of images that are looked at in several ways: the mean of all ways.

    Args:
        model: As `load_model` gives it, on any device.
        views: uint8 (N, V, 3, 32, 32).
        mirrored: Look at the mirror image of each view, too.

    Returns:
        float32 (N, C), on the CPU.
    """
    images = views.flatten(0, 1)
    logits = predict_logits(model, images)
    if mirrored:
        logits = (logits + predict_logits(model, images.flip(3))) / 2
    mean: Tensor = logits.unflatten(0, views.shape[:2]).mean(dim=1)
    return mean


def top_predictions(
    probabilities: Tensor, classes: Sequence[str], top: int
) -> list[list[LabelProbability]]:
    """The most probable classes of each image.

    Args:
        probabilities: float32 (N, C), of `predict_proba`.
        classes: Name of each of the C classes.
        top: How many at most.
    """
    highest, labels = probabilities.topk(min(top, len(classes)))
    return [
        [
            {"label": classes[label], "probability": round(share, 6)}
            for share, label in zip(*image, strict=True)
        ]
        for image in zip(highest.tolist(), labels.tolist(), strict=True)
    ]


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the class probabilities of each image, in nats.

    Args:
        probabilities: float (N, C), of `predict_proba`.

    Returns:
        float (N,).
    """
    found: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return found


def is_known(probabilities: Tensor) -> Tensor:
    """Whether each image is probably of any of the classes.

    It is if the entropy of its probabilities is below a threshold: that of two classes
    with the same probability, or where there are two classes, 90 % of it.
    docs/unknown_images.md has how often that is right.

    Args:
        probabilities: float (N, C), of `predict_proba`.

    Returns:
        bool (N,).
    """
    return entropy(probabilities) < min(
        ENTROPY_THRESHOLD, GUESSING_THRESHOLD * math.log(probabilities.shape[1])
    )


def read_images(paths: Sequence[str]) -> tuple[Tensor, dict[str, str]]:
    """Read image files, and leave out those that cannot be read.

    Returns:
        Their views, uint8 (N, V, 3, 32, 32), in the order of their paths, and why each
        of the others cannot be read.
    """
    pixels: list[np.ndarray] = []
    errors: dict[str, str] = {}
    for path in paths:
        try:
            pixels.append(read_views(path))
        except InputError as error:
            errors[path] = str(error)
            show_traceback()
    blank = np.empty((0, 2, 32, 32, 3), np.uint8)
    views = torch.from_numpy(np.stack(pixels) if pixels else blank)
    return views.permute(0, 1, 4, 2, 3), errors
