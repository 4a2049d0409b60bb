"""CIFAR-10's archive: from bad networks, bad disks and bad neighbours."""

import hashlib
import io
import os
import pickle
import secrets
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen
from urllib.response import addinfourl

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from archive_server import Server
from common.errors import InputError
from datamodule import CIFAR10DataModule
from images import download
from images.sources import fetch, load

ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
LOCK = ".download.lock"
UseMirrors = Callable[..., None]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def make_archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a tiny CIFAR-10, which torchvision takes for the real one."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(CIFAR10, attribute):
            pixels = rng.integers(0, 256, (2, 3 * 32 * 32), dtype=np.uint8)
            pixels[:, 0] = len(files)  # tells the batches apart
            files[name] = pickle.dumps({"data": pixels, "labels": [1, 0]})
            listed.append([name, md5(files[name])])
        monkeypatch.setattr(CIFAR10, attribute, listed)
    files["batches.meta"] = pickle.dumps({"label_names": ["cat", "dog"]})
    meta = CIFAR10.meta | {"md5": md5(files["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return files


@pytest.fixture
def server(
    batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    archive = make_archive({f"{FOLDER}/{name}": batches[name] for name in batches})
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    server = Server(archive)
    monkeypatch.setattr(CIFAR10, "url", server.url("whole"))
    yield server
    server.close()


@pytest.fixture
def use_mirrors(server: Server, monkeypatch: pytest.MonkeyPatch) -> UseMirrors:
    def use(*kinds: str) -> None:
        urls = [server.url(kind) for kind in kinds]
        monkeypatch.setattr(download, "MIRRORS", tuple(urls[:-1]))
        monkeypatch.setattr(CIFAR10, "url", urls[-1])

    return use


def refusal(data_dir: Path, download_url: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        fetch("cifar10", data_dir, download_url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_cifar10_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    fetch("cifar10", tmp_path / "data")
    images = load("cifar10", tmp_path / "data")
    assert images.classes == ("cat", "dog")
    assert images.train[0][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert images.test[0][:, 0, 0, 0].tolist() == [5, 5]
    assert images.test[1].tolist() == [1, 0]
    fetch("cifar10", tmp_path / "data")
    assert server.asked == ["whole"]
    assert names(tmp_path / "data") == [FOLDER, ARCHIVE]


def test_mirrors_are_tried_in_turn(
    tmp_path: Path,
    server: Server,
    use_mirrors: UseMirrors,
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_mirrors("missing", "wrong", "whole", "silent")
    fetch("cifar10", tmp_path / "data", server.url("short"))
    assert server.asked == ["short", "missing", "wrong", "whole"]
    assert "/short: ended after" in caplog.text
    assert len(load("cifar10", tmp_path / "data").train[1]) == 10


def test_the_data_module_asks_its_own_address_first(
    tmp_path: Path, server: Server, use_mirrors: UseMirrors
) -> None:
    use_mirrors("silent")
    url = server.url("whole")
    CIFAR10DataModule(data_dir=str(tmp_path), download_url=url).prepare_data()
    assert server.asked == ["whole"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("redirect", "HTTP 302 Found - Redirection to url 'file:///etc/passwd'"),
        ("wrong", "another file, with the MD5 "),
        ("short", "ended after "),
        ("reset", "" if os.name == "nt" else "Connection reset by peer"),
        ("silent", "silent for 0.5 s"),
        ("stalled", "silent for 0.5 s"),
        ("slow", "slow, 0."),
    ],
)
def test_a_bad_mirror_is_named_and_left_for_the_next(
    tmp_path: Path,
    server: Server,
    use_mirrors: UseMirrors,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    reason: str,
) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.5)
    use_mirrors(kind)
    assert f"{server.url(kind)}: {reason}" in refusal(tmp_path)
    assert names(tmp_path) == []
    use_mirrors(kind, "whole")
    fetch("cifar10", tmp_path)
    assert server.asked == [kind, kind, "whole"]


def test_a_mirror_that_sends_on_to_ftp_is_left_for_the_next(
    tmp_path: Path,
    server: Server,
    use_mirrors: UseMirrors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which urllib follows, to an answer of another kind."""

    def answer(request: Request, timeout: float) -> Any:
        if request.full_url == server.url("redirect"):
            return addinfourl(io.BytesIO(), HTTPMessage(), "ftp://host/x")
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(download, "urlopen", answer)
    use_mirrors("redirect")
    assert "sends on to ftp://host/x, which is not HTTP" in refusal(tmp_path)
    use_mirrors("redirect", "whole")
    fetch("cifar10", tmp_path)
    assert server.asked == ["whole"]


def test_no_network_names_every_address_and_all_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"http://127.0.0.1:9/{number}" for number in range(3)]
    monkeypatch.setattr(download, "MIRRORS", urls[1:])
    monkeypatch.setattr(CIFAR10, "url", urls[1])  # twice, but tried once
    text = refusal(tmp_path / "mistyped" / "name", urls[0])
    assert [text.count(f"{url}: ") for url in urls] == [1, 1, 1]
    for way in (
        ARCHIVE,
        FOLDER,
        "train/<class>/ and test/<class>/",
        "--data synthetic",
    ):
        assert way in text
    assert f"--data_dir {tmp_path / 'mistyped' / 'name'}:" in text
    assert "--download_url" in text
    assert names(tmp_path) == []


def test_a_folder_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty")
    assert [*(tmp_path / "empty").iterdir()] == []


@pytest.mark.skipif(os.name != "posix", reason="names have no line breaks here")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "a\nfile").touch()
    assert r"a\nfile/data: CIFAR-10 is not there" in refusal(tmp_path / "a\nfile/data")


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "file:///x", ARCHIVE, "", "http://", "http://[x", "http://a:b/x"],
)
def test_what_is_no_web_address_is_refused(tmp_path: Path, url: str) -> None:
    text = refusal(tmp_path / "data", url)
    assert text.startswith(f"--download_url {url!r} is not a web address; give ")
    assert not (tmp_path / "data").exists()


def test_of_two_at_once_one_downloads(tmp_path: Path, server: Server) -> None:
    def fetch_and_load() -> None:
        fetch("cifar10", tmp_path / "data")
        counts.append(len(load("cifar10", tmp_path / "data").train[1]))

    counts: list[int] = []
    threads = [threading.Thread(target=fetch_and_load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [10, 10, 10]
    assert server.asked == ["whole"]


def test_a_process_killed_half_way_leaves_nothing_that_is_trusted(
    tmp_path: Path, server: Server, batches: dict[str, bytes]
) -> None:
    code = (
        "import pathlib, sys; from images.download import download;"
        "download([sys.argv[1]], pathlib.Path(sys.argv[2]), sys.argv[3])"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    target = folder / ARCHIVE
    arguments = [server.url("stalled"), str(target), CIFAR10.tgz_md5]
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=root)
    deadline = time.monotonic() + 30
    while not any(part.stat().st_size for part in folder.glob(".*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not target.exists()
    unpacked = folder / f".{FOLDER}.tmp" / FOLDER  # as from a kill while unpacking
    unpacked.mkdir(parents=True)
    (unpacked / "data_batch_0").write_text("half")
    fetch("cifar10", folder)
    assert names(folder) == [FOLDER, ARCHIVE]
    assert names(folder / FOLDER) == sorted(batches)
    assert len(load("cifar10", folder).train[1]) == 10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_full_disk_ends_the_download(
    tmp_path: Path,
    server: Server,
    use_mirrors: UseMirrors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_mirrors("whole", "silent")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "full")
    (tmp_path / ".full.tmp").symlink_to("/dev/full")
    text = refusal(tmp_path)
    assert "/whole: cannot be saved, No space left on device)" in text
    assert server.asked == ["whole"]
    assert names(tmp_path) == []


def test_a_full_disk_ends_the_unpacking(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(tar: tarfile.TarFile, path: Path, filter: str) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", extract)
        assert "No space left on device" in refusal(tmp_path)
    assert names(tmp_path) == [ARCHIVE]
    fetch("cifar10", tmp_path)
    assert server.asked == ["whole"]


def test_an_archive_of_the_user_is_unpacked(tmp_path: Path, server: Server) -> None:
    (tmp_path / ARCHIVE).write_bytes(server.content)
    fetch("cifar10", tmp_path)
    assert server.asked == []
    assert len(load("cifar10", tmp_path).train[1]) == 10


def test_another_archive_is_replaced_only_by_the_right_one(
    tmp_path: Path, server: Server, use_mirrors: UseMirrors
) -> None:
    (tmp_path / ARCHIVE).write_text("mine")
    use_mirrors("wrong")
    refusal(tmp_path)
    assert (tmp_path / ARCHIVE).read_text() == "mine"
    use_mirrors("whole")
    fetch("cifar10", tmp_path)
    assert (tmp_path / ARCHIVE).read_bytes() == server.content


def test_a_damaged_folder_is_kept_beside_the_right_one(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        (tmp_path / FOLDER / "data_batch_1").write_text(f"mine {number}")
        fetch("cifar10", tmp_path)
        assert len(load("cifar10", tmp_path).train[1]) == 10
        aside = tmp_path / f"{FOLDER}.old{number}"
        assert (aside / "data_batch_1").read_text() == f"mine {number}"
    assert server.asked == ["whole"]
    assert f"kept as {FOLDER}.old2" in caplog.text


class Explosive:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_no_file_is_unpickled_before_its_checksum_is_right(
    tmp_path: Path, server: Server
) -> None:
    fetch("cifar10", tmp_path)
    (tmp_path / FOLDER / "data_batch_1").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(InputError, match=f"{FOLDER}/ is missing or damaged"):
        load("cifar10", tmp_path)
    fetch("cifar10", tmp_path)
    assert not Path("exploded").exists()


def test_a_hostile_archive_writes_nothing_elsewhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = make_archive({f"{FOLDER}/batches.meta": b"", "../escaped": b"!"})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(hostile))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ARCHIVE).write_bytes(hostile)
    assert f"{ARCHIVE}: cannot be unpacked, " in refusal(tmp_path / "data")
    assert names(tmp_path / "data") == [ARCHIVE]
    assert names(tmp_path) == ["data"]


def test_a_damaged_archive_with_the_right_checksum(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = server.content[: len(server.content) // 2]
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(half))
    (tmp_path / ARCHIVE).write_bytes(half)
    assert f"{ARCHIVE}: cannot be unpacked, " in refusal(tmp_path)


def test_progress_is_shown_on_a_terminal(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch("cifar10", tmp_path)
    assert "127.0.0.1:   0%" in terminal.getvalue()


def test_a_home_is_expanded() -> None:
    assert CIFAR10DataModule(data_dir="~/images").data_dir == Path.home() / "images"


def test_a_mirror_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """170 MB take minutes at a pace that is all right."""
    clock = iter(range(0, 10**6, 10))  # ten seconds a chunk
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    size = 10 * download.SLOWEST + 1
    content = io.BytesIO(bytes(20 * size))
    response: Any = SimpleNamespace(
        length=20 * size, read1=lambda _: content.read(size)
    )
    assert sum(map(len, download._body(response, "host"))) == 20 * size
