"""What a user types first, on what a user has: the published CIFAR-10, own folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.inference import predict_logits, read_images
from analysis.loading import load_model
from archive_server import Server
from conftest import CLASSES
from published import CLASSES as CIFAR10_CLASSES
from published import checksums, make_archive, make_files
from run_files import LAST

PROJECT = Path(__file__).resolve().parent.parent
SHORT = ["--accelerator", "cpu", "--base_width", "4"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[Server]:
    """Serves a small CIFAR-10, whose checksums are in the file `checksums.json`."""
    files = make_files(60)
    archive = make_archive(files)
    Path("checksums.json").write_text(json.dumps(checksums(files, archive)))
    server = Server(archive)
    yield server
    server.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a program of the project as a user would, from the working folder."""

    def start(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        checks = tmp_path / "checksums.json"
        wrapper = [str(PROJECT / "tests" / "published.py"), str(checks)]
        return subprocess.run(
            [
                *(sys.executable, *(wrapper if checks.exists() else ())),
                *(str(PROJECT / program), *arguments),
            ],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=os.environ | {"no_proxy": "*", "OMP_NUM_THREADS": "1"},
        )

    return start


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    return line


def test_the_published_cifar10_from_download_to_prediction(
    run: Run, server: Server
) -> None:
    quick = ("--batch_size", "64", "--max_epochs", "2", "--lr_steps", "40")
    url = ("--download_url", server.url("whole"))
    done = run("train.py", *SHORT, *quick, *url, "--name", "first")
    assert "270 training, 30 validation, 60 test, 10 " in succeeded(done)
    assert server.asked == ["whole"]
    metrics = json.loads(Path("runs/first/metrics.json").read_text())
    assert metrics["epochs"] == 2
    assert Path("runs/first/lr_finder.png").stat().st_size > 10_000
    page = Path("runs/first/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in CIFAR10_CLASSES)

    ckpt = ("--ckpt_path", "runs/first/checkpoints/last.ckpt")
    precise = ("--precision", metrics["precision"], "--accelerator", "cpu")
    found = json.loads(succeeded(run("evaluate.py", *ckpt, *precise, "--json")))
    assert found["test/acc"] == metrics["test/acc"]
    assert {one["images"] for one in found["classes"].values()} == {6}

    Path("runs/first/report.html").unlink()
    succeeded(run("report.py", "runs/first"))
    assert Path("runs/first/report.html").read_text(encoding="utf-8") == page

    Image.new("RGB", (50, 40), "navy").save("photo.png")
    [said] = json.loads(succeeded(run("predict.py", *ckpt, "photo.png", "--json")))
    assert {guess["label"] for guess in said["predictions"]} <= {*CIFAR10_CLASSES}
    assert server.asked == ["whole"]  # once, whatever came after
    assert sorted(path.name for path in Path("data").glob("[!.]*")) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]


def test_fast_dev_run_on_the_published_batches(run: Run, server: Server) -> None:
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name, content in make_files(60).items():
        (folder / name).write_bytes(content)
    flags = ("--batch_size", "32", "--fast_dev_run")
    assert "60 test, 10 classes" in succeeded(run("train.py", *SHORT, *flags))
    assert server.asked == []


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """An image folder of one's own, to change."""
    shutil.copytree(image_folder, tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.slow
def test_a_run_repeats_from_another_folder(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation set of one's own, an odd name, a file that is no image."""
    shutil.copytree(folder / "train", folder / "val")
    (folder / "train/red/0.png").rename(folder / "train/red/0.jfif")
    (folder / "train/red/1.png").rename(folder / "train/red/1")
    (folder / "train/red/notes.txt").write_text("no image")
    flags = ("--batch_size", "32", "--max_epochs", "1", "--lr", "0.01")
    done = run("train.py", *SHORT, *flags, "--data_dir", "own", "--name", "a")
    assert "own: 120 training, 120 validation, 30 test, 3 classes" in succeeded(done)
    assert (
        f"{folder / 'train'}: files that are not images were skipped: 1, such as "
        f"{Path('red', 'notes.txt')}" in done.stderr
    )
    first = Path("runs/a").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("train.py", "--config", str(first / "config.yaml"), "--name", "b")
    succeeded(done)
    for name in ("metrics.csv", "config.yaml"):
        assert Path("runs/b", name).read_text() == (first / name).read_text()


def split_names(folder: Path) -> str:
    for split in ("train", "test"):
        (folder / split).rename(folder / split.capitalize())
    return "holds Test, Train, neither .*; rename Train/ to train/, rename Test/ .*/"


def no_split(folder: Path) -> str:
    for name in CLASSES:
        (folder / "train" / name).rename(folder / name)
    for split in ("train", "test"):
        shutil.rmtree(folder / split)
    return "it holds blue, green, red, .*; put the class folders into train/ and test/$"


def wrapper(folder: Path) -> str:
    shutil.move(folder, folder.with_name("wrapped"))
    folder.mkdir()
    shutil.move(folder.with_name("wrapped"), folder / "images")
    return f"; give --data_dir {re.escape(str(folder / 'images'))}$"


def mistyped(folder: Path) -> str:
    folder.rename(folder.with_name("owm"))
    return f"no such folder; did you mean {re.escape(str(folder.with_name('owm')))}[?]$"


def something_else(folder: Path) -> str:
    shutil.rmtree(folder)
    (folder / "MNIST").mkdir(parents=True)
    return "it holds MNIST, neither .*; --data cifar10 downloads CIFAR-10, "


def no_test(folder: Path) -> str:
    (folder / "test").rename(folder / "tests")
    return "test: no such folder; .*; rename tests/ to test/"


@pytest.mark.parametrize(
    "damage", [split_names, no_split, wrapper, mistyped, something_else, no_test]
)
def test_a_folder_of_another_form_is_refused(
    damage: Callable[[Path], str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one line that says what to do, and nothing is written or downloaded."""
    import train

    reason = damage(folder)
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(sys, "argv", ["train.py", "--data_dir", "own"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(reason, line), line
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_any_test_set_with_the_classes_of_the_network(
    run: Run, folder: Path, quick_train: Callable[..., dict[str, Any]]
) -> None:
    """The same images as JPEG, some of them by themselves, and other classes."""
    quick_train(max_epochs=3)
    flags = ["--ckpt_path", str(LAST), "--accelerator", "cpu"]
    shutil.rmtree(folder / "train")
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    paths = sorted(folder.rglob("*.jpg"))
    views, _ = read_images([str(path) for path in paths])
    said = predict_logits(load_model(LAST), views[:, 0]).argmax(dim=1).tolist()
    right = sum(
        CLASSES[k] == path.parent.name for k, path in zip(said, paths, strict=True)
    )
    as_jpeg = run("evaluate.py", *flags, "--data_dir", "own", "--json")
    found = json.loads(succeeded(as_jpeg))
    assert (found["images"], found["test/acc"]) == (30, pytest.approx(right / 30))
    shutil.rmtree(folder / "test/red")
    done = run("evaluate.py", *flags, "--split_dir", "own/test", "--json")
    found = json.loads(succeeded(done))
    assert found["images"] == 20
    assert found["classes"]["red"] == {"acc": None, "images": 0}
    (folder / "test/green").rename(folder / "test/grün")
    text = refusal(run("evaluate.py", *flags, "--split_dir", "own/test"))
    assert "the network knows no class 'grün', only blue, green, red; " in text


def test_numbers_of_numpy_and_paths(
    quick_train: Callable[..., dict[str, Any]], image_folder: Path
) -> None:
    home = Path.home()
    home.mkdir()
    (home / "images").symlink_to(image_folder)
    plain = quick_train(seed=3, name="plain")
    metrics = quick_train(
        lr=np.float64(0.01),
        seed=np.int64(3),
        batch_size=np.int32(32),
        data_dir=Path("~/images"),
        output_dir=Path("~/runs"),
    )
    assert metrics["train/loss"] == plain["train/loss"]
    assert type(metrics["max_lr"]) is float
    assert not Path("~").exists()
    config = (home / "runs/run/config.yaml").read_text()
    assert f"data_dir: {home / 'images'}\n" in config
    assert "seed: 3\n" in config
    ckpt = Path("~/runs/run/checkpoints/last.ckpt")
    quick_train(ckpt_path=ckpt, output_dir="~/runs", seed=3, data_dir=home / "images")
