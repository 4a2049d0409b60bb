"""Where images come from: CIFAR-10, a folder of images, or drawn shapes."""

import contextlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10

from components.errors import InputError
from components.image_folder import is_image_folder, load_image_folder
from components.synthetic import SHAPES, draw_shapes

Source = Literal["cifar10", "synthetic"]
DOWNLOAD_TIMEOUT = 30  # seconds without a byte before a download is given up


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


def fetch(source: Source, data_dir: Path) -> None:
    """Download CIFAR-10 if it is what is asked for and is not there.

    Raises:
        InputError: It is not there and cannot be had.
    """
    if source == "synthetic" or is_image_folder(data_dir) or _is_complete(data_dir):
        return
    lock = data_dir / ".download.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # Of several processes on one folder one downloads, the others wait and find it.
        with FileLock(lock), _time_limit(DOWNLOAD_TIMEOUT):
            if not _is_complete(data_dir):
                CIFAR10(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # leave no folder of a mistyped name
            lock.unlink(missing_ok=True)
            data_dir.rmdir()
        raise InputError(
            f"--data_dir {data_dir}: CIFAR-10 is not there and cannot be downloaded "
            f"({error}); put cifar-10-batches-py/ there, or images as train/<class>/ "
            "and test/<class>/, or use --data synthetic"
        ) from None


def load(source: Source, data_dir: Path) -> ImageSet:
    """Read a source that `fetch` has made ready.

    Raises:
        InputError: A folder or an image in it is not as it should be.
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
    train, test = (
        CIFAR10(str(data_dir), train=True),
        CIFAR10(str(data_dir), train=False),
    )
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


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Limit how long a socket may be silent; torchvision's downloads have no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints retries
            yield
    finally:
        socket.setdefaulttimeout(before)
