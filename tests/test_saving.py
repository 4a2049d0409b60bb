"""Checkpoints that are written while the training goes on."""

import errno
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from benchmarks.saving import WAYS, saving
from common.errors import DivergedError, InputError, StoppedError
from lightning_module import LitCustomResNet
from run_files import BEST, LAST, STEP
from training.checkpoint import AtomicCheckpointIO
from training.guard import Guard
from training.saving import BackgroundCheckpointIO

Train = Callable[..., dict[str, Any]]
FULL = OSError(errno.ENOSPC, "No space left on device")


class SlowIO(BackgroundCheckpointIO):
    """Writes only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = Event()

    def write(self, checkpoint: dict[str, Any], paths: Sequence[Path]) -> None:
        """Wait, then write."""
        assert self.may_write.wait(timeout=60)
        super().write(checkpoint, paths)


@pytest.fixture
def slow() -> Iterator[SlowIO]:
    io = SlowIO()
    yield io
    io.may_write.set()  # or the thread would outlive the test
    io.teardown()


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def real_state() -> dict[str, Any]:
    """Weights and an optimizer's state, channels_last, with what belongs to them."""
    module = LitCustomResNet(("a", "b"), (0.5,) * 3, (0.2,) * 3, lr=0.1, base_width=4)
    optimizer = module.make_optimizer()
    module(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    return {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}


def test_a_file_is_the_same_as_if_the_training_had_waited(tmp_path: Path) -> None:
    state = real_state()
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "waited.ckpt")
    io = BackgroundCheckpointIO()
    io.save_checkpoint(state, tmp_path / "beside.ckpt")
    io.wait()
    waited, beside = (tmp_path / f"{name}.ckpt" for name in ("waited", "beside"))
    assert waited.read_bytes() == beside.read_bytes()


def test_later_steps_do_not_change_what_is_written(
    slow: SlowIO, tmp_path: Path
) -> None:
    weight, rows = torch.ones(3), [{"epoch": 0}]
    slow.save_checkpoint({"weight": weight, "rows": rows}, tmp_path / "last.ckpt")
    weight.zero_()
    rows[0]["epoch"] = 1
    rows.clear()
    assert not list(tmp_path.iterdir())
    slow.may_write.set()
    slow.wait()
    saved = read(tmp_path / "last.ckpt")
    assert saved["weight"].tolist() == [1, 1, 1]
    assert saved["rows"] == [{"epoch": 0}]


