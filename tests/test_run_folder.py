"""One run a folder: what keeps runs apart, and what is taken away when."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from common.errors import InputError
from run_files import BEST, LAST
from training.checkpoint import checkpoint_callbacks
from training.run_folder import RunFolder, newest_run

Train = Callable[..., dict[str, Any]]


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of a folder but the lock, which says nothing of a run."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if path.name != ".lock"}


HOLDER = """
import sys, time
from training.run_folder import RunFolder

with RunFolder("runs", "run", 0) as run:
    run.create()
    run.begin()
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(
    quick_train: Train,
) -> None:
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    before = contents(Path("runs"))
    for flags in ({}, {"overwrite": True}, {"ckpt_path": "last"}):
        with pytest.raises(InputError, match="run: another run is at work in it; give"):
            quick_train(**flags)
    assert contents(Path("runs")) == before
    quick_train(fast_dev_run=True)  # writes nothing, so it may
    holder.kill()
    holder.wait()
    holder.stdout.close()
    quick_train(max_epochs=1)
    quick_train(max_epochs=1, overwrite=True)


@pytest.mark.parametrize(
    "fault",
    [
        {"lr_finder": "torch-lr-finder", "precision": "bf16-true", "lr": "auto"},
        {"batch_size": 1000},
        {"limit_test_batches": 0.01},
    ],
)
def test_overwrite_destroys_nothing_before_all_checks(
    quick_train: Train, fault: dict[str, Any]
) -> None:
    quick_train(max_epochs=1)
    before = contents(Path("runs"))
    with pytest.raises(InputError):
        quick_train(overwrite=True, **fault)
    assert contents(Path("runs")) == before
    with pytest.raises(InputError):
        quick_train(name="new", output_dir="other/runs", **fault)
    assert not Path("other").exists()


def test_a_checkpoint_of_another_run_never_writes_into_a_run(
    quick_train: Train,
) -> None:
    quick_train(max_epochs=1)
    quick_train(max_epochs=1, name="other", seed=1)
    before = contents(Path("runs/other"))
    with pytest.raises(InputError, match=f"--ckpt_path {LAST}; give another --name"):
        quick_train(max_epochs=1, name="other", ckpt_path=str(LAST))
    assert contents(Path("runs/other")) == before


def test_results_without_a_checkpoint_are_not_replaced(quick_train: Train) -> None:
    metrics = quick_train(max_epochs=1)
    Path("runs/run/checkpoints").rename("kept")
    before = contents(Path("runs/run"))
    for flags in ({}, {"ckpt_path": "last"}):
        with pytest.raises(InputError, match=r"runs.run holds the results of a run, "):
            quick_train(lr=0.02, **flags)
    assert contents(Path("runs/run")) == before
    Path("kept").rename("runs/run/checkpoints")
    one, other = (Path("runs/run/checkpoints", f"{name}.ckpt") for name in "ab")
    for name in ("last", "best"):
        (one.parent / f"{name}.ckpt").replace(one)
    one.rename(other)
    again = quick_train(max_epochs=1, ckpt_path=str(other))  # its own, by any name
    assert again["test/loss"] == metrics["test/loss"]


def test_what_a_dead_run_has_left_is_no_part_of_the_next(quick_train: Train) -> None:
    Path("runs/run").mkdir(parents=True)
    for name in ("lr_finder.json", "lr_finder.png", "config.yaml"):
        Path("runs/run", name).write_text("of a run that died before a checkpoint")
    metrics = quick_train(max_epochs=1, ckpt_path="last", lr=0.02)
    assert metrics["max_lr"] == 0.02
    assert not list(Path("runs/run").glob("lr_finder.*"))
    assert "lr: 0.02" in Path("runs/run/config.yaml").read_text()


