"""Where images come from: CIFAR-10, a folder of images, or drawn shapes."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10

from common.errors import InputError
from common.files import remove_leftovers
from common.text import one_line
from config import DEFAULT_DIR, Asked, Source
from images import download
from images.class_folders import (
    check_same_classes,
    is_image_folder,
    list_classes,
    what_is_wrong,
)
from images.image_folder import load_images
from images.synthetic import SHAPES, draw_shapes

Labelled = tuple[Tensor, Tensor]  # images, uint8 (N, 32, 32, 3), and labels, int64 (N,)

# Names by which CIFAR-10 as published is known; other ones are somebody else's.
CIFAR10_NAMES = (CIFAR10.base_folder, CIFAR10.filename)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
REMEDIES = {
    "auto": "--data cifar10 downloads CIFAR-10, into an empty or new folder",
    "cifar10": "CIFAR-10 is downloaded into an empty or new folder only",
    "folder": "give the folder that has train/ and test/",
}


class ImageSet(NamedTuple):
    """All images of a source, in memory.

    Attributes:
        train: Training images.
        test: Test images.
        classes: Name of each label.
        val: Validation images, where the source has some of its own.
    """

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    val: Labelled | None = None


def settle(asked: Asked, data_dir: Path) -> Source:
    """What the images in a folder are, or will be once they are downloaded.

    Args:
        asked: What the user wants; with "auto" the folder decides.
        data_dir: The folder.

    Raises:
        InputError: The folder holds something else.
    """
    if asked == "synthetic":
        return asked
    if asked != "cifar10" and is_image_folder(data_dir):
        return "folder"
    if asked != "folder" and (_holds_cifar10(data_dir) or _is_free(asked, data_dir)):
        return "cifar10"
    problem, hint = what_is_wrong(data_dir, CIFAR10_NAMES)
    raise InputError(
        f"--data_dir {one_line(data_dir)}: {problem}; {hint or REMEDIES[asked]}"
    )


def fetch(asked: Asked, data_dir: Path, download_url: str | None = None) -> Source:
    """Settle what the images are, and download CIFAR-10 if it is that and not there.

    Args:
        asked: Which images are asked for.
        data_dir: Folder of the images. An archive in it is unpacked, not downloaded.
        download_url: Where to look for the archive first.

    Raises:
        InputError: The folder holds something else, CIFAR-10 cannot be had, or the
            address is none.
    """
    if download_url is not None:
        download.check_url(download_url)
    source = settle(asked, data_dir)
    if source != "cifar10" or _is_complete(data_dir):
        return source
    lock = data_dir / ".download.lock"
    new = [path for path in (data_dir, *data_dir.parents) if not os.path.lexists(path)]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Of several processes on one folder one downloads, the others wait and find it.
        with FileLock(lock):
            remove_leftovers(data_dir)
            if not _is_complete(data_dir):
                _download_cifar10(data_dir, download_url)
    except (OSError, RuntimeError) as error:  # a lock may raise either
        with contextlib.suppress(OSError):  # leave no folder of a mistyped name
            lock.unlink(missing_ok=True)
            for path in new:
                path.rmdir()
        text = (
            f"--data_dir {data_dir}: CIFAR-10 is not there and cannot be downloaded "
            f"({error}); put {CIFAR10.filename} or {CIFAR10.base_folder}/ there, or "
            "images as train/<class>/ and test/<class>/, or give --download_url, or "
            "use --data synthetic"
        )
        raise InputError(one_line(text)) from None
    return source


def load(source: Source, data_dir: Path) -> ImageSet:
    """Read a source that `fetch` has made ready.

    Raises:
        InputError: Images are missing or not as they should be.
    """
    if source == "synthetic":
        return ImageSet(draw_shapes(5000, seed=1), draw_shapes(1000, seed=2), SHAPES)
    if source == "folder":
        return _load_folder(data_dir)
    train, classes = _load_cifar10(data_dir, train=True)
    test, _ = _load_cifar10(data_dir, train=False)
    return ImageSet(train, test, classes)


def load_test(source: Source, data_dir: Path) -> tuple[Labelled, tuple[str, ...]]:
    """Read the test images alone, and the name of each label.

    Raises:
        InputError: Images are missing or not as they should be.
    """
    if source == "synthetic":
        return draw_shapes(1000, seed=2), SHAPES
    if source == "folder":
        return load_split(data_dir / "test")
    return _load_cifar10(data_dir, train=False)


def load_split(folder: Path) -> tuple[Labelled, tuple[str, ...]]:
    """Read a folder with a folder per class, and the name of each label.

    Raises:
        InputError: Images are missing or not as they should be.
    """
    listing = list_classes(folder)
    return load_images(listing), tuple(map(one_line, listing.classes))


def _load_folder(data_dir: Path) -> ImageSet:
    train, test = list_classes(data_dir / "train"), list_classes(data_dir / "test")
    check_same_classes(train, test)
    val = None
    if (data_dir / "val").is_dir():
        val = list_classes(data_dir / "val")
        check_same_classes(train, val)
    return ImageSet(
        load_images(train),
        load_images(test),
        tuple(map(one_line, train.classes)),
        None if val is None else load_images(val),
    )


def _load_cifar10(data_dir: Path, *, train: bool) -> tuple[Labelled, tuple[str, ...]]:
    try:
        # Unpickles no file before its checksum is right.
        part = CIFAR10(str(data_dir), train=train)
    except (OSError, RuntimeError):
        raise InputError(
            f"--data_dir {one_line(data_dir)}: {CIFAR10.base_folder}/ is missing or "
            "damaged; start again to download what is not as it should be"
        ) from None
    # The files hold colour after colour, and torchvision only turns the axes.
    images = torch.from_numpy(np.ascontiguousarray(part.data))
    return (images, torch.tensor(part.targets)), tuple(part.classes)


def _holds_cifar10(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in CIFAR10_NAMES)


def _is_free(asked: Asked, folder: Path) -> bool:
    """Whether CIFAR-10 may be downloaded to a folder: there is nothing else in it.

    A folder that is not there may be a mistyped name, unless it is the usual one.
    """
    if not os.path.lexists(folder):
        return asked == "cifar10" or folder.absolute() == Path(DEFAULT_DIR).absolute()
    try:
        return all(name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return False


def _is_complete(data_dir: Path) -> bool:
    """Whether the unpacked batches of CIFAR-10 are there with the right checksums."""
    try:
        CIFAR10(str(data_dir), train=False)
    except (OSError, RuntimeError):
        return False
    return True


def _download_cifar10(data_dir: Path, download_url: str | None) -> None:
    first = [] if download_url is None else [download_url]
    urls = dict.fromkeys([*first, *download.MIRRORS, CIFAR10.url])
    archive = data_dir / CIFAR10.filename
    download.download(list(urls), archive, CIFAR10.tgz_md5)
    download.unpack(archive, CIFAR10.base_folder)
