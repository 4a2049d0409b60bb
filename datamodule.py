"""`CIFAR10DataModule`: images, split and loaders."""

import copy
import inspect
import logging
import zlib
from pathlib import Path
from typing import Literal, NamedTuple, Self

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pytorch_lightning as pl
import torch
from torch import Tensor

from common.errors import InputError
from common.files import expanded
from config import DEFAULT_DIR, IMAGE_SIZE, Asked, Config, Flip, PaddingMode
from images import sources
from images.augmentation import Augmentation
from images.loader import EvalLoader, TrainLoader, fits
from machine import memory

log = logging.getLogger(__name__)

DEFAULT_VAL_SIZE = 5000  # images, or a tenth of the training set where that is less


class Place(NamedTuple):
    """Device and rank of a process, and where its images are stored."""

    device: torch.device
    rank: int
    world_size: int
    on_host: bool  # the images do not fit on the device


class CIFAR10DataModule(pl.LightningDataModule):
    """Images as one uint8 tensor on the device that trains.

    Where they do not fit there, they stay in host memory.

    Args:
        data: "cifar10" (downloaded when missing), "folder" (`train/` and `test/`, and
            perhaps `val/`), "synthetic" (drawn shapes), or "auto": what `data_dir` has.
        data_dir: Folder of the images.
        batch_size: Images in a global batch, shared out among the processes.
        val_size: Images of the training set that are held out; 0 trains on all. Where
            there is a `val/`, its images are the validation set instead.
        seed: Decides the split, the order of the images and their augmentation.
        crop_padding: Border for the random crop in pixels; 0 switches it off.
        padding_mode: What the border shows.
        flip: How images are mirrored.
        cutout: Side of the cutout square in pixels; 0 switches it off.
        photo_like: Share of the training images that are changed like photos.
        download_url: Where to look for CIFAR-10's archive first.

    After `setup`, `train_set`, `val_set` and `test_set` hold images, uint8
    (N, 32, 32, 3), and labels, int64 (N,); `classes`, `mean`, `std`, `val_size` and
    `fingerprint` (a checksum of the whole training set) describe them, and `source` is
    what `data` is settled to.
    """

    def __init__(
        self,
        data: Asked = "auto",
        data_dir: str | Path = DEFAULT_DIR,
        batch_size: int = 256,
        val_size: int | Literal["auto"] = "auto",
        seed: int = 0,
        crop_padding: int = 4,
        padding_mode: PaddingMode = "reflect",
        flip: Flip = "alternate",
        cutout: int = 8,
        photo_like: float = 0.0,
        download_url: str | None = None,
    ) -> None:
        super().__init__()
        self.source: Asked = data
        self.data_dir = expanded(data_dir).absolute()
        self.download_url = download_url
        self.batch_size, self.seed = batch_size, seed
        self.asked_val_size = val_size
        self.augmentation = Augmentation(
            crop_padding, padding_mode, flip, cutout, photo_like
        )
        self._train_loaders: dict[Place, TrainLoader] = {}
        self._on_host: dict[torch.device, bool] = {}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The images that a configuration asks for."""
        names = inspect.signature(cls).parameters  # each is a field of Config, too
        return cls(**{name: getattr(config, name) for name in names})

    def prepare_data(self) -> None:
        """Download what is missing."""
        if not hasattr(self, "classes"):
            self.source = sources.fetch(self.source, self.data_dir, self.download_url)

    def setup(self, stage: str | None = None) -> None:
        """Load all images and split the training set, once.

        Raises:
            InputError: The images, or the sizes asked of them, are not as they should.
        """
        if hasattr(self, "classes"):
            return
        images = self.load_images()
        self.train_set, self.val_set = self._split(images)
        self.val_size = len(self.val_set[1])
        self._check_batch_size(len(self.train_set[1]))
        self._name_rare_classes(images)
        self.test_set = images.test
        # Of the whole training set, as everyone's constants are: every split and seed
        # then feeds the network the same numbers.
        self.mean, self.std = channel_statistics(images.train[0])
        checksum = 0
        for tensor in (*images.train, *(images.val or ())):
            checksum = zlib.crc32(tensor.numpy().data, checksum)
        self.fingerprint = f"{checksum:08x}"
        self.classes = images.classes

    def sample(self, most: int) -> Tensor:
        """At most so many training images, of all classes: uint8 (N, 32, 32, 3)."""
        pixels = self.train_set[0]
        return pixels[:: -(-len(pixels) // most)]

    def load_images(self) -> sources.ImageSet:
        """Read the images, which `prepare_data` has made ready."""
        self.source = source = sources.settle(self.source, self.data_dir)
        return sources.load(source, self.data_dir)

    def _split(
        self, images: sources.ImageSet
    ) -> tuple[sources.Labelled, sources.Labelled]:
        """Training and validation images, by `val/` or by `val_size`."""
        if images.val is not None:
            return images.train, self._own_val(images.val)
        pixels, labels = images.train
        most = len(labels) - len(images.classes)  # one of each class is left
        val_size = min(DEFAULT_VAL_SIZE, len(labels) // 10, most)
        if self.asked_val_size != "auto":
            val_size = self.asked_val_size
        if val_size > most:
            raise InputError(
                f"--val_size {val_size} leaves too few of {len(labels)} images for "
                f"{len(images.classes)} classes; give at most {most}"
            )
        train, val = stratified_split(labels, val_size, self.seed)
        return (pixels[train], labels[train]), (pixels[val], labels[val])

    def _own_val(self, val: sources.Labelled) -> sources.Labelled:
        """The images of `val/`, or none of them where none are asked for."""
        count, asked = len(val[1]), self.asked_val_size
        if asked not in ("auto", 0, count):
            raise InputError(
                f"--val_size {asked}: {self.data_dir / 'val'} has {count} images, and "
                "they are the validation set; leave the flag out, or give 0 for none"
            )
        return (val[0][:0], val[1][:0]) if asked == 0 else val

    def _check_batch_size(self, count: int) -> None:
        if self.batch_size > count:
            raise InputError(
                f"--batch_size {self.batch_size} is more than the {count} training "
                f"images, {self.val_size} held out; give at most {count}"
            )

    def _name_rare_classes(self, images: sources.ImageSet) -> None:
        counts = [
            labels.bincount(minlength=len(images.classes)).tolist()
            for _, labels in (self.train_set, images.train)
        ]
        for name, left, there in zip(images.classes, *counts, strict=True):
            if left == 1:
                log.warning(
                    f"class {name!r} has one image to train on, of {there} in all; "
                    "more images, or a smaller --val_size, would help"
                )

    @property
    def fill(self) -> Tensor:
        """The mean colour, uint8 (3,), that cutout's squares show."""
        return (255 * torch.tensor(self.mean)).round().to(torch.uint8)

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
                fill=self.fill,
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
        """Device and rank of this process; the CPU where there is no Trainer."""
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
        free = memory.free_memory(device)
        if fits(needed, free):
            return False
        log.info(
            f"images stay in host memory: {needed / 2**30:.1f} GiB needed, "
            f"{free / 2**30:.1f} GiB free on {device}, half of it for the network"
        )
        return True


def stratified_split(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out `val_size` images so that each class keeps its share, and at least one.

    Args:
        labels: int64 (N,).
        val_size: Images to hold out, at most N less the number of classes.
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
    _keep_one_of_each(labels, held_out)
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _keep_one_of_each(labels: Tensor, held_out: Tensor) -> None:
    """Give back an image of each class that is held out whole, for one of a large one.

    Args:
        labels: int64 (N,).
        held_out: bool (N,), changed in place.
    """
    left = labels[~held_out].bincount(minlength=int(labels.max()) + 1)
    for label in set(labels.tolist()) & set((left == 0).nonzero().flatten().tolist()):
        largest = left.argmax()
        held_out[(labels == label).nonzero()[0]] = False
        held_out[((labels == largest) & ~held_out).nonzero()[0]] = True
        left[label] += 1
        left[largest] -= 1


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
