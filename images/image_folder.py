"""The images of class folders, decoded once."""

import contextlib
import hashlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError
from common.files import remove_leftovers, replacing
from common.text import one_line
from config import IMAGE_SIZE
from images.class_folders import Listing, fingerprint
from images.files import FORMATS, say_others

log = logging.getLogger(__name__)

CACHE_NAME = ".decoded.npz"
LEFT_OVER = 3600.0  # seconds after which nobody is still writing a cache
SIZE = (IMAGE_SIZE, IMAGE_SIZE)
CACHE_VERSION = "6"  # raise it when `to_pixels` changes
Turn = Image.Transpose
TURNS: dict[Any, Image.Transpose] = {  # of EXIF's orientation
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


def load_images(listing: Listing) -> tuple[Tensor, Tensor]:
    """Read all images of a folder, from the cache when they have not changed.

    Returns:
        Images, uint8 (N, 32, 32, 3), and their labels, int64 (N,).

    Raises:
        InputError: An image cannot be read.
    """
    folder, count = listing.folder, len(listing.paths)
    key = f"{CACHE_VERSION} {fingerprint(listing)}"
    caches = _cache_paths(folder)
    cached = (_read_cache(path, key, count) for path in caches)
    decoded = next(filter(None, cached), None)
    if decoded is None:
        decoded = _decode(listing)
        _write_cache(caches, key, *decoded)
    images, converted = decoded
    if converted:
        log.info(
            f"{one_line(folder)}: {converted} of {count} images were converted to "
            f"{IMAGE_SIZE}x{IMAGE_SIZE} RGB"
        )
    say_others(folder, listing.others)
    return torch.from_numpy(images), torch.from_numpy(listing.labels)


def read_image(path: str | Path) -> tuple[np.ndarray, bool]:
    """Read an image file in one of the `FORMATS`, whatever its name.

    Returns:
        Its pixels as `to_pixels` gives them, and whether they were so in the file.

    Raises:
        InputError: It is not there, no image, damaged, or too large.
    """
    with _opened(path) as image:
        as_is = (image.mode, *image.size) == ("RGB", IMAGE_SIZE, IMAGE_SIZE)
        return to_pixels(image), as_is


def read_views(path: str | Path) -> np.ndarray:
    """Read an image file as `to_views` does.

    Raises:
        InputError: It is not there, no image, damaged, or too large.
    """
    with _opened(path) as image:
        return to_views(image)


def read_photo(path: str | Path, side: int) -> Image.Image:
    """Read an image file to be shown to people: whole, upright and in RGB.

    Args:
        path: The file.
        side: Pixels of the longer side at most.

    Raises:
        InputError: It is not there, no image, damaged, or too large.
    """
    with _opened(path) as image:
        photo = to_rgb(image)
        photo.thumbnail((side, side))
        return photo


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file; `InputError` for whatever goes wrong with it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a file")  # reading a pipe would wait for ever
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on and refuses twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except Exception as error:  # a broken file may raise any kind
        raise InputError(
            f"{one_line(path)}: not a readable image ({_explain(error)}); replace or "
            "remove it"
        ) from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """Convert an image of any size and mode to uint8 (32, 32, 3).

    It is scaled so that its shorter side fits, and cut to a centred square.

    Raises:
        ValueError: As `to_rgb` does.
    """
    image = to_rgb(image)
    if image.size != SIZE:
        image = ImageOps.fit(image, SIZE, Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_views(image: Image.Image) -> np.ndarray:
    """Convert an image to the ways to look at it: uint8 (2, 32, 32, 3).

    The first is that of `to_pixels`; the second shows all of the image, its sides made
    equal.

    Raises:
        ValueError: As `to_rgb` does.
    """
    image = to_rgb(image)
    squeezed = image.resize(SIZE, Image.Resampling.BILINEAR)
    return np.stack([to_pixels(image), np.asarray(squeezed)])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    The picture is turned as its EXIF says, and laid on black where it is transparent.

    Raises:
        ValueError: No pixel value is known to be white: they are floating-point
            numbers, integers beyond 16 bits or below 0, or 32 bits with less than 9 in
            use.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white")
    _scale_transparency(image)
    # `ImageOps.exif_transpose` would also write the EXIF anew, and fail at odd tags.
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        kept = image.info.get("transparency")
        image = image.transpose(turn)
        image.info = {} if kept is None else {"transparency": kept}  # turned once
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        values = np.asarray(image.convert("I"))
        low, high = values.min(), values.max()
        # 32 bits that need 8 only: white is 255 or 65535, and nobody knows which.
        if low < 0 or high > 65535 or (image.mode == "I" and 0 < high <= 255):
            raise ValueError(f"pixels from {low} to {high} have no agreed white")
        seen = values != image.info.get("transparency")
        image = Image.fromarray((seen * values // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _scale_transparency(image: Image.Image) -> None:
    """Make a PNG's transparent grey that of its pixels, which Pillow makes 8 bits."""
    tiles: Any = getattr(image, "tile", None)  # gone once the pixels are read
    if tiles and "transparency" in image.info:
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(str(tiles[0].args), 1)


def _decode(listing: Listing) -> tuple[np.ndarray, int]:
    """All images, uint8 (N, 32, 32, 3), and how many had another size or mode."""
    images = np.empty((len(listing.paths), *SIZE, 3), np.uint8)
    converted = 0
    title = f"Decoding {one_line(listing.folder.name)}/"
    with tqdm(listing.paths, title, leave=False, disable=None) as bar:
        for position, path in enumerate(bar):
            images[position], as_is = read_image(path)
            converted += not as_is
    return images, converted


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


def _read_cache(path: Path, key: str, count: int) -> tuple[np.ndarray, int] | None:
    """What `_decode` gave, if the file holds the images that the key stands for."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            images, converted = stored["images"], int(stored["converted"])
        if images.dtype != np.uint8 or images.shape != (count, *SIZE, 3):
            raise ValueError(f"images is {images.dtype} {images.shape}")
    except FileNotFoundError:
        return None
    except Exception as error:  # torn or foreign: np.load raises many kinds
        log.warning(
            f"{one_line(path)}: cache not usable ({one_line(error)}); decoding the "
            "images again"
        )
        return None
    return images, converted


def _write_cache(
    paths: list[Path], key: str, images: np.ndarray, converted: int
) -> None:
    """Write to the first path that can be written, whole or not at all."""
    failures = []
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, age=LEFT_OVER)
            with replacing(path) as file:
                np.savez(file, key=key, images=images, converted=converted)
            return
        except OSError as error:
            failures.append(
                f"{one_line(path)}: decoded images not cached ({one_line(error)})"
            )
    for failure in failures:
        log.warning(failure)
