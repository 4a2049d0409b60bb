"""Images in class folders (`train/<class>/`, `test/<class>/`), decoded once."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from components.augmentation import IMAGE_SIZE
from components.errors import InputError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]  # what a cache file holds, by name
Samples = list[tuple[str, int]]  # path and label of every image
CACHE_NAME = ".decoded.npz"
CACHE_VERSION = "1"  # raise it when `to_pixels` changes


def is_image_folder(folder: Path) -> bool:
    """Whether a folder is laid out as this module reads it."""
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def load_image_folder(folder: Path) -> Arrays:
    """Read all images of a folder, from the cache when they have not changed.

    Returns:
        `train_images` and `test_images`, uint8 (N, 32, 32, 3); their labels, int64
        (N,); and `classes`, the folder names in alphabetical order.

    Raises:
        InputError: A split or class is missing or empty, or an image cannot be read.
    """
    train, test = _list_split(folder / "train"), _list_split(folder / "test")
    if len(train.classes) < 2:
        raise InputError(
            f"{folder / 'train'}: only the class {train.classes[0]!r}; give at least "
            "two class folders"
        )
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(
            f"{folder}: class {odd[0]!r} is not in both train/ and test/; "
            "give both the same class folders"
        )
    key = _fingerprint(folder, train.samples + test.samples)
    caches = [folder / CACHE_NAME, _user_cache(folder)]
    arrays = next(filter(None, (_read_cache(path, key) for path in caches)), None)
    if arrays is None:
        arrays = {"key": np.array(key), "classes": np.array(train.classes)}
        arrays |= _decode_split("train", train.samples)
        arrays |= _decode_split("test", test.samples)
        _write_cache(caches, arrays)
    for split in ("train", "test"):
        converted, count = arrays[f"{split}_converted"], len(arrays[f"{split}_labels"])
        if converted:
            log.info(
                f"{folder / split}: {converted} of {count} images were converted to "
                f"{IMAGE_SIZE}x{IMAGE_SIZE} RGB"
            )
    return arrays


def to_pixels(image: Image.Image) -> np.ndarray:
    """Convert an image of any size and mode to uint8 (32, 32, 3).

    The picture is turned as its EXIF says, laid on black where it is transparent,
    scaled so that its shorter side fits, and cut to a centred square.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        image = image.point(lambda value: value / 257).convert("L")
    if image.mode != "RGB" and image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(ground, image)
    image = image.convert("RGB")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = ImageOps.fit(image, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _list_split(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; an image folder needs train/ and test/, each "
            "with a folder per class"
        )
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class, or a class without an image
        raise InputError(
            f"{folder}: {' '.join(str(error).split())}; fill or remove the empty folder"
        ) from None


def _fingerprint(folder: Path, samples: Samples) -> str:
    """A hash over the names within the folder, sizes and times of all files."""
    digest = hashlib.sha256(CACHE_VERSION.encode())
    for path, _ in samples:
        status = os.stat(path)
        name = os.path.relpath(path, folder)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode_split(split: str, samples: Samples) -> Arrays:
    images = np.empty((len(samples), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    converted = 0
    for position, (path, _) in enumerate(tqdm(samples, f"Decoding {split}/")):
        try:
            with Image.open(path) as image:
                as_is = image.mode == "RGB" and image.size == (IMAGE_SIZE, IMAGE_SIZE)
                images[position] = to_pixels(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as bad:
            raise InputError(
                f"{path}: not a readable image ({' '.join(str(bad).split())}); replace "
                "or remove it"
            ) from None
        converted += not as_is
    return {
        f"{split}_images": images,
        f"{split}_labels": np.array([label for _, label in samples], np.int64),
        f"{split}_converted": np.array(converted),
    }


def _user_cache(folder: Path) -> Path:
    """A cache file for folders that cannot be written, one per folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "cifar10-lightning" / f"{name}.npz"


def _read_cache(path: Path, key: str) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays) if str(arrays["key"]) == key else None
    except FileNotFoundError:
        return None
    except Exception as error:  # torn or foreign: np.load raises many kinds
        log.warning(f"{path}: cache not usable ({error}); decoding the images again")
        return None


def _write_cache(paths: list[Path], arrays: Arrays) -> None:
    """Write to the first path that can be written, whole or not at all."""
    for path in paths:
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(fresh, path)
            return
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            log.warning(f"{path}: decoded images not cached ({error})")
