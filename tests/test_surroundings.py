"""Whatever surrounds a program: streams, encodings, settings and limits of a user."""

import errno
import io
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch._inductor import config as inductor

import predict
import report
import train
from common import cli, streams
from common.errors import DivergedError, InputError
from common.files import replacing
from common.text import one_line
from config import Config
from images.class_folders import list_classes
from images.image_folder import read_image

PROJECT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="is about POSIX")
# A user without a name, and a network drive that syncs files only.
HOSTILE = """
import errno, os, pwd, stat

def nameless(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

def picky(descriptor, fsync=os.fsync):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    fsync(descriptor)

pwd.getpwuid, os.fsync = nameless, picky
"""
# No characters, where a system lets a name be bytes.
IMAGES = os.fsdecode(b"im\xe4ges") if sys.platform == "linux" else "images"
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # what getpass looks at
FLAGS = ["--accelerator", "cpu", "--devices", "1", "--base_width", "4"]
FLAGS += ["--precision", "32-true", "--batch_size", "32", "--max_epochs", "1"]


@pytest.fixture(scope="module")
def home(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home with images whose class names are not ASCII, and a matplotlibrc."""
    folder = tmp_path_factory.mktemp("home")
    for split in ("train", "test"):
        for name, source in (("grün", "green"), ("blå", "blue")):
            shutil.copytree(
                image_folder / split / source, folder / IMAGES / split / name
            )
    (folder / "matplotlibrc").write_text("text.usetex: True\nsavefig.format: nosuch\n")
    (folder / "sitecustomize.py").write_text(HOSTILE)
    return folder


def surroundings(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user without a name, with settings of their own."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    kept |= {"HOME": str(home), "PYTHONPATH": str(home), "MPLBACKEND": "nosuch"}
    kept |= {"RANK": "1", "LOCAL_RANK": "1"}  # of another program's processes
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"} | variables


@pytest.fixture(scope="module")
def checkpoint(home: Path) -> Path:
    """That of a training in hostile surroundings whose output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    flags = ["--data_dir", str(home / IMAGES), "--output_dir", str(home / "runs")]
    flags += [*FLAGS, "--name", "run", "--lr_steps", "40"]
    with os.fdopen(write) as closed:
        done = subprocess.run(
            [sys.executable, str(PROJECT / "train.py"), *flags],
            cwd=home,
            env=surroundings(home),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return home / "runs" / "run" / "checkpoints" / "last.ckpt"


@POSIX
def test_a_training_in_hostile_surroundings_comes_to_its_end(checkpoint: Path) -> None:
    """No reader, no user name, no sync of folders, LaTeX asked for, a wrong backend.

    Also images in a folder whose name is not UTF-8, and a left-over rank.
    """
    run = checkpoint.parent.parent
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 1
    for name in ("curves.png", "lr_finder.png"):
        with Image.open(run / name) as picture:
            assert picture.size[0] >= 900
    assert "grün" in (run / "report.html").read_text(encoding="utf-8")


@POSIX
def test_what_the_terminal_cannot_show_is_escaped(checkpoint: Path, home: Path) -> None:
    """With `~` in paths, and a configuration in UTF-8 where the locale is ASCII."""
    shutil.copy(home / IMAGES / "test/grün/0.png", home / "photo.png")
    content = "# für alle\nckpt_path: ~/runs/run/checkpoints/last.ckpt\ntop: 2\n"
    (home / "mine.yaml").write_text(content, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(PROJECT / "predict.py")]
    done = subprocess.run(
        [*command, "~/photo.png", "--config=~/mine.yaml"],
        env=surroundings(home, **ascii_only),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"gr\\xfcn" in done.stdout
    assert b"bl\\xe5" in done.stdout
    assert done.stdout.startswith(os.fsencode(home / "photo.png"))


@POSIX
def test_a_message_never_lands_in_the_output(checkpoint: Path, home: Path) -> None:
    """Standard error is closed: what is meant for it is lost, not among the JSON."""
    words = [sys.executable, PROJECT / "predict.py", "none.png", "--json"]
    words += ["--ckpt_path", checkpoint]
    command = f"exec {shlex.join(map(str, words))} 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], env=surroundings(home), capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr == b""
    [result] = json.loads(done.stdout)
    assert "not a readable image (No such file" in result["error"]


@pytest.mark.parametrize(
    "sign", ["\n", "\r", "\x1b", "\x85", "\u2028", "\u2029", "\udce9"]
)
def test_what_would_end_or_upset_a_line_is_escaped(sign: str) -> None:
    text = one_line(f"a{sign}b")
    assert text.splitlines() == [text]
    assert text.encode().isascii()
    assert sign not in text


def outlet(lasting: bool) -> io.BufferedWriter:
    """A stream into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return io.BufferedWriter(streams.Outlet(write, lasting=lasting))


@POSIX
def test_a_program_ends_in_silence_when_nobody_reads() -> None:
    stream = outlet(lasting=False)
    stream.write(b"first")
    with pytest.raises(SystemExit) as end:
        stream.flush()
    assert end.value.code == 141
    stream.flush()  # as Python does at its end


@POSIX
def test_a_training_goes_on_when_nobody_reads() -> None:
    stream = outlet(lasting=True)
    for _ in range(2):
        stream.write(b"more")
        stream.flush()


@POSIX
def test_a_lost_error_stream_ends_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with os.fdopen(write, "w") as stream:
        for name in ("stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, stream)
        streams.set_up(lasting=False)
        print("a message that nobody reads", file=sys.stderr, flush=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="is about Linux")
def test_a_full_disk_under_the_output_is_told_once() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stream = io.BufferedWriter(streams.Outlet(full, lasting=False))
    stream.write(b"first")
    with pytest.raises(OSError, match="No space left"):
        stream.flush()
    stream.flush()
    os.close(full)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_disk_is_an_error(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)), replacing(Path("a")):
        pass
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES]
)
def test_a_drive_that_knows_no_sync_is_written_to(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with replacing(Path("a"), "w") as file:
        file.write("new")
    assert Path("a").read_text() == "new"


def work(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A command that ends with an error."""

    def raise_it() -> None:
        """Do nothing else."""
        raise error

    monkeypatch.setattr(sys, "argv", ["work.py"])
    cli.run("work.py", raise_it)


MEMORY = {
    "of a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    "of Python": MemoryError(),
    "of C++": RuntimeError("std::bad_alloc"),
    "of cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    "of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "of a driver": torch.AcceleratorError("CUDA error: out of memory\nCompile with"),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY)
def test_not_enough_memory_is_one_line(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        work(monkeypatch, error)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("work.py: error: there is not enough memory (")
    assert said.count("\n") == 1
    words = cli.explain(error, {"batch_size", "base_width"})
    assert words is not None
    assert "; lower --batch_size or --base_width, or close other programs" in words


def limited(argv: list[str]) -> None:
    """Train where a gigabyte more than now is there."""
    import resource  # not on Windows

    now = int(Path("/proc/self/statm").read_text().split()[0])
    limit = now * resource.getpagesize() + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = argv
    train.main()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that is kept")
def test_a_training_that_needs_too_much_memory(
    fork: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ["--data", "synthetic", "--accelerator", "cpu", "--devices", "1"]
    flags += ["--batch_size", "4096", "--lr", "0.01", "--precision", "32-true"]
    process = fork(tmp_path, limited, ["train.py", *flags])
    process.join(timeout=120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("train.py: error: there is not enough memory (")
    assert "lower --batch_size or --base_width" in last


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError("no number"),
        io.UnsupportedOperation("not readable"),
    ],
)
def test_an_error_of_the_program_is_a_traceback(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(type(error)) as found:
        work(monkeypatch, error)
    assert found.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "number",
    [
        *(errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EMFILE),
    ],
)
def test_an_error_of_a_disk_or_drive_is_none(number: int) -> None:
    words = cli.explain(OSError(number, os.strerror(number), "runs/a"), ())
    assert words is not None
    assert f"{os.strerror(number)}: 'runs/a'" in words


def test_a_disk_that_is_full_is_none() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    words = cli.explain(error, {"ckpt_every_n_steps"})
    assert words is not None
    assert "No space left on device: 'runs/a'" in words
    assert "with --ckpt_path last; TRACEBACK=1 shows where" in words


@pytest.mark.parametrize("kind", [InputError, DivergedError])
@pytest.mark.parametrize("asked", ["1", "0", ""])
def test_the_traceback_behind_a_line(
    asked: str,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRACEBACK", asked)
    try:
        try:
            raise KeyError("the cause")
        except KeyError:
            raise kind("a line") from None
    except kind as error:
        with pytest.raises(SystemExit):
            work(monkeypatch, error)
    said = capsys.readouterr().err
    assert ("KeyError: 'the cause'" in said) == (asked == "1")
    assert ("Traceback" in said) == (asked == "1")
    assert said.endswith("a line\n")


def test_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nosuch"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    flags = ["--data", "synthetic", *FLAGS, "--compile"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: error: --compile: torch.compile does not work")
    assert said.count("\n") == 1
    assert "/nosuch" in said
    assert not Path("runs").exists()


def test_no_docstrings_as_under_oo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.predict, "__doc__", None)
    monkeypatch.setattr(train.train, "__doc__", None)
    assert cli.parse(predict.predict, ["a.png", "b.png"])["images"] == [
        "a.png",
        "b.png",
    ]
    assert cli.parse(Config, ["--seed", "3"])["seed"] == 3


def test_a_report_of_a_run_whose_images_have_moved(
    quick_train: Callable[..., Any],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("jinja2")
    shutil.copytree(image_folder, "images")
    quick_train(data_dir="images", max_epochs=1, report=False)
    run = Path("runs/run").resolve()
    Path("images").rename("moved")
    Path("home").mkdir()
    Path("moved").rename("home/moved")  # the tests' home
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(InputError, match="--data_dir"):
        report.report([str(run)], "cpu")
    page = report.report([str(run)], "cpu", data_dir="~/moved")
    assert page == run / "report.html"


def test_names_that_look_alike_are_the_same_class(image_folder: Path) -> None:
    composed = unicodedata.normalize("NFC", "grün")
    apart = unicodedata.normalize("NFD", "grün")
    for split, green in (("train", composed), ("test", apart)):
        for name, source in ((green, "green"), ("rot", "red")):
            shutil.copytree(image_folder / split / source, Path(split) / name)
    train_split, test_split = list_classes(Path("train")), list_classes(Path("test"))
    assert train_split.classes == test_split.classes == [composed, "rot"]
    assert len(test_split.paths) == 20
    twin = Path("test") / composed
    if not twin.exists():  # where the file system tells them apart
        shutil.copytree(image_folder / "test" / "green", twin)
        with pytest.raises(InputError, match="two folders are named 'grün'"):
            list_classes(Path("test"))


def tiff(values: np.ndarray, order: Literal["<", ">"]) -> bytes:
    """An uncompressed grey TIFF file of a byte order, ">" or "<"."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    sides, bits = values.shape, 8 * values.itemsize
    sample = {"u": 1, "i": 2}[values.dtype.kind]
    short, long = 3, 4
    tags = [(256, long, sides[1]), (257, long, sides[0]), (258, short, bits)]
    tags += [(259, short, 1), (262, short, 1), (273, long, 8), (277, short, 1)]
    tags += [(278, long, sides[0]), (279, long, len(data)), (339, short, sample)]
    content = (b"MM" if order == ">" else b"II") + struct.pack(order + "H", 42)
    content += struct.pack(order + "I", 8 + len(data)) + data
    content += struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        content += struct.pack(order + "HHI", tag, kind, 1)
        form = "HH" if kind == short else "I"
        content += struct.pack(order + form, *([value, 0] if form == "HH" else [value]))
    return content + struct.pack(order + "I", 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_either_byte_order(order: Literal["<", ">"]) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Path("deep.tif").write_bytes(tiff(ramp, order))
    pixels, as_is = read_image("deep.tif")
    assert not as_is
    assert np.array_equal(pixels[..., 0], ramp // 257)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(("kind", "low"), [(np.int32, 0), (np.int16, -32768)])
def test_pixels_without_an_agreed_white_are_refused(kind: Any, low: int) -> None:
    high = np.iinfo(kind).max
    ramp = np.linspace(low, high, 32 * 32).reshape(32, 32).astype(kind)
    Path("odd.tif").write_bytes(tiff(ramp, "<"))
    said = rf"odd.tif: not a readable image \(pixels from {low} to {high} have no agr"
    with pytest.raises(InputError, match=said):
        read_image("odd.tif")


FULL_DISK = """
import os, resource, sys
if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:  # the first process, which writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    import train
    train.main()
"""


@pytest.mark.slow
@POSIX
def test_a_full_disk_ends_all_processes(image_folder: Path) -> None:
    Path("full.py").write_text(FULL_DISK)
    flags = [*FLAGS, "--devices", "2", "--strategy", "ddp", "--lr", "0.01"]
    done = subprocess.run(
        [sys.executable, "full.py", *flags, "--data_dir", str(image_folder)],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,  # waits for all that may write
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]


def test_no_garbage_is_looked_for_at_the_end_of_a_program() -> None:
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()));"
    code += "import common"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert int(done.stdout) > 10_000, done.stderr
