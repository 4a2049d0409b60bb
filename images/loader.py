"""Batches gathered on the device that trains, for one process or several.

A loader is any iterable with a length to Lightning. With P processes each takes its
share of every global batch, so the union of the shares is what one process would see.

Images that do not fit on the device stay in host memory. The same code then gathers the
same batches there, each while the device works on the one before.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from images.augmentation import Augmentation, augment, draw_epoch, pad

Batch = tuple[Tensor, Tensor]  # uint8 images (B, 3, 32, 32), int64 labels (B,)

HOST = torch.device("cpu")
PART = 4096  # images that get their border at once
# A block of batches is made at once, as every operation costs the host the same time
# for any number of images. Its batches, and its images: these take 11 KB each then.
BLOCK, BLOCK_IMAGES = 16, 8192


def fits(needed: float, free: float) -> bool:
    """Whether images may live on a device: half of it is left to the network.

    Args:
        needed: Size of the images in bytes.
        free: Free memory of the device in bytes.
    """
    return needed <= free / 2


class TrainLoader:
    """Shuffled, augmented batches of one size; an incomplete last batch is left out.

    Args:
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,).
        batch_size: Images in a global batch, a multiple of `world_size`.
        augmentation: What is done to the images.
        fill: Colour of the cutout square, uint8 (3,).
        seed: With the epoch, decides order and augmentation.
        device: Where the batches are wanted.
        rank: This process, from 0.
        world_size: Number of processes.
        on_host: Hold the images and make the batches in host memory, not on `device`.
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
        on_host: bool = False,
    ) -> None:
        home = HOST if on_host else device
        self.images = _padded(images, augmentation, home)
        self.labels = labels.to(home)
        self.fill = fill.to(home)
        self.device, self.on_host = device, on_host
        self.batch_size, self.share = batch_size, batch_size // world_size
        self.augmentation, self.seed = augmentation, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.resumed = (0, 0)

    @property
    def sampler(self) -> "TrainLoader":
        """Lightning tells the epoch to a loader's sampler; this loader is its own."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Begin one epoch in its middle, where an interrupted run goes on.

        It is no `load_state_dict`, as Lightning drops a loader's state where the length
        of the training is asked for early, as `one_cycle` needs it:
        https://github.com/Lightning-AI/pytorch-lightning/issues/20550.
        """
        self.resumed = (epoch, batch)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of every global batch of the epoch."""
        if not self.on_host:
            return self._gather()
        return (to_device(batch, self.device) for batch in ahead(self._gather()))

    def _gather(self) -> Iterator[Batch]:
        """The batches, where the images are."""
        count, home = len(self.labels), self.labels.device
        draws = draw_epoch(count, self.augmentation, self.seed, self.epoch)
        draws = draws.share(self.batch_size, self.rank, self.world_size).to(home)
        epoch, batch = self.resumed
        first = batch if self.epoch == epoch else 0
        block = self._batches_at_once()
        for step in range(first, len(self), block):
            part = draws.span(step * self.share, (step + block) * self.share)
            images = augment(self.images, part, self.augmentation, self.fill)
            labels = self.labels.index_select(0, part.image)
            parts = images.split(self.share), labels.split(self.share)
            yield from zip(*parts, strict=True)

    def _batches_at_once(self) -> int:
        """Batches of a block; in host memory one, made while one is used."""
        return 1 if self.on_host else max(1, min(BLOCK, BLOCK_IMAGES // self.share))


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
        on_host: bool = False,
    ) -> None:
        home = HOST if on_host else device
        self.images = images.to(home).permute(0, 3, 1, 2)  # stays channels_last
        self.labels = labels.to(home)
        self.batch_size, self.device = batch_size, device
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Batches in the whole set."""
        count = len(self.labels)
        return min(-(-count // self.batch_size), count // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's share of every global batch."""
        for batch in np.array_split(np.arange(len(self.labels)), len(self)):
            share = np.array_split(batch, self.world_size)[self.rank]
            start, stop = share[0], share[-1] + 1
            part = self.images[start:stop], self.labels[start:stop]
            yield to_device(part, self.device)


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield from an iterator of which a thread makes one batch ahead."""
    following = partial(next, batches, None)
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(following)
        while (batch := coming.result()) is not None:
            coming = thread.submit(following)
            yield batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to where it is not yet, beside what the device does."""
    if batch[0].device.type == device.type:
        return batch
    if device.type == "cuda":  # copies from other than page-locked memory are awaited
        batch = batch[0].pin_memory(), batch[1].pin_memory()
    images, labels = (part.to(device, non_blocking=True) for part in batch)
    return images, labels


def _padded(images: Tensor, augmentation: Augmentation, home: torch.device) -> Tensor:
    """All images with a border; part by part, so that none is there a second time."""
    padding, mode = augmentation.crop_padding, augmentation.padding_mode
    side = images.shape[1] + 2 * padding
    padded = torch.empty(len(images), side, side, 3, dtype=torch.uint8, device=home)
    for room, part in zip(padded.split(PART), images.split(PART), strict=True):
        room.copy_(pad(part.to(home), padding, mode))
    return padded