def test_best_and_last_are_serialised_once_and_best_is_there_first(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, places = [], []
    save, replace = torch.save, os.replace

    def noted_save(*arguments: Any) -> None:
        saves.append(arguments)
        save(*arguments)

    def noted_replace(source: Path, target: Path) -> None:
        if Path(target).suffix == ".ckpt":
            places.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(torch, "save", noted_save)
    monkeypatch.setattr(os, "replace", noted_replace)
    quick_train(max_epochs=1)
    assert len(saves) == 1
    assert places == ["best.ckpt", "last.ckpt"]
    assert BEST.read_bytes() == LAST.read_bytes()
    assert not BEST.samefile(LAST)  # what damages one leaves the other
    states = read(BEST)["callbacks"]
    assert [
        state["best_model_path"].rsplit(os.sep)[-1]
        for name, state in states.items()
        if name.startswith("KeptCheckpoint")
    ] == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("call", ["save_checkpoint", "wait"])
def test_what_went_wrong_is_raised_once_and_nothing_is_removed_after_it(
    call: str, slow: SlowIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, step = tmp_path / "last.ckpt", tmp_path / "step.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, last)
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, step)
    slow.save_checkpoint({"epoch": 2}, last)
    slow.remove_checkpoint(step)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(FULL))
        slow.may_write.set()
        arguments = [{"epoch": 3}, last] if call == "save_checkpoint" else []
        with pytest.raises(InputError, match=r"last\.ckpt: cannot be written \(No sp"):
            getattr(slow, call)(*arguments)
    assert read(last) == {"epoch": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", step.name]
    slow.wait()


def test_a_file_is_removed_when_what_overtakes_it_is_there(
    slow: SlowIO, tmp_path: Path
) -> None:
    last, step = tmp_path / "last.ckpt", tmp_path / "step.ckpt"
    step.touch()
    slow.save_checkpoint({"epoch": 1}, last)
    slow.remove_checkpoint(step)
    assert step.exists()
    slow.may_write.set()
    slow.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_end_waits_and_leaves_other_errors_alone(
    slow: SlowIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = tmp_path / "last.ckpt"
    slow.save_checkpoint({"epoch": 1}, last)
    slow.may_write.set()
    slow.teardown()
    assert read(last) == {"epoch": 1}
    monkeypatch.setattr(os, "replace", failing(FULL))
    slow.save_checkpoint({"epoch": 2}, last)
    slow.teardown()
    assert f"{last}: cannot be written (No space left on device)" in caplog.text


def failing(error: OSError, *, after: int = 0) -> Callable[[Any, Any], None]:
    """An `os.replace` that some checkpoints pass and the next does not."""
    replace, calls = os.replace, 0

    def fail(source: Any, target: Any) -> None:
        nonlocal calls
        if Path(target).suffix == ".ckpt":
            calls += 1
            if calls > after:
                raise error
        replace(source, target)

    return fail


def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_before_the_test(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(os, "replace", failing(FULL, after=1))
    with pytest.raises(InputError, match=r"last\.ckpt: cannot be written"):
        quick_train(max_epochs=2, limit_val_batches=0)
    assert read(LAST)["epoch"] == 0
    assert not Path("runs/run/metrics.json").exists()
    after = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def agreed(self: Guard, trainer: Any) -> int:
        return signal.SIGTERM if trainer.global_step == step else 0

    monkeypatch.setattr(Guard, "_agreed_signal", agreed)


@pytest.mark.parametrize(("step", "name"), [(2, "step"), (3, "last")])
def test_a_signals_checkpoint_that_cannot_be_written_is_what_is_said(
    step: int, name: str, quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(step, monkeypatch)
    monkeypatch.setattr(os, "replace", failing(FULL))
    with pytest.raises(InputError, match=rf"{name}\.ckpt: cannot be written"):
        quick_train(limit_val_batches=0)


def be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    write = BackgroundCheckpointIO.write

    def slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(BackgroundCheckpointIO, "write", slowly)


@pytest.mark.parametrize(("step", "path"), [(2, STEP), (3, LAST)])
def test_a_stopped_run_names_what_is_on_the_disk(
    step: int, path: Path, quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(step, monkeypatch)
    be_slow(monkeypatch)
    with pytest.raises(StoppedError) as stop:
        quick_train(limit_val_batches=0)
    assert stop.value.checkpoints == [path]
    assert read(path)["global_step"] == step


def test_a_diverged_run_names_what_is_on_the_disk(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_slow(monkeypatch)
    plain_step = LitCustomResNet.training_step

    def step(module: LitCustomResNet, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = plain_step(module, batch, batch_idx)
        return loss * (math.nan if module.global_step == 3 else 1)

    monkeypatch.setattr(LitCustomResNet, "training_step", step)
    with pytest.raises(DivergedError, match=f"last good checkpoint: {LAST};"):
        quick_train()


def test_a_row_for_each_way_of_saving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "saving.csv"
    flags = {"epochs": 1, "operations": 1, "repeats": 1, "base_width": 2}
    saving(str(file), str(tmp_path), **flags)
    assert [line.split(",")[1] for line in file.read_text().splitlines()[1:]] == [*WAYS]
    waiting = [line for line in capsys.readouterr().out.splitlines() if "(" in line]
    assert waiting[0].startswith("none 0.0 (0.0-0.0) 0.00 ")
    assert {path.name for path in tmp_path.iterdir()} == {
        file.name,
        f".{file.name}.lock",
    }
    with pytest.raises(InputError, match="--epochs, --operations, --repeats and --ba"):
        saving(epochs=0)
