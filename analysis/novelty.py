"""Whether an image is of any of the classes: how new it is to a network."""

import math

import torch
from torch import Tensor

from lightning_module import Features

# Entropies, in nats, of as many classes with the same probability.
THREE, TWO = math.log(3), math.log(2)
GUESSING = 0.9  # of the entropy of uniform probabilities
DISTANCE = 2.5  # squared, in units of its mean over the training images


def novelty(probabilities: Tensor, features: Tensor, known: Features | None) -> Tensor:
    """How new images are to a network; from 1 on, probably of none of the classes.

    It is 1 where the network is as unsure as between three equally likely classes, or
    where the features are as far from the mean of the training images as `DISTANCE`
    says; of each a part may do, too. docs/unknown_images.md has how often it is right.

    Args:
        probabilities: float (N, V, C), of V views of N images.
        features: float (N, V, K), likewise (`networks.collected_features`).
        known: Where those of the training images lie. Where that is not known, it is 1
            for two equally likely classes, and the entropy is all.

    Returns:
        float (N,), the mean over the views.
    """
    most = GUESSING * math.log(probabilities.shape[-1])
    found = entropy(probabilities) / min(TWO if known is None else THREE, most)
    if known is not None:
        away = features - torch.tensor(known["mean"], dtype=features.dtype)
        distance = away.square().sum(dim=-1) / known["variance"]
        found += (distance - 1).clamp(min=0) / (DISTANCE - 1)
    return found.mean(dim=1)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of class probabilities, float (..., C) -> (...), in nats."""
    found: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return found
