"""What a trained network gets right and wrong, from one look at all test images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from analysis.explanation import grad_cam
from analysis.inference import ask
from lightning_module import LitCustomResNet

BINS = 15  # of the calibration, as in arXiv 1706.04599
MISTAKES = 12  # in the gallery


class Calibration(NamedTuple):
    """How far the probability of the predicted class can be trusted.

    Attributes:
        counts: int64 (B,), images in each of B bins of equal width from 0 to 1.
        confidence: float64 (B,), mean probability of the predicted class; 0 without
            images.
        accuracy: float64 (B,), likewise.
        ece: Expected calibration error: mean distance between the two over all images.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    ece: float


class Mistake(NamedTuple):
    """An image that is put into a wrong class.

    Attributes:
        image: uint8 (32, 32, 3).
        heat: float32 (32, 32), Grad-CAM of the predicted class, from 0 to 1.
        said: The predicted class.
        probability: That of the predicted class.
        true: The true class.
    """

    image: Tensor
    heat: Tensor
    said: str
    probability: float
    true: str


class Findings(NamedTuple):
    """Everything that one look at the test images gives.

    Attributes:
        classes: Name of each of the C classes.
        counts: int64 (C, C), true classes down, predicted ones across.
        calibration: Of the predicted class.
        mistakes: The most confident ones, the surest first.
    """

    classes: Sequence[str]
    counts: Tensor
    calibration: Calibration
    mistakes: list[Mistake]


def examine(model: LitCustomResNet, images: Tensor, labels: Tensor) -> Findings:
    """Look at images with a trained network.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,), the true classes.
    """
    classes = list(model.hparams["classes"])
    shares = ask(model, images.permute(0, 3, 1, 2))
    surest, said = shares.max(dim=1)
    return Findings(
        classes,
        multiclass_confusion_matrix(said, labels, len(classes)),
        calibrate(surest, said == labels),
        _mistakes(model, images, labels, shares),
    )


def calibrate(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Calibration:
    """Compare confidence with accuracy; torchmetrics gives the error without the bins.

    Args:
        confidence: float (N,), probability of the predicted class, above 0.
        correct: bool (N,), whether that is the true class.
        bins: Number of bins of equal width; an image on an edge is in the lower one.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    confidence = confidence.double()
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    counts = place.bincount(minlength=bins)
    at_least_one = counts.clamp_min(1)
    sure = place.bincount(confidence, minlength=bins) / at_least_one
    right = place.bincount(correct.double(), minlength=bins) / at_least_one
    ece = (counts * (sure - right).abs()).sum() / counts.sum()
    return Calibration(counts, sure, right, ece.item())


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


def _mistakes(
    model: LitCustomResNet, images: Tensor, labels: Tensor, shares: Tensor
) -> list[Mistake]:
    chosen = confident_mistakes(shares, labels, MISTAKES)
    if not len(chosen):
        return []
    classes = model.hparams["classes"]
    probabilities, said = shares[chosen].max(dim=1)
    heats = grad_cam(model, images[chosen].permute(0, 3, 1, 2), said)
    return [
        Mistake(image, heat, classes[guess], probability, classes[label])
        for image, heat, guess, probability, label in zip(
            images[chosen],
            heats,
            said.tolist(),
            probabilities.tolist(),
            labels[chosen].tolist(),
            strict=True,
        )
    ]
