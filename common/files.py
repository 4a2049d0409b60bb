"""Files that are written whole or not at all, and known to be whole when read."""

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.errors import InputError
from common.text import one_line

SUFFIX = ".tmp"  # of the hidden file that is being written
SEAL = 64  # bytes of a checksum in a zip file's comment


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~user` replaced by home folders, as a shell does.

    Shells leave `--flag=~/folder` and the paths in files as they are. Where no home
    folder is known, so does this.
    """
    return Path(os.path.expanduser(path))


def check_output(path: Path, *, overwrite: bool = True) -> None:
    """Refuse the file of `--output` before the work, where it could not be written.

    Raises:
        InputError: It is a folder, in a folder that is not there, or there already.
    """
    name = f"--output {one_line(path)}"
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: a folder or device; give a file")
    if not path.parent.is_dir():
        raise InputError(f"{name}: its folder is not there; make it, or give another")
    if path.exists() and not overwrite:
        raise InputError(f"{name}: already there; give another, or --overwrite")


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` once it is whole and on the disk.

    Until then, and for good if anything goes wrong, `path` stays what it was. Where two
    processes replace the same one, the last wins.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    fresh = path.with_name(f".{secrets.token_hex(8)}{SUFFIX}")
    text: dict[str, Any] = {"newline": "", "encoding": "utf-8"}
    try:
        with fresh.open(mode, **{} if "b" in mode else text) as file:
            yield file
            file.flush()
            _sync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    # The name is in the folder, which elsewhere than on POSIX cannot be opened.
    with contextlib.suppress(PermissionError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _sync(folder)
        finally:
            os.close(folder)


def _sync(descriptor: int) -> None:
    """Wait until it is on the disk, where the file system knows how to say so.

    Some network drives refuse to sync a folder.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise


def remove_leftovers(folder: Path, age: float = 0.0) -> None:
    """Take away what killed processes were writing with `replacing`.

    Args:
        folder: Where they were.
        age: Seconds for which a file has stood still; 0 where nobody else may be
            writing.

    Raises:
        OSError: A file cannot be removed.
    """
    for path in folder.glob(f".{'[0-9a-f]' * 16}{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # its process has ended well
            if path.lstat().st_mtime <= time.time() - age and not path.is_dir():
                path.unlink()


def sealed(archive: memoryview) -> list[memoryview | bytes]:
    """Put a checksum into the comment at the end of a zip file, such as torch saves.

    The format has checksums of its own, but torch does not compare them: it reads
    flipped bits without a word, and for some flips in the file's directory memory that
    was never written.

    Returns:
        What to write, in parts: the whole is too large to be copied.
    """
    checksum = hashlib.sha256(archive).hexdigest().encode()
    return [archive[:-2], SEAL.to_bytes(2, "little"), checksum]


def unsealed(content: bytes) -> bytes:
    """The zip file without the comment.

    Raises:
        ValueError: The checksum is not there or wrong.
    """
    archive = content[: -SEAL - 2] + bytes(2)
    if hashlib.sha256(archive).hexdigest().encode() != content[-SEAL:]:
        raise ValueError("wrong checksum")
    return archive
