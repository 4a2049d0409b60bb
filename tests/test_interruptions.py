"""Runs that are killed or stopped, and go on, end like runs that nobody touched."""

import os
import random
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from common.signals import SIGNALS
from datamodule import CIFAR10DataModule
from run_files import assert_same
from training import run_folder
from training.guard import Guard

Start = Callable[..., Any]  # starts a training in a process of its own
Unbroken = Callable[..., tuple[dict[str, Any], float]]

FLAGS = {
    "accelerator": "cpu",
    "devices": "1",
    "precision": "32-true",
    "batch_size": "16",  # six steps an epoch
    "max_epochs": "4",
    "base_width": "4",
    "lr": "0.01",
    "lr_steps": "40",
    "name": "run",
    "ckpt_every_n_steps": "4",
    "report": "false",
}
KINDS = [("32-true", "auto"), ("bf16-mixed", "0.01")]  # precision and learning rate
CHECKPOINTS = Path("runs/run/checkpoints")

PLACES: dict[str, tuple[Any, str]] = {
    "write": (os, "fsync"),
    "replace": (os, "replace"),
    "step": (torch.optim.Adam, "step"),
    "epoch's end": (ModelCheckpoint, "_save_checkpoint"),
    "epoch saved": (Guard, "on_train_epoch_end"),
    "validation": (Callback, "on_validation_start"),
    "test": (Callback, "on_test_epoch_start"),
    "summary": (run_folder.RunFolder, "write_metrics"),
    "images": (CIFAR10DataModule, "load_images"),
}


