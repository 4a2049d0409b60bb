"""Many runs, one after the other and side by side: nothing grows, nothing is left."""

import gc
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import train

Train = Callable[..., dict[str, Any]]

WARM_UP = 10  # runs before which caches may fill


def usage() -> dict[str, float]:
    """What this process holds; memory in MiB."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss / 2**20,
        "files": len(process.open_files()) + len(process.net_connections()),
        "threads": threading.active_count(),
        "children": len(process.children(recursive=True)),
    }


def run_in_turn(quick_train: Train, times: int) -> None:
    """Train `times` times in this process; memory and open files must stay."""
    for number in range(times):
        if number == WARM_UP:
            before = usage()
        quick_train(max_epochs=1, overwrite=True, report=True)
    after = usage()
    for what in ("files", "threads", "children"):
        assert after[what] <= before[what], what
    assert after["memory"] - before["memory"] < 0.5 * (times - WARM_UP) + 20
    assert [path.name for path in Path("runs").iterdir()] == ["run"]
    assert len(list(Path("runs/run").glob("events.*"))) == 2  # of one run


@pytest.mark.weekly
def test_runs_in_turn(quick_train: Train) -> None:
    run_in_turn(quick_train, 60)


def run_unnamed(argv: list[str]) -> None:
    sys.argv = ["train.py", *argv]
    train.main()


def run_side_by_side(
    fork: Callable[..., Any], image_folder: Path, rounds: int, at_once: int
) -> None:
    """Start runs in the same second, on the same images, for the same folder."""
    argv = ["--accelerator", "cpu", "--devices", "1", "--precision", "32-true"]
    argv += ["--batch_size", "32", "--max_epochs", "1", "--base_width", "4"]
    argv += ["--lr", "0.01", "--data_dir", str(image_folder)]
    for cache in image_folder.glob("*/.decoded.npz"):
        cache.unlink()
    for _ in range(rounds):
        processes = [fork(Path(), run_unnamed, argv) for _ in range(at_once)]
        for process in processes:
            process.join(timeout=300)
            assert process.exitcode == 0
    folders = list(Path("runs").iterdir())
    assert len(folders) == rounds * at_once
    for folder in folders:
        loss = json.loads((folder / "metrics.json").read_text())["test/loss"]
        assert (
            loss == json.loads((folders[0] / "metrics.json").read_text())["test/loss"]
        )
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert not list(Path("runs").rglob("*.tmp"))
    for split in ("train", "test"):
        hidden = [path.name for path in (image_folder / split).glob(".*")]
        assert hidden == [".decoded.npz"]
    children = psutil.Process().children(recursive=True)
    # The fork server and multiprocessing's resource tracker stay for other tests.
    assert len(children) <= 2


@pytest.mark.slow
def test_runs_side_by_side(fork: Callable[..., Any], image_folder: Path) -> None:
    run_side_by_side(fork, image_folder, rounds=1, at_once=4)


@pytest.mark.weekly
def test_runs_side_by_side_often(fork: Callable[..., Any], image_folder: Path) -> None:
    run_side_by_side(fork, image_folder, rounds=3, at_once=8)
