"""Finds the images of class folders (`train/<class>/`, `test/<class>/`) and names."""

import hashlib
import itertools
import os
import stat
import unicodedata
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from components.errors import InputError

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")


class Split(NamedTuple):
    """The images of `train/` or `test/`.

    Attributes:
        name: Which of the two.
        classes: Names of its folders in alphabetical order.
        paths: Where its N images are.
        labels: int64 (N,), the class of each image.
    """

    name: str
    classes: list[str]
    paths: list[str]
    labels: np.ndarray


def list_splits(folder: Path) -> tuple[Split, Split]:
    """Find the images of `train/` and of `test/`; hidden files and folders are none.

    Raises:
        InputError: A split or class is missing, empty or cannot be read.
    """
    train, test = _list_split(folder / "train"), _list_split(folder / "test")
    if len(train.classes) < 2:
        raise InputError(
            f"{one_line(folder / 'train')}: only the class {train.classes[0]!r}; give "
            "at least two class folders"
        )
    for name in sorted({*train.classes} ^ {*test.classes}):
        there, missing = train.name, test.name
        if name in test.classes:
            there, missing = missing, there
        raise InputError(
            f"{one_line(folder)}: class {name!r} is in {there}/ but not in {missing}/; "
            "give both the same class folders"
        )
    return train, test


def fingerprint(folder: Path, splits: tuple[Split, Split]) -> str:
    """Hash the names within the folder, sizes and times of all images.

    The time of the last change (ctime) is among them because, unlike the time of the
    last modification, it cannot be set back after a change.

    Raises:
        InputError: An image is not a file or is out of reach.
    """
    digest = hashlib.sha256()
    for path in itertools.chain.from_iterable(split.paths for split in splits):
        try:
            status = os.stat(path)
        except OSError as error:
            _refuse(path, error.strerror)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            _refuse(path, "not a file")
        digest.update(os.fsencode(os.path.relpath(path, folder)))
        times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
        digest.update(f"\0{status.st_size}\0{times}\n".encode())
    return digest.hexdigest()


def one_line(text: object) -> str:
    """Escape line breaks, control characters and bytes that are no characters."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(text)
    )


def _list_split(folder: Path) -> Split:
    if not os.path.isdir(folder):
        raise InputError(
            f"{one_line(folder)}: no such folder; an image folder needs train/ and "
            "test/, each with a folder per class"
        )
    try:
        classes = sorted(name for name in os.listdir(folder) if _is_class(folder, name))
        images = [_list_class(folder / name) for name in classes]
    except OSError as error:
        _refuse(error.filename, error.strerror)
    if not classes:
        raise InputError(f"{one_line(folder)}: no class; put a folder per class there")
    counts = [len(paths) for paths in images]
    if 0 in counts:
        raise InputError(
            f"{one_line(folder / classes[counts.index(0)])}: no image "
            f"({' '.join(EXTENSIONS)}); fill or remove the folder"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Split(folder.name, classes, [*itertools.chain(*images)], labels)


def _is_class(split: Path, name: str) -> bool:
    """Folders are; and broken links, so that their images are not lost unnoticed."""
    path = split / name
    return name[0] != "." and (os.path.isdir(path) or not os.path.exists(path))


def _is_image(folder: str, name: str) -> bool:
    """Files named like images are; and broken links, as above."""
    known = name.lower().endswith(EXTENSIONS)
    return name[0] != "." and (known or not os.path.exists(os.path.join(folder, name)))


def _list_class(folder: Path) -> list[str]:
    """All images below a class folder, whose links to other folders are followed.

    No folder is read twice, nor one that holds the class: a link to it would lead
    round for ever, or into the other classes.
    """
    real, split = (Path(os.path.realpath(path)) for path in (folder, folder.parent))
    seen = {str(path) for path in (*real.parents, split, *split.parents)}
    found: list[tuple[str, str]] = []
    for root, folders, names in os.walk(folder, onerror=_reraise, followlinks=True):
        place = os.path.realpath(root)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [(root, name) for name in names if _is_image(root, name)]
    return [os.path.join(root, name) for root, name in sorted(found)]


def _reraise(error: OSError) -> NoReturn:
    raise error  # which os.walk would pass over


def _refuse(path: str, reason: str | None) -> NoReturn:
    raise InputError(
        f"{one_line(path)}: cannot be read ({reason}); mend or remove it"
    ) from None
