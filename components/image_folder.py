"""Images in class folders (`train/<class>/`, `test/<class>/`), decoded once."""

import contextlib
import hashlib
import logging
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from components.augmentation import IMAGE_SIZE
from components.class_folders import Split, fingerprint, list_splits, one_line
from components.errors import InputError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]  # by name
# Pillow goes by a file's content, whatever its name, and gives some formats to other
# programs: PostScript to Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
CACHE_NAME = ".decoded.npz"
CACHE_VERSION = "2"  # raise it when `to_pixels` changes


def is_image_folder(folder: Path) -> bool:
    """Whether a folder is laid out as this module reads it."""
    return os.path.isdir(folder / "train") or os.path.isdir(folder / "test")


def load_image_folder(folder: Path) -> Arrays:
    """Read all images of a folder, from the cache when they have not changed.

    Returns:
        `train_images` and `test_images`, uint8 (N, 32, 32, 3); their labels, int64
        (N,); and `classes`, the folder names in alphabetical order.

    Raises:
        InputError: A split or class is missing or empty, or an image cannot be read.
    """
    train, test = splits = list_splits(folder)
    key = f"{CACHE_VERSION} {fingerprint(folder, splits)}"
    caches = _cache_paths(folder)
    blank = _blank(train) | _blank(test)
    cached = (_read_cache(path, key, blank) for path in caches)
    decoded = next(filter(None, cached), None)
    if decoded is None:
        decoded = _decode(train) | _decode(test)
        _write_cache(caches, decoded | {"key": np.array(key)})
    for split in splits:
        if converted := decoded[f"{split.name}_converted"]:
            log.info(
                f"{one_line(folder / split.name)}: {converted} of {len(split.paths)} "
                f"images were converted to {IMAGE_SIZE}x{IMAGE_SIZE} RGB"
            )
    return {
        "train_images": decoded["train_images"],
        "train_labels": train.labels,
        "test_images": decoded["test_images"],
        "test_labels": test.labels,
        "classes": np.array([one_line(name) for name in train.classes]),
    }


def read_image(path: str | Path) -> tuple[np.ndarray, bool]:
    """Read an image file in one of the `FORMATS`, whatever its name.

    Returns:
        Its pixels as `to_pixels` gives them, and whether they were so in the file.

    Raises:
        InputError: It is not there, no image, damaged, or too large.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a file")  # reading a pipe would wait for ever
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on and refuses twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                as_is = (image.mode, *image.size) == ("RGB", IMAGE_SIZE, IMAGE_SIZE)
                return to_pixels(image), as_is
    except Exception as error:  # a broken file may raise any kind
        raise InputError(
            f"{one_line(path)}: not a readable image ({_explain(error)}); replace or "
            "remove it"
        ) from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """Convert an image of any size and mode to uint8 (32, 32, 3).

    The picture is turned as its EXIF says, laid on black where it is transparent,
    scaled so that its shorter side fits, and cut to a centred square.

    Raises:
        ValueError: Its pixels are floating-point numbers, of which none is white.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white")
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


def _blank(split: Split) -> Arrays:
    """The arrays that `_decode` fills and a cache file holds."""
    shape = (len(split.paths), IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        f"{split.name}_images": np.empty(shape, np.uint8),
        f"{split.name}_converted": np.zeros((), np.int64),
    }


def _decode(split: Split) -> Arrays:
    images, converted = (arrays := _blank(split)).values()
    bar = tqdm(split.paths, f"Decoding {split.name}/", leave=False, disable=None)
    with bar:
        for position, path in enumerate(bar):
            images[position], as_is = read_image(path)
            converted += not as_is
    return arrays


def _explain(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}"
    return one_line(getattr(error, "strerror", None) or error or type(error).__name__)


def _cache_paths(folder: Path) -> list[Path]:
    """In the folder, or in the user's own one per folder where that is read-only."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    paths = [folder / CACHE_NAME]
    with contextlib.suppress(RuntimeError):  # a user without a home
        paths.append(Path.home() / ".cache" / "cifar10-lightning" / f"{name}.npz")
    return paths


def _read_cache(path: Path, key: str, blank: Arrays) -> Arrays | None:
    """The images of a cache file, if it holds those that the key stands for."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in blank}
        for name, array in arrays.items():
            if (array.dtype, array.shape) != (blank[name].dtype, blank[name].shape):
                raise ValueError(f"{name} is {array.dtype} {array.shape}")
    except FileNotFoundError:
        return None
    except Exception as error:  # torn or foreign: np.load raises many kinds
        log.warning(
            f"{one_line(path)}: cache not usable ({one_line(error)}); decoding the "
            "images again"
        )
        return None
    return arrays


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
            log.warning(
                f"{one_line(path)}: decoded images not cached ({one_line(error)})"
            )
