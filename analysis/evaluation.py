"""Evaluation of a network: confusion, calibration, most confident mistakes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.explanation import layer_cam
from analysis.inference import predict_proba
from lightning_module import LitCustomResNet

BINS = 15  # of the calibration, as in arXiv 1706.04599
MISTAKES = 12  # in the gallery


class Calibration(NamedTuple):
    """Confidence against accuracy, binned.

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
    """A wrong prediction.

    Attributes:
        image: uint8 (32, 32, 3).
        heat: float32 (32, 32), LayerCAM of the predicted class, from 0 to 1.
        predicted: The predicted class.
        probability: That of the predicted class.
        true: The true class.
    """

    image: Tensor
    heat: Tensor
    predicted: str
    probability: float
    true: str


class ClassResult(NamedTuple):
    """Results on the images of a class.

    Attributes:
        name: The class.
        images: Images of it.
        precision: Share of the images put into the class that are of it; None where
            none is put into it.
        recall: Share of the images of the class that are put into it; None where there
            are none.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None


class Pair(NamedTuple):
    """A class that is taken for another.

    Attributes:
        true: The class.
        predicted: The other.
        images: How many of its images.
        share: That of all its images.
    """

    true: str
    predicted: str
    images: int
    share: float


class Evaluation(NamedTuple):
    """Results of a network on the test images.

    Attributes:
        classes: Name of each of the C classes.
        counts: int64 (C, C), true classes down, predicted ones across.
        calibration: Of the predicted class.
        mistakes: Wrong predictions, the most confident first.
    """

    classes: Sequence[str]
    counts: Tensor
    calibration: Calibration
    mistakes: list[Mistake]

    def class_results(self) -> list[ClassResult]:
        """Precision and recall of each class."""
        rights = self.counts.diag().tolist()
        predicted, there = (self.counts.sum(dim=dim).tolist() for dim in (0, 1))
        return [
            ClassResult(
                name,
                images,
                right / said if said else None,
                right / images if images else None,
            )
            for name, right, said, images in zip(
                self.classes, rights, predicted, there, strict=True
            )
        ]

    def confused_pairs(self, count: int) -> list[Pair]:
        """The classes that are most often taken for another, by number of images.

        Args:
            count: How many pairs at most.
        """
        wrong = self.counts.clone().fill_diagonal_(0)
        totals = self.counts.sum(dim=1).tolist()
        order = wrong.flatten().argsort(descending=True, stable=True)
        pairs = []
        for place in order[:count].tolist():
            true, predicted = divmod(place, len(self.classes))
            if images := int(wrong[true, predicted]):
                names = self.classes[true], self.classes[predicted]
                pairs.append(Pair(*names, images, images / totals[true]))
        return pairs


def evaluate_images(
    model: LitCustomResNet, images: Tensor, labels: Tensor
) -> Evaluation:
    """Evaluate a network on images with labels.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,), the true classes.
    """
    classes = list(model.hparams["classes"])
    probabilities = predict_proba(model, images.permute(0, 3, 1, 2))
    confidence, predicted = probabilities.max(dim=1)
    count = len(classes)
    # torchmetrics' needs N times C squared where algorithms are to be deterministic.
    counts = torch.bincount(labels * count + predicted, minlength=count**2)
    return Evaluation(
        classes,
        counts.view(count, count),
        calibrate(confidence, predicted == labels),
        _mistakes(model, images, labels, probabilities),
    )


def calibrate(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Calibration:
    """Bin predictions by confidence; torchmetrics returns the error without the bins.

    Args:
        confidence: float (N,), probability of the predicted class, above 0.
        correct: bool (N,), whether that is the true class.
        bins: Number of bins of equal width; an image on an edge is in the lower one.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    confidence = confidence.double()
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    counts = index.bincount(minlength=bins)
    at_least_one = counts.clamp_min(1)
    mean_confidence = index.bincount(confidence, minlength=bins) / at_least_one
    accuracy = index.bincount(correct.double(), minlength=bins) / at_least_one
    ece = (counts * (mean_confidence - accuracy).abs()).sum() / counts.sum()
    return Calibration(counts, mean_confidence, accuracy, ece.item())


def confident_mistakes(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Which images are put into a wrong class, the most confident first.

    Args:
        probabilities: float32 (N, C), of `predict_proba`.
        labels: int64 (N,), the true classes.
        count: How many at most.

    Returns:
        int64 (M,), positions of the M <= `count` images.
    """
    confidence, predicted = probabilities.max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    return order[predicted[order] != labels[order]][:count]


def _mistakes(
    model: LitCustomResNet, images: Tensor, labels: Tensor, probabilities: Tensor
) -> list[Mistake]:
    chosen = confident_mistakes(probabilities, labels, MISTAKES)
    if not len(chosen):
        return []
    classes = model.hparams["classes"]
    confidence, predicted = probabilities[chosen].max(dim=1)
    heats = layer_cam(model, images[chosen].permute(0, 3, 1, 2), predicted)
    return [
        Mistake(image, heat, classes[guess], probability, classes[label])
        for image, heat, guess, probability, label in zip(
            images[chosen],
            heats,
            predicted.tolist(),
            confidence.tolist(),
            labels[chosen].tolist(),
            strict=True,
        )
    ]
