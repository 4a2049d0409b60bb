"""Finds the images of class folders (`train/<class>/`, `test/<class>/`) and names."""

import difflib
import hashlib
import itertools
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from common.errors import InputError
from common.text import one_line
from images.files import FORMATS, SUFFIXES, is_hidden, list_images

SPLITS = ("train", "val", "test")
SHOWN = 4  # names in a message


class Listing(NamedTuple):
    """What is in a folder with a folder per class.

    Attributes:
        folder: Where it is.
        classes: Names of its folders, composed (NFC), in alphabetical order.
        paths: Where its N images are.
        labels: int64 (N,), the class of each image.
        others: Files that are no images.
    """

    folder: Path
    classes: list[str]
    paths: list[str]
    labels: np.ndarray
    others: list[str]


def list_classes(folder: Path) -> Listing:
    """Find the images below a folder with a folder per class.

    Hidden files and folders are none; which of the others are images, their content
    decides, but a file that is named like one must be one. torchvision's `ImageFolder`
    goes by names alone, and by one spelling of them.

    Raises:
        InputError: The folder or a class is missing, empty or cannot be read.
    """
    if not os.path.isdir(folder):
        hint = _renaming_hint(folder.parent)
        raise InputError(
            f"{one_line(folder)}: no such folder; an image folder needs train/ and "
            f"test/, each with a folder per class{'; ' if hint else ''}{hint}"
        )
    try:
        names = [name for name in os.listdir(folder) if _is_class(folder, name)]
        # Systems write a letter with an accent as one sign or as two.
        named = sorted((unicodedata.normalize("NFC", name), name) for name in names)
        found = [_list_class(folder / name) for _, name in named]
        stray = [path for path in _files(folder) if not is_hidden(path.name)]
    except OSError as error:
        _refuse(error.filename, error.strerror)
    classes = [name for name, _ in named]
    for name, other in itertools.pairwise(classes):
        if name == other:
            raise InputError(
                f"{one_line(folder)}: two folders are named {name!r}, with its accents "
                "written as Unicode's NFC and as NFD; put their images into one"
            )
    if not classes:
        raise InputError(f"{one_line(folder)}: no class; put a folder per class there")
    counts = [len(images) for images, _ in found]
    if 0 in counts:
        raise InputError(
            f"{one_line(folder / named[counts.index(0)][1])}: no image "
            f"({', '.join(FORMATS)}); fill or remove the folder"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    paths = [path for images, _ in found for path in images]
    others = [path for _, no_images in found for path in no_images]
    return Listing(folder, classes, paths, labels, [*map(str, stray), *others])


def check_same_classes(train: Listing, other: Listing) -> None:
    """Make sure that two splits have the same classes.

    Raises:
        InputError: One has a class that the other has not, or there is only one class.
    """
    if len(train.classes) < 2:
        raise InputError(
            f"{one_line(train.folder)}: only the class {train.classes[0]!r}; give at "
            "least two class folders"
        )
    for name in sorted({*train.classes} ^ {*other.classes}):
        there, missing = train.folder.name, other.folder.name
        if name in other.classes:
            there, missing = missing, there
        raise InputError(
            f"{one_line(train.folder.parent)}: class {name!r} is in {there}/ but not "
            f"in {missing}/; give both the same class folders"
        )


def fingerprint(listing: Listing) -> str:
    """Hash the names within the folder, sizes and times of all images.

    The time of the last change (ctime) is among them because, unlike the time of the
    last modification, it cannot be set back after a change.

    Raises:
        InputError: An image is not a file or is out of reach.
    """
    digest = hashlib.sha256()
    for path in listing.paths:
        try:
            status = os.stat(path)
        except OSError as error:
            _refuse(path, error.strerror)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            _refuse(path, "not a file")
        digest.update(os.fsencode(os.path.relpath(path, listing.folder)))
        times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
        digest.update(f"\0{status.st_size}\0{times}\n".encode())
    return digest.hexdigest()


def what_is_wrong(folder: Path, cifar10: Sequence[str]) -> tuple[str, str | None]:
    """Why a folder is neither an image folder nor CIFAR-10, and what to do, if known.

    Args:
        folder: A folder that holds something else, or is not there.
        cifar10: Names by which CIFAR-10 is known.
    """
    if not os.path.isdir(folder):
        near = _nearest(folder.name, _folders(folder.parent))
        hint = f"did you mean {one_line(folder.with_name(near))}?" if near else None
        return "not a folder" if folder.exists() else "no such folder", hint
    try:
        found = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    except OSError as error:
        return f"cannot be read ({error.strerror})", None
    if is_image_folder(folder):
        return "it holds an image folder", "give --data folder"
    problem = (
        f"it holds {_shown(found)}, neither train/ and test/ with a folder per class "
        f"nor CIFAR-10 ({' or '.join(cifar10)})"
    )
    if renaming := _renaming_hint(folder):
        return problem, renaming
    children = [folder / name for name in _folders(folder)]
    for child in children:
        if is_image_folder(child) or any((child / name).exists() for name in cifar10):
            return problem, f"give --data_dir {one_line(child)}"
    if any(_holds_images(child) for child in children):
        return problem, "put the class folders into train/ and test/"
    return problem, None


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has any of the splits of an image folder."""
    return any(os.path.isdir(folder / split) for split in SPLITS)


def _is_class(split: Path, name: str) -> bool:
    """Folders are; and broken links, so that their images are not lost unnoticed."""
    path = split / name
    return not is_hidden(name) and (os.path.isdir(path) or not os.path.exists(path))


def _list_class(folder: Path) -> tuple[list[str], list[str]]:
    """All images below a class folder, and all other files.

    None of a folder that holds the class: a link to it would lead into other classes.
    """
    split = os.path.realpath(folder.parent)
    return list_images(folder, passed_over={split, *map(str, Path(split).parents)})


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder; none where it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if not is_hidden(name) and (folder / name).is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file())


def _holds_images(folder: Path) -> bool:
    try:
        return any(
            path.name.lower().endswith(SUFFIXES)
            for path in itertools.islice(_files(folder), 100)
        )
    except OSError:
        return False


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The name that differs by a letter or by its capitals, if there is one."""
    lowered = {other.lower(): other for other in names if other != name}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.65)
    return lowered[near[0]] if near else None


def _renaming_hint(folder: Path) -> str:
    """Which folders are splits by another name, such as "rename Train/ to train/"."""
    names = _folders(folder)
    renamings = [
        f"rename {one_line(near)}/ to {split}/"
        for split in SPLITS
        if split not in names and (near := _nearest(split, names))
    ]
    return ", ".join(renamings)


def _shown(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    text = ", ".join(one_line(name) for name in names[:SHOWN])
    more = len(names) - SHOWN
    return f"{text} and {more} more" if more > 0 else text


def _refuse(path: str, reason: str | None) -> NoReturn:
    raise InputError(
        f"{one_line(path)}: cannot be read ({reason}); repair or remove it"
    ) from None
