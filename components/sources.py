"""Where images come from: CIFAR-10, a folder of images, or drawn shapes."""

import contextlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10

from components import download
from components.class_folders import one_line
from components.errors import InputError
from components.image_folder import is_image_folder, load_image_folder
from components.synthetic import SHAPES, draw_shapes

Source = Literal["cifar10", "synthetic"]


class ImageSet(NamedTuple):
    """All images of a source, in memory.

    Attributes:
        train_images: uint8 (N, 32, 32, 3).
        train_labels: int64 (N,).
        test_images: uint8 (M, 32, 32, 3).
        test_labels: int64 (M,).
        classes: Name of each label.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def fetch(source: Source, data_dir: Path, download_url: str | None = None) -> None:
    """Download CIFAR-10 if it is what is asked for and is not there.

    Args:
        source: Which images are asked for.
        data_dir: Folder of the images. An archive in it is unpacked, not downloaded.
        download_url: Where to look for the archive first.

    Raises:
        InputError: It is not there and cannot be had, or the address is none.
    """
    if download_url is not None:
        download.check_url(download_url)
    if source == "synthetic" or is_image_folder(data_dir) or _is_complete(data_dir):
        return
    lock = data_dir / ".download.lock"
    new = [path for path in (data_dir, *data_dir.parents) if not os.path.lexists(path)]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Of several processes on one folder one downloads, the others wait and find it.
        with FileLock(lock):
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


def load(source: Source, data_dir: Path) -> ImageSet:
    """Read a source that `fetch` has made ready.

    Raises:
        InputError: Images are missing or not as they should be.
    """
    if source == "synthetic":
        return ImageSet(*draw_shapes(5000, seed=1), *draw_shapes(1000, seed=2), SHAPES)
    if is_image_folder(data_dir):
        arrays = load_image_folder(data_dir)
        return ImageSet(
            torch.from_numpy(arrays["train_images"]),
            torch.from_numpy(arrays["train_labels"]),
            torch.from_numpy(arrays["test_images"]),
            torch.from_numpy(arrays["test_labels"]),
            tuple(arrays["classes"].tolist()),
        )
    try:
        # Unpickles no file before its checksum is right.
        train, test = (CIFAR10(str(data_dir), train=part) for part in (True, False))
    except (OSError, RuntimeError):
        raise InputError(
            f"--data_dir {one_line(data_dir)}: {CIFAR10.base_folder}/ is missing or "
            "damaged; start again to download what is not as it should be"
        ) from None
    return ImageSet(
        torch.from_numpy(train.data),
        torch.from_numpy(np.array(train.targets, np.int64)),
        torch.from_numpy(test.data),
        torch.from_numpy(np.array(test.targets, np.int64)),
        tuple(train.classes),
    )


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