@pytest.mark.parametrize("name", [None, "run"])
def test_a_link_to_nowhere_is_one_line(quick_train: Train, name: str | None) -> None:
    Path("runs").symlink_to("not-mounted")
    with pytest.raises(InputError, match="--output_dir runs: cannot be written"):
        quick_train(max_epochs=1, name=name, output_dir="runs")


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    """And does not replace it by a worse one."""
    best, _ = checkpoint_callbacks(tmp_path / "a", best=True)
    path, score = tmp_path / "a" / "best.ckpt", torch.tensor(0.9)
    path.parent.mkdir()
    path.touch()
    best.best_model_path, best.best_model_score = str(path), score
    best.best_k_models, best.kth_value = {str(path): score}, score
    state = best.state_dict()
    path.parent.rename(tmp_path / "b")
    moved, _ = checkpoint_callbacks(tmp_path / "b", best=True)
    moved.load_state_dict(state)
    assert moved.best_model_score == score
    assert moved.best_k_models == {str(tmp_path / "b" / "best.ckpt"): score}
    windows = state | {"dirpath": "C:\\runs", "best_model_path": "C:\\runs\\best.ckpt"}
    from_windows, _ = checkpoint_callbacks(tmp_path / "b", best=True)
    from_windows.load_state_dict(windows)
    assert from_windows.best_model_score == score
    elsewhere, _ = checkpoint_callbacks(tmp_path / "c", best=True)
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        elsewhere.load_state_dict(state)  # the best checkpoint is not there
    assert elsewhere.best_model_score is None


def test_two_runs_without_a_name_in_the_same_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    with RunFolder("runs", None, 0) as first:
        first.create()
        with RunFolder("runs", None, 0) as second:
            second.create()
            assert (first.path.name, second.path.name) == ("now_seed0", "now_seed0_2")


def test_a_lock_that_cannot_be_removed_hides_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows, where its holder has it open."""
    unlink = Path.unlink

    def refuse(path: Path, **arguments: Any) -> None:
        if path.name == ".lock":
            raise PermissionError
        unlink(path, **arguments)

    def fail() -> None:
        with RunFolder("runs", "run", 0) as run:
            run.create()
            raise InputError("the real one")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(InputError, match="the real one"):
            fail()
    with RunFolder("runs", "run", 0) as run:
        run.create()


def test_an_export_is_no_newer_run() -> None:
    for number, name in enumerate(("old/last", "interrupted/step", "old/last.weights")):
        path = Path("runs", name).parent / "checkpoints" / f"{Path(name).name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (number, number))
    assert newest_run(Path("runs")) == Path("runs/interrupted")


def test_a_run_does_not_look_into_the_folders_of_others(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_train(max_epochs=1, name="other")
    looked: list[str] = []
    stat = Path.stat

    def note(path: Path, **arguments: Any) -> os.stat_result:
        looked.append(str(path))
        return stat(path, **arguments)

    monkeypatch.setattr(Path, "stat", note)
    with RunFolder("runs", "run", 0) as run:
        run.check_free()
        run.create()
        run.begin()
    RunFolder("runs", None, 0)
    assert not [path for path in looked if "other" in path]
    assert RunFolder("runs", None, 0, resume=True).path == Path("runs/other")


def test_a_new_run_shows_nothing_of_the_one_that_it_replaces(
    quick_train: Train,
) -> None:
    quick_train(max_epochs=1, report=True)
    shown = {
        path
        for path in Path("runs/run").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert {"metrics.json", "report.html", "best.ckpt"} <= {path.name for path in shown}
    with RunFolder("runs", "run", 0) as run:
        run.create()
        run.begin()
    left = {
        path.relative_to("runs/run").as_posix()
        for path in Path("runs/run").rglob("*")
        if path.is_file()
    }
    assert left <= {".lock"}


def test_a_drive_without_locks_is_said_and_used(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    quick_train(max_epochs=1)
    assert "cannot be locked; start no second run in it" in caplog.text


def test_a_run_without_held_out_images_leaves_no_best_checkpoint_of_another(
    quick_train: Train,
) -> None:
    quick_train(max_epochs=1)
    assert BEST.exists()
    quick_train(max_epochs=1, val_size=0, overwrite=True)
    assert not BEST.exists()
