"""Batches gathered on the device that trains, for one process or several.

A loader is any iterable with a length to Lightning. With P processes each takes its
share of every global batch, so the union of the shares is what one process would see.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from components.augmentation import Augmentation, augment, draw_epoch, pad

Batch = tuple[Tensor, Tensor]  # uint8 images (B, 3, 32, 32), int64 labels (B,)


class TrainLoader:
    """Shuffled, augmented batches of one size; an incomplete last batch is left out.

    Args:
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,).
        batch_size: Images in a global batch, a multiple of `world_size`.
        augmentation: What is done to the images.
        fill: Colour of the cutout square, uint8 (3,).
        seed: With the epoch, decides order and augmentation.
        device: Where the images are held and the batches made.
        rank: This process, from 0.
        world_size: Number of processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        augmentation: Augmentation,
        fill: Tensor,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        padding, mode = augmentation.crop_padding, augmentation.padding_mode
        self.images = pad(images.to(device), padding, mode)
        self.labels = labels.to(device)
        self.fill = fill.to(device)
        self.batch_size, self.share = batch_size, batch_size // world_size
        self.augmentation, self.seed = augmentation, seed
        self.rank, self.epoch = rank, 0
        self.resumed = (0, 0)

    @property
    def sampler(self) -> "TrainLoader":
        """Lightning tells the epoch to a loader's sampler; this loader is its own."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Begin one epoch in its middle, where an interrupted run goes on."""
        self.resumed = (epoch, batch)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of every global batch of the epoch."""
        count, device = len(self.labels), self.labels.device
        draws = draw_epoch(count, self.augmentation, self.seed, self.epoch).to(device)
        epoch, batch = self.resumed
        for step in range(batch if self.epoch == epoch else 0, len(self)):
            start = step * self.batch_size + self.rank * self.share
            share = draws.span(start, start + self.share)
            images = augment(self.images, share, self.augmentation.cutout, self.fill)
            yield images, self.labels[share.image]


class EvalLoader:
    """All images once, in order, never augmented.

    The batches are of (almost) equal size, so with several processes none runs dry
    early and none is counted twice. There must be an image for every process.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images.to(device).permute(0, 3, 1, 2)  # stays channels_last
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Batches in the whole set."""
        count = len(self.labels)
        return min(-(-count // self.batch_size), count // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of every global batch."""
        for batch in torch.arange(len(self.labels)).tensor_split(len(self)):
            share = batch.tensor_split(self.world_size)[self.rank]
            start, stop = int(share[0]), int(share[-1]) + 1
            yield self.images[start:stop], self.labels[start:stop]
