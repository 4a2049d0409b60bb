"""Fixtures of all tests: small images, small runs, no network."""

import gc
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from common.signals import SIGNALS
from datamodule import CIFAR10DataModule
from images import download
from train import train

CLASSES = ("blue", "green", "red")
Metrics = dict[str, Any]

# Under `nohup`, or in the background of a shell, some are ignored, and would be by all
# that is started here.
for signum in SIGNALS:
    is_ctrl_c = signum == signal.SIGINT
    signal.signal(signum, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, which share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.argv[0] = pytest.__file__  # or it would seem to be an interactive Python


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`: two a core, as many tests wait for other processes."""
    return min(2 * (os.cpu_count() or 1), 16)


def pytest_collection_finish() -> None:
    """Let no collection of garbage walk through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with nothing to download from."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    for variable in [*os.environ]:  # a hook's, or a developer's own
        if variable.startswith("GIT_") or variable in ("TRACEBACK", "COLUMNS"):
            monkeypatch.delenv(variable)
    monkeypatch.setattr(download, "MIRRORS", ())
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let no test depend on luck, or on which tests came before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: noise around three colours, 40 and 10 images of each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for channel, name in enumerate(reversed(CLASSES)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 60
                path = folder / split / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def quick_train(image_folder: Path) -> Callable[..., Metrics]:
    """`train` on the image folder with a narrow network, a few steps long."""

    def run(**flags: Any) -> Metrics:
        quick: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "data_dir": str(image_folder),
            "batch_size": 32,
            "max_epochs": 2,
            "base_width": 4,
            "lr": 0.01,
            "name": "run",
            "report": False,
        }
        return train(**quick | flags)

    return run


@pytest.fixture(scope="session")
def fork() -> Callable[..., BaseProcess]:
    """Starts a function in a folder, in a process that has torch's imports behind it.

    What it prints goes to the file `log` in that folder.
    """
    if sys.platform == "win32":
        pytest.skip("needs fork and POSIX signals")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train"])
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 looks for it nowhere else: https://github.com/python/cpython/issues/117378
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()

    def start(
        folder: Path, function: Callable[..., None], *arguments: Any
    ) -> BaseProcess:
        process = context.Process(target=_work, args=(folder, function, *arguments))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser; skips where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium")
    return path


def _work(folder: Path, function: Callable[..., None], *arguments: Any) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    with Path("log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    function(*arguments)


@pytest.fixture(scope="session")
def real_cifar10() -> CIFAR10DataModule:
    """The real CIFAR-10 from data/cifar10 or data; skips where there is none."""
    root = Path(__file__).parent / "data"
    for folder in (root / "cifar10", root):
        data = CIFAR10DataModule(data_dir=str(folder))
        if (folder / "train").is_dir() or (folder / "cifar-10-batches-py").is_dir():
            data.setup()
            return data
    pytest.skip("needs the real CIFAR-10 in data/cifar10 or data")
