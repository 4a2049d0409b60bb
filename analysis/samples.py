"""Some training images, as they are and as the training sees them."""

from typing import NamedTuple

import torch
from torch import Tensor

from datamodule import CIFAR10DataModule
from images.augmentation import augment, draw_epoch, pad


class Samples(NamedTuple):
    """The first images of a training.

    Attributes:
        originals: uint8 (N, 32, 32, 3).
        augmented: Likewise, as the first epoch shows them.
        labels: int64 (N,).
    """

    originals: Tensor
    augmented: Tensor
    labels: Tensor


def first_samples(
    images: CIFAR10DataModule, count: int, stand_in: Tensor | None = None
) -> Samples:
    """The first images of a training, in the order of its first epoch.

    Args:
        images: The run's data module, set up.
        count: How many at most.
        stand_in: An image to show in the place of all, uint8 (32, 32, 3); None to show
            them.
    """
    pixels, labels = images.train_set
    how = images.augmentation
    draws = draw_epoch(len(labels), how, images.seed, epoch=0).span(0, count)
    originals = pixels[draws.image]
    if stand_in is not None:
        originals = stand_in.expand_as(originals)
    padded = pad(originals, how.crop_padding, how.padding_mode)
    places = draws._replace(image=torch.arange(len(originals)))
    augmented = augment(padded, places, how, images.fill).permute(0, 2, 3, 1)
    return Samples(originals, augmented, labels[draws.image])
