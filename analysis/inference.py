"""Inference: logits, probabilities and predictions of images."""

import logging
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from analysis.novelty import novelty
from common.errors import InputError, show_traceback
from images.image_folder import read_views
from lightning_module import LitCustomResNet
from networks import collected_features

log = logging.getLogger(__name__)

BATCH_SIZE = 500  # images at once
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


class Seen(NamedTuple):
    """What a network makes of images, float32 on the CPU.

    Attributes:
        logits: (..., C).
        features: (..., K), of `networks.collected_features`.
    """

    logits: Tensor
    features: Tensor


def see(model: LitCustomResNet, images: Tensor) -> Seen:
    """What a network makes of images, in batches.

    Args:
        model: As `load_model` returns it, on any device.
        images: uint8 (N, 3, 32, 32).
    """
    with torch.inference_mode(), collected_features(model.net) as features:
        batches = [model(batch.to(model.device)) for batch in images.split(BATCH_SIZE)]
    return Seen(torch.cat(batches).float().cpu(), torch.cat(features).cpu())


def see_views(model: LitCustomResNet, views: Tensor, *, mirrored: bool) -> Seen:
    """What a network makes of images that are looked at in several ways.

    Args:
        model: As `load_model` gives it, on any device.
        views: uint8 (N, V, 3, 32, 32).
        mirrored: Look at the mirror image of each view, too; V doubles.

    Returns:
        Logits (N, V, C) and features (N, V, K).
    """
    if mirrored:
        views = torch.cat([views, views.flip(4)], dim=1)
    seen = see(model, views.flatten(0, 1))
    return Seen(*(values.unflatten(0, views.shape[:2]) for values in seen))


def predict_logits(model: LitCustomResNet, images: Tensor) -> Tensor:
    """Logits of images, in batches.

    Args:
        model: As `load_model` returns it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU.
    """
    return see(model, images).logits


def to_probabilities(logits: Tensor, label_smoothing: float) -> Tensor:
    """Class probabilities, with the label smoothing of the training removed.

    A network that was trained with a smoothing of s has learnt to output
    (1 - s) p + s / C where the probability is p. This is the inverse. Outputs below
    s / C become small, not zero, and keep their rank.

    Args:
        logits: float (..., C).
        label_smoothing: That of the network's training.

    Returns:
        float (..., C), all above 0; the sum over the classes is 1.
    """
    smoothed = logits.softmax(dim=-1)
    probabilities = torch.maximum(
        smoothed - label_smoothing / smoothed.shape[-1], FLOOR * smoothed
    )
    return probabilities / probabilities.sum(dim=-1, keepdim=True)


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


def predict_views(model: LitCustomResNet, views: Tensor) -> tuple[Tensor, Tensor]:
    """What images are that are looked at in several ways, and whether they are known.

    Where the network was trained with mirrored images, the mirror images of all views
    count, too.

    Args:
        model: As `load_model` gives it, on any device.
        views: uint8 (N, V, 3, 32, 32), of `read_images`.

    Returns:
        Class probabilities, float32 (N, C), that follow from the mean logits, in the
        order of `model.hparams["classes"]`; and whether each image is probably of any
        of the classes, bool (N,).
    """
    seen = see_views(model, views, mirrored=model.mirrors)
    smoothing = model.hparams["label_smoothing"]
    probabilities = to_probabilities(seen.logits.mean(dim=1), smoothing)
    return probabilities, novelty_of(model, seen) < 1


def novelty_of(model: LitCustomResNet, seen: Seen) -> Tensor:
    """How new images are to a network, of which it has seen several views: (N,)."""
    probabilities = to_probabilities(seen.logits, model.hparams["label_smoothing"])
    return novelty(probabilities, seen.features, model.features)


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
