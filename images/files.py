"""Image files below folders: which files are images, and which are passed over."""

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.text import one_line

log = logging.getLogger(__name__)

# Pillow goes by a file's content, whatever its name, and gives some formats to other
# programs: PostScript to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".avif")  # whose files must be images
LITTER = ("@eaDir", "__MACOSX")  # copies that a NAS or a Mac puts beside images


def list_images(
    folder: str | Path, passed_over: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """All images below a folder, and all other files, as `list_files` finds them."""
    images: list[str] = []
    others: list[str] = []
    for path in list_files(folder, passed_over):
        (images if _is_image(path) else others).append(path)
    return images, others


def list_files(folder: str | Path, passed_over: Collection[str] = ()) -> list[str]:
    """All files below a folder, sorted, without hidden ones.

    Links to other folders are followed. No folder is read twice, nor one above this
    one: a link to it would lead round for ever.

    Args:
        folder: Where to look.
        passed_over: Real paths of folders to leave out.

    Raises:
        OSError: A folder cannot be read.
    """
    seen = {*map(str, Path(os.path.realpath(folder)).parents), *passed_over}
    found: list[tuple[str, str]] = []
    for root, folders, names in os.walk(folder, onerror=_reraise, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [(root, name) for name in names if not is_hidden(name)]
    return [os.path.join(root, name) for root, name in sorted(found)]


def _reraise(error: OSError) -> NoReturn:
    raise error  # which os.walk would pass over


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not meant to be seen."""
    return name[0] == "." or name in LITTER


def _is_image(path: str) -> bool:
    """Whether a file is to be read as an image, by its content.

    Files named like images are, and broken links, so that they are not lost unnoticed.
    """
    if path.lower().endswith(SUFFIXES) or not os.path.exists(path):
        return True
    if not os.path.isfile(path):  # reading a pipe would wait for ever
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # too large, or not to be read: named where all are read
        return True


def say_others(folder: str | Path, others: Sequence[str]) -> None:
    """Say which files of a folder are no images, if any."""
    if others:
        log.info(
            f"{one_line(folder)}: files that are not images were skipped: "
            f"{len(others)}, such as {one_line(os.path.relpath(others[0], folder))}"
        )