def interrupt(place: str, count: int, signum: int, times: int) -> None:
    """Send this process a signal when it makes a certain call, or limit its files."""
    if place == "no room":
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
        return
    owner, name = PLACES[place]
    original = getattr(owner, name)
    calls = 0

    def counting(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        for _ in range(times if calls == count else 0):
            os.kill(os.getpid(), signum)
        return original(*arguments, **keywords)

    setattr(owner, name, counting)


def run_command(argv: list[str], *where: Any) -> None:
    """What `python train.py` does, perhaps with a signal somewhere."""
    tempfile.tempdir = os.getcwd()  # to see what stays there
    if where:
        interrupt(*where)
    sys.argv = argv
    train.main()


@pytest.fixture(scope="session")
def start(fork: Start, image_folder: Path) -> Start:
    def start(folder: Path, *where: Any, **flags: str) -> Any:
        every = FLAGS | {"data_dir": str(image_folder)} | flags
        argv = ["train.py"]
        for flag, value in every.items():
            argv += [f"--{flag}", value]
        return fork(folder, run_command, argv, *where)

    return start


def end(process: Any, code: int = 0) -> None:
    process.join(timeout=300)
    assert process.exitcode == code


def everything(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, schedule and metrics of a run that has come to its end."""
    run = folder / "runs/run"
    assert not list(run.rglob("*.tmp"))
    assert not (folder / CHECKPOINTS / "step.ckpt").exists()
    assert (run / "metrics.json").exists()
    saved = torch.load(folder / CHECKPOINTS / "last.ckpt", weights_only=True)
    events = EventAccumulator(str(run)).Reload()
    return {
        "weights": saved["state_dict"],
        "optimizer": saved["optimizer_states"][0]["state"],
        "schedule": saved["lr_schedulers"],
        "metrics.csv": (run / "metrics.csv").read_text(),
        "lr curve": [(event.step, event.value) for event in events.Scalars("lr")],
    }


@pytest.fixture(scope="session")
def unbroken(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """What a run leaves that nobody touched, and its time in seconds."""
    known: dict[str, tuple[dict[str, Any], float]] = {}

    def unbroken(**flags: str) -> tuple[dict[str, Any], float]:
        key = "-".join(["unbroken", *flags.values()])
        if key not in known:
            folder = tmp_path_factory.mktemp(key)
            started = time.perf_counter()
            end(start(folder, **flags))
            known[key] = everything(folder), time.perf_counter() - started
        return known[key]

    return unbroken


@pytest.mark.parametrize(
    ("place", "count", "is_saved"),
    [
        ("step", 1, False),
        ("write", 12, True),
        ("replace", 4, True),
        ("epoch's end", 4, True),
        # The first checkpoint; the configuration took two.
        pytest.param("write", 3, False, marks=pytest.mark.slow),
        pytest.param("step", 9, True, marks=pytest.mark.slow),
        pytest.param("epoch's end", 2, True, marks=pytest.mark.slow),
        pytest.param("epoch saved", 2, True, marks=pytest.mark.slow),
        pytest.param("summary", 1, True, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_bad_moment(
    place: str,
    count: int,
    is_saved: bool,
    start: Start,
    unbroken: Unbroken,
    tmp_path: Path,
) -> None:
    expected, _ = unbroken()
    end(start(tmp_path, place, count, signal.SIGKILL, 1), -signal.SIGKILL)
    assert any((tmp_path / CHECKPOINTS).glob("*.ckpt")) == is_saved
    end(start(tmp_path, ckpt_path="last"))
    assert_same(everything(tmp_path), expected)
    assert ("starting afresh" in (tmp_path / "log").read_text()) == (not is_saved)


@pytest.mark.slow
def test_killed_in_the_range_test_starts_afresh(
    start: Start, unbroken: Unbroken, tmp_path: Path
) -> None:
    expected, _ = unbroken(precision="32-true", lr="auto")
    end(start(tmp_path, "step", 5, signal.SIGKILL, 1, lr="auto"), -signal.SIGKILL)
    end(start(tmp_path, lr="auto", ckpt_path="last"))
    assert_same(everything(tmp_path), expected)
    assert "starting afresh" in (tmp_path / "log").read_text()


def kill_at_random(
    seed: int, start: Start, unbroken: Unbroken, folder: Path, **flags: str
) -> None:
    """Kill a run up to three times before it may end; compare what it leaves."""
    flags |= {"report": "true"}  # which may be killed, too
    expected, seconds = unbroken(**flags)
    rng = random.Random(seed)
    for _ in range(1 + seed % 3):
        process = start(folder, **flags, ckpt_path="last")
        process.join(timeout=rng.uniform(0, seconds))
        process.kill()
        process.join()
    end(start(folder, **flags, ckpt_path="last"))
    assert_same(everything(folder), expected)


@pytest.mark.slow
def test_killed_at_any_moment(start: Start, unbroken: Unbroken, tmp_path: Path) -> None:
    kill_at_random(2, start, unbroken, tmp_path)


@pytest.mark.weekly
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize(("precision", "lr"), KINDS)
def test_killed_at_any_moment_often(
    seed: int,
    precision: str,
    lr: str,
    start: Start,
    unbroken: Unbroken,
    tmp_path: Path,
) -> None:
    kill_at_random(seed, start, unbroken, tmp_path, precision=precision, lr=lr)


def stop(
    start: Start,
    folder: Path,
    place: str,
    count: int,
    signum: int,
    times: int = 1,
    **flags: str,
) -> list[str]:
    """Stop a run by a signal; the lines that it said."""
    end(start(folder, place, count, signum, times, **flags), 128 + signum)
    assert {path.name for path in folder.iterdir()} <= {"log", "runs", "home"}
    assert not list(folder.rglob("*.tmp"))
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    return log.splitlines()


@pytest.mark.parametrize(
    ("place", "count", "saved", "signum"),
    [
        *(("step", 9, "step", signum) for signum in SIGNALS),
        pytest.param("step", 12, "last", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("validation", 3, "last", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(
    place: str,
    count: int,
    saved: str,
    signum: int,
    fork: Start,
    start: Start,
    unbroken: Unbroken,
    tmp_path: Path,
) -> None:
    expected, _ = unbroken()
    said = stop(start, tmp_path, place, count, signum)[-1]
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    path = CHECKPOINTS / f"{saved}.ckpt"
    head = f"train.py: stopped by {name}; {path} is saved; resume with: "
    assert said.startswith(head)
    python, *argv = shlex.split(said.removeprefix(head))
    assert python == "python"
    end(fork(tmp_path, run_command, argv))
    assert_same(everything(tmp_path), expected)


def test_a_signal_in_the_range_test_ends_at_once(start: Start, tmp_path: Path) -> None:
    said = stop(start, tmp_path, "step", 5, signal.SIGTERM, lr="auto")
    assert said[-1] == "train.py: stopped by SIGTERM; nothing is saved yet"
    assert not (tmp_path / "runs").exists()


def test_a_signal_in_the_test_does_not_lose_the_training(
    start: Start, unbroken: Unbroken, tmp_path: Path
) -> None:
    expected, _ = unbroken()
    said = stop(start, tmp_path, "test", 1, signal.SIGTERM)
    assert "last.ckpt is saved; resume with: python train.py" in said[-1]
    end(start(tmp_path, ckpt_path="last"))
    assert_same(everything(tmp_path), expected)


def test_a_signal_before_or_after_the_training_names_what_is_saved(
    start: Start, tmp_path: Path
) -> None:
    said = stop(start, tmp_path, "summary", 1, signal.SIGTERM)
    assert "last.ckpt is saved; resume with: python train.py" in said[-1]
    said = stop(start, tmp_path, "images", 1, signal.SIGTERM, ckpt_path="last")
    assert "last.ckpt is saved; resume with: python train.py" in said[-1]
    # Of a run that has not begun, the checkpoints there are another's.
    said = stop(start, tmp_path, "images", 1, signal.SIGTERM, overwrite="true")
    assert said[-1] == "train.py: stopped by SIGTERM; nothing is saved yet"
    assert (tmp_path / CHECKPOINTS / "last.ckpt").exists()


def test_a_file_that_cannot_grow_ends_the_run_with_one_line(
    start: Start, tmp_path: Path
) -> None:
    end(start(tmp_path, "no room", 30_000, 0, 0), 2)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "train.py: error: a file cannot be read or written" in said.splitlines()[-1]
    assert "File too large" in said.splitlines()[-1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_gives_the_signals_back(quick_train: Callable[..., Any]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    quick_train(max_epochs=1)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def run_in_background(argv: list[str], place: str) -> None:
    """As under `nohup` from a shell that has gone on; all signals come."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
        interrupt(place, 1, signum, 1)
    run_command(argv)


@pytest.mark.parametrize(
    ("place", "lr"),
    [("step", "0.01"), ("step", "auto"), ("test", "0.01")],  # auto: in the range test
)
def test_signals_that_were_ignored_stay_ignored(
    place: str, lr: str, fork: Start, image_folder: Path, tmp_path: Path
) -> None:
    argv = ["train.py", "--data_dir", str(image_folder), "--report", "false"]
    for flag, value in (FLAGS | {"max_epochs": "1", "lr": lr}).items():
        argv += [f"--{flag}", value]
    end(fork(tmp_path, run_in_background, argv, place))
    assert (tmp_path / "runs/run/metrics.json").exists()
    assert "stopping" not in (tmp_path / "log").read_text()


def test_a_second_ctrl_c_ends_at_once(start: Start, tmp_path: Path) -> None:
    said = stop(start, tmp_path, "step", 11, signal.SIGINT, 2)
    assert re.search("stopped by Ctrl-C; .*step.ckpt is saved; resume with", said[-1])
    saved = torch.load(tmp_path / CHECKPOINTS / "step.ckpt", weights_only=True)
    assert saved["global_step"] == 8  # not 11, which had begun


def test_a_training_in_another_thread(
    quick_train: Callable[..., Any],
) -> None:
    """As a page or a notebook starts one; signals are the main thread's."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(quick_train(max_epochs=1, lr="auto", lr_steps=40)["epochs"])
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]
