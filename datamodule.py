"""`CIFAR10DataModule`: which images, which split, which loader."""

import copy
import logging
import os
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from components import environment, sources
from components.augmentation import IMAGE_SIZE, Augmentation, Flip, PaddingMode
from components.errors import InputError
from components.loader import EvalLoader, TrainLoader, fits

log = logging.getLogger(__name__)

DEFAULT_VAL_SIZE = 5000  # images, or a tenth of the training set where that is less


class Place(NamedTuple):
    """Where a process wants its batches, and what its share of them is."""

    device: torch.device
    rank: int
    world_size: int
    on_host: bool  # the images do not fit on the device


class CIFAR10DataModule(pl.LightningDataModule):
    """Images as one uint8 tensor on the device that trains.

    Where they do not fit there, they stay in host memory.

    Args:
        data: "cifar10" (downloaded when missing, or an image folder with `train/` and
            `test/` in `data_dir`) or "synthetic" (drawn shapes).
        data_dir: Folder of the images.
        batch_size: Images in a global batch, shared out among the processes.
        val_size: Images of the training set that are held out; 0 trains on all.
        seed: Decides the split, the order of the images and their augmentation.
        crop_padding: Border for the random crop in pixels; 0 switches it off.
        padding_mode: What the border shows.
        flip: How images are mirrored.
        cutout: Side of the cutout square in pixels; 0 switches it off.
        download_url: Where to look for CIFAR-10's archive first.

    After `setup`, `train_set`, `val_set` and `test_set` hold images, uint8
    (N, 32, 32, 3), and labels, int64 (N,); `classes`, `mean`, `std`, `val_size` and
    `fingerprint` (a checksum of the whole training set) describe them.
    """

    def __init__(
        self,
        data: sources.Source = "cifar10",
        data_dir: str = "data",
        batch_size: int = 256,
        val_size: int | Literal["auto"] = "auto",
        seed: int = 0,
        crop_padding: int = 4,
        padding_mode: PaddingMode = "reflect",
        flip: Flip = "alternate",
        cutout: int = 8,
        download_url: str | None = None,
    ) -> None:
        super().__init__()
        self.source, self.data_dir = data, Path(os.path.expanduser(data_dir))
        self.download_url = download_url
        self.batch_size, self.seed = batch_size, seed
        self.asked_val_size = val_size
        self.augmentation = Augmentation(crop_padding, padding_mode, flip, cutout)
        self._train_loaders: dict[Place, TrainLoader] = {}
        self._on_host: dict[torch.device, bool] = {}

    def prepare_data(self) -> None:
        """Download what is missing."""
        if not hasattr(self, "classes"):
            sources.fetch(self.source, self.data_dir, self.download_url)

    def setup(self, stage: str | None = None) -> None:
        """Load all images and split the training set, once.

        Raises:
            InputError: The images, or the sizes asked of them, are not as they should.
        """
        if hasattr(self, "classes"):
            return
        images = self.load_images()
        count = len(images.train_labels)
        default = min(DEFAULT_VAL_SIZE, count // 10)
        asked = self.asked_val_size
        self.val_size = default if asked == "auto" else asked
        if self.val_size >= count:
            raise InputError(
                f"--val_size {self.val_size} leaves nothing of {count} training images;"
                f" give at most {count - 1}"
            )
        if self.batch_size > count - self.val_size:
            raise InputError(
                f"--batch_size {self.batch_size} is more than the {count} training "
                f"images less the {self.val_size} held out; give at most "
                f"{count - self.val_size}"
            )
        train, val = stratified_split(images.train_labels, self.val_size, self.seed)
        self.train_set = images.train_images[train], images.train_labels[train]
        self.val_set = images.train_images[val], images.train_labels[val]
        self.test_set = images.test_images, images.test_labels
        # Of the whole training set, as everyone's constants are: every split and seed
        # then feeds the network the same numbers.
        self.mean, self.std = channel_statistics(images.train_images)
        checksum = zlib.crc32(images.train_images.numpy().data)
        checksum = zlib.crc32(images.train_labels.numpy().data, checksum)
        self.fingerprint = f"{checksum:08x}"
        self.classes = images.classes

    def load_images(self) -> sources.ImageSet:
        """Read the images, which `prepare_data` has made ready."""
        return sources.load(self.source, self.data_dir)

    def __str__(self) -> str:
        """How many images there are, and of what."""
        train, val, test = self.sizes().values()
        return (
            f"{train} training, {val} validation and {test} test images of "
            f"{len(self.classes)} classes"
        )

    def sizes(self) -> dict[str, int]:
        """Images of each split."""
        parts = {"train": self.train_set, "val": self.val_set, "test": self.test_set}
        return {split: len(labels) for split, (_, labels) in parts.items()}

    def train_dataloader(self) -> TrainLoader:
        """Shuffled and augmented batches of the training part."""
        place = self._place()
        if place not in self._train_loaders:
            self._train_loaders[place] = TrainLoader(
                *self.train_set,
                batch_size=self.batch_size,
                augmentation=self.augmentation,
                fill=(255 * torch.tensor(self.mean)).round().to(torch.uint8),
                seed=self.seed,
                **place._asdict(),
            )
        # Range test and training share the images and have an epoch of their own each.
        return copy.copy(self._train_loaders[place])

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The held-out part as it is; no loader when nothing is held out."""
        return self._eval_loader(self.val_set) if self.val_size else []

    def test_dataloader(self) -> EvalLoader:
        """The test set as it is."""
        return self._eval_loader(self.test_set)

    def _eval_loader(self, part: tuple[Tensor, Tensor]) -> EvalLoader:
        return EvalLoader(*part, batch_size=self.batch_size, **self._place()._asdict())

    def _place(self) -> Place:
        """Where the Trainer, if there is one, wants the batches of this process."""
        if self.trainer is None:
            return Place(torch.device("cpu"), 0, 1, on_host=False)
        device, trainer = self.trainer.strategy.root_device, self.trainer
        if device not in self._on_host:  # once, before any image is there
            self._on_host[device] = self.stays_on_host(device)
        rank, world_size = trainer.global_rank, trainer.world_size
        return Place(device, rank, world_size, self._on_host[device])

    def stays_on_host(self, device: torch.device) -> bool:
        """Whether all images, those for training with their border, are too many."""
        border = 1 + 2 * self.augmentation.crop_padding / IMAGE_SIZE
        others = self.val_set[0].nbytes + self.test_set[0].nbytes
        needed = self.train_set[0].nbytes * border**2 + others
        free = environment.free_memory(device)
        if fits(needed, free):
            return False
        log.info(
            f"images stay in host memory: {needed / 2**30:.1f} GiB needed, "
            f"{free / 2**30:.1f} GiB free on {device}, half of it for the network"
        )
        return True


def stratified_split(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out `val_size` images so that each class keeps its share.

    Args:
        labels: int64 (N,).
        val_size: Images to hold out.
        seed: The same seed holds out the same images.

    Returns:
        Sorted indices of the training and of the validation images.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Every N/val_size-th of the class-sorted images: no class is off by more than one.
    steps = (torch.arange(val_size) + 0.5) * (len(labels) / max(val_size, 1))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[steps.long()]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


Colour = tuple[float, float, float]


def channel_statistics(images: Tensor) -> tuple[Colour, Colour]:
    """Mean and standard deviation of each channel, in units of full brightness.

    They are exact (counted, not summed in floating point) and rounded to four digits,
    at which CIFAR-10 gives its well-known constants.

    Args:
        images: uint8 (N, H, W, 3).
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in images.split(10_000):  # no second copy of all images at once
        for channel in range(3):
            counts[channel] += part[..., channel].flatten().bincount(minlength=256)
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(0).sqrt()
    std = std.clamp_min(1 / 255)  # images of one colour must not divide by zero
    red, green, blue = (round(value, 4) for value in mean.tolist())
    spread_red, spread_green, spread_blue = (round(value, 4) for value in std.tolist())
    return (red, green, blue), (spread_red, spread_green, spread_blue)
