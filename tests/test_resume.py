"""Going on with a run: from which checkpoint, and when it is refused."""

import importlib
import itertools
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis.loading import WEIGHTS
from common.errors import InputError
from run_files import BEST, LAST, STEP, Payload, assert_same, rows, weights
from training.checkpoint import AtomicCheckpointIO
from training.guard import Guard
from training.resume import read_checkpoint

Train = Callable[..., dict[str, Any]]


class KilledError(Exception):
    """Stands for whatever ends a process."""


def kill_in_epoch(
    epoch: int, monkeypatch: pytest.MonkeyPatch, *, after_saving: bool = False
) -> None:
    save = Guard.on_train_batch_end

    def die(self: Guard, trainer: Any, *arguments: Any) -> None:
        if after_saving:
            save(self, trainer, *arguments)
        if trainer.current_epoch == epoch:
            trainer.strategy.checkpoint_io.wait()
            raise KilledError

    monkeypatch.setattr(Guard, "on_train_batch_end", die)


@pytest.mark.parametrize(
    "more",
    [{"sam_radius": 0.1}, pytest.param({"ema_decay": 0.9}, marks=pytest.mark.slow)],
)
def test_resumed_run_ends_like_an_unbroken_one(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch, more: dict[str, float]
) -> None:
    flags: dict[str, Any] = {"max_epochs": 3, "lr": "auto", "lr_steps": 40, **more}
    unbroken = quick_train(name="unbroken", **flags)
    with monkeypatch.context() as patch:
        kill_in_epoch(2, patch)
        with pytest.raises(KilledError):
            quick_train(**flags)
    assert len(rows()) == 2
    with monkeypatch.context() as patch:
        patch.setattr("train.range_test", None)  # a resumed run must not call it
        resumed = quick_train(**flags, ckpt_path="last")
    assert_same(weights(), weights(Path("runs/unbroken/checkpoints/last.ckpt")))
    assert rows() == rows("unbroken")
    for key in ("max_lr", "train/acc", "val/acc", "test/loss", "test/acc", "epochs"):
        assert resumed[key] == unbroken[key]


def test_tensorboard_forgets_what_came_after_the_checkpoint(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is logged, not saved, and trained once more."""
    save, flags = AtomicCheckpointIO.write, {"max_epochs": 2, "lr": 0.01}

    def die(io: AtomicCheckpointIO, checkpoint: Any, paths: Any) -> None:
        if checkpoint["epoch"] == 1:
            raise KilledError
        save(io, checkpoint, paths)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "write", die)
        with pytest.raises(KilledError):
            quick_train(**flags)
    assert points("lr") == [0, 1, 2, 3, 4, 5]
    quick_train(**flags, ckpt_path="last")
    assert points("lr") == [0, 1, 2, 3, 4, 5]
    assert points("curves/acc", "val") == [2, 5]


def points(tag: str, part: str = "") -> list[int]:
    """Steps at which TensorBoard shows a point of a curve."""
    events = EventAccumulator(f"runs/run/{part}", {"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)]


def test_resuming_without_a_name_takes_the_newest_run(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_train(name="old")
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(perf_counter=itertools.count(step=1000).__next__)
        patch.setattr("training.history.time", clock)
        before = quick_train(name="new")
    metrics = quick_train(name=None, ckpt_path="last")  # finished: trains no more
    assert metrics["fit_seconds"] == before["fit_seconds"]
    assert metrics["seconds"] > 1000  # those of both processes
    assert metrics["images_per_second"] == before["images_per_second"]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["new", "old"]


def test_a_finished_run_tests_its_averaged_weights_again(quick_train: Train) -> None:
    flags = {"ema_decay": 0.9, "max_epochs": 1}
    before = quick_train(**flags)
    after = quick_train(**flags, ckpt_path="last")
    for figure in ("test/loss", "test/acc"):
        assert after[figure] == before[figure]


def test_seconds_and_images_of_an_unfinished_epoch_count(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"batch_size": 16, "max_epochs": 2, "ckpt_every_n_steps": 1}
    with monkeypatch.context() as patch:
        kill_in_epoch(1, patch, after_saving=True)
        with pytest.raises(KilledError):
            quick_train(**flags)
    [clock] = [
        state
        for name, state in torch.load(STEP, weights_only=True)["callbacks"].items()
        if name.startswith("TrainingClock")
    ]
    assert clock["images"] == (6 + 1) * 16  # 108 are for training
    metrics = quick_train(**flags, ckpt_path="last")
    counted = metrics["fit_seconds"] * metrics["images_per_second"]
    assert counted == pytest.approx(2 * 6 * 16, rel=0.01)
    assert metrics["fit_seconds"] > clock["seconds"]


def test_going_on_in_another_folder_leaves_the_first_as_it_was(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_in_epoch(1, patch)
        with pytest.raises(KilledError):
            quick_train()
    before = {path: path.read_bytes() for path in LAST.parent.iterdir()}
    quick_train(ckpt_path=str(LAST), name="elsewhere")
    assert {path: path.read_bytes() for path in LAST.parent.iterdir()} == before
    assert [row["epoch"] for row in rows("elsewhere")] == ["0", "1"]
    quick_train(name="unbroken")
    assert rows("elsewhere") == rows("unbroken")


def test_last_without_a_checkpoint_starts_afresh_and_says_so(
    quick_train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    quick_train(ckpt_path="last", max_epochs=1)
    assert "no checkpoint to resume from: starting afresh" in caplog.text
    assert len(rows()) == 1


@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [
        ("batch_size", 16, 32),
        ("max_epochs", 5, 2),
        ("seed", 1, 0),
        ("val_size", 0, 12),
        ("base_width", 8, 4),
        ("limit_train_batches", 1, 1.0),  # one batch, and all
    ],
)
def test_a_run_cannot_go_on_with_other_settings(
    quick_train: Train, flag: str, value: Any, before: Any
) -> None:
    quick_train()
    message = f"--{flag} is {value}, but the checkpoint was trained with {before}"
    with pytest.raises(InputError, match=message):
        quick_train(**{flag: value, "ckpt_path": "last"})


def test_a_run_cannot_go_on_with_other_images(
    quick_train: Train, image_folder: Path, tmp_path: Path
) -> None:
    quick_train()
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    for split in ("train", "test"):
        (other / split / "red").rename(other / split / "rose")
    with pytest.raises(InputError, match=r"the classes of the images are .*'rose'"):
        quick_train(data_dir=str(other), ckpt_path="last")


def test_a_run_cannot_go_on_with_another_learning_rate(quick_train: Train) -> None:
    quick_train(lr="auto", lr_steps=40)
    lr = torch.load(LAST, weights_only=True)["config"]["lr"]
    with pytest.raises(InputError, match=f"--lr is 0.5, but .* trained with {lr}"):
        quick_train(lr=0.5, ckpt_path="last")
    quick_train(lr=lr, ckpt_path="last")


def test_a_longer_run_is_refused_with_the_reason(quick_train: Train) -> None:
    quick_train()
    with pytest.raises(InputError, match="one cycle has one length"):
        quick_train(max_epochs=4, ckpt_path="last")


def test_a_run_cannot_go_on_with_changed_images(
    quick_train: Train, image_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    quick_train(data_dir=str(other))
    # The same pixels with other labels: mean, std and classes stay.
    red, blue = other / "train" / "red" / "0.png", other / "train" / "blue" / "0.png"
    red.rename(other / "swap")
    blue.rename(red)
    (other / "swap").rename(blue)
    with pytest.raises(InputError, match=r"have the checksum \w{8}, the checkpoint's"):
        quick_train(data_dir=str(other), ckpt_path="last")


def test_a_run_cannot_go_on_with_another_number_of_processes(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_train()
    saved = torch.load(LAST, weights_only=True)
    AtomicCheckpointIO().save_checkpoint(saved | {"world_size": 2}, LAST)
    with pytest.raises(InputError, match=r"there are 1 processes, .* trained with 2"):
        quick_train(ckpt_path="last")


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_named(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quick_train(name="unbroken", max_epochs=3)
    with monkeypatch.context() as patch:
        kill_in_epoch(2, patch)
        with pytest.raises(KilledError):
            quick_train(max_epochs=3, ckpt_every_n_steps=4)
    shutil.copy(BEST, STEP)  # as if it were from within an epoch
    flip_bit(LAST, LAST.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        quick_train(max_epochs=3, ckpt_path="last")
    assert (
        f"--ckpt_path {LAST}: damaged, or not a checkpoint of this project (wrong"
        in caplog.text
    )
    assert f"resuming from {STEP} instead" in caplog.text
    assert_same(weights(), weights(Path("runs/unbroken/checkpoints/last.ckpt")))
    assert rows() == rows("unbroken")


def test_what_a_killed_process_was_writing_is_cleared_away(quick_train: Train) -> None:
    quick_train()
    torn = [STEP.with_name(f".{4 * '0123'}.tmp"), Path(f"runs/run/.{4 * 'cdef'}.tmp")]
    for path in torn:
        path.touch()
    quick_train(ckpt_path="last")
    assert not any(path.exists() for path in torn)


def test_when_all_checkpoints_are_damaged_nothing_is_overwritten(
    quick_train: Train,
) -> None:
    quick_train()
    for path in (LAST, BEST):
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in Path("runs").rglob("*.*")}
    with pytest.raises(InputError, match=r"last\.ckpt: damaged, or not a checkpoint"):
        quick_train(ckpt_path="last")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*.*")} == before


def test_a_payload_within_a_good_checkpoint_is_refused(quick_train: Train) -> None:
    quick_train(max_epochs=1)
    saved = torch.load(LAST, weights_only=True)
    AtomicCheckpointIO().save_checkpoint(saved | {"config": Payload()}, LAST)
    with pytest.raises(InputError, match=r"last\.ckpt: damaged, or not a checkpoint"):
        read_checkpoint(LAST)
    assert not Path("payload-ran").exists()
    torch.load(LAST, weights_only=False)  # it is a real one
    assert Path("payload-ran").exists()


@pytest.mark.parametrize(
    "command",
    [
        f"predict image.png --ckpt_path {LAST}",
        f"export --ckpt_path {LAST} --format weights",
        "report runs/run",
    ],
)
def test_every_command_refuses_a_payload(
    command: str,
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("jinja2")  # for the report
    quick_train(max_epochs=1)
    saved = torch.load(LAST, weights_only=True)
    AtomicCheckpointIO().save_checkpoint(saved | {"config": Payload()}, LAST)
    Image.new("RGB", (32, 32)).save("image.png")
    program, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(program).main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1
    assert "last.ckpt: damaged, or not a checkpoint" in error
    assert not Path("payload-ran").exists()


@pytest.mark.gpu
def test_resumed_run_ends_like_an_unbroken_one_on_a_gpu(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"accelerator": "gpu", "deterministic": True, "ckpt_every_n_steps": 2}
    quick_train(**flags, max_epochs=3, batch_size=16, name="unbroken")
    with monkeypatch.context() as patch:
        kill_in_epoch(1, patch)
        with pytest.raises(KilledError):
            quick_train(**flags, max_epochs=3, batch_size=16)
    quick_train(**flags, max_epochs=3, batch_size=16, ckpt_path="last")
    assert_same(weights(), weights(Path("runs/unbroken/checkpoints/last.ckpt")))
    assert rows() == rows("unbroken")


def test_no_run_goes_on_from_weights_alone(quick_train: Train) -> None:
    path = str(WEIGHTS)
    with pytest.raises(InputError, match="weights only, without the state that a"):
        quick_train(ckpt_path=path)
    assert not Path("runs").exists()


def test_a_checkpoint_of_before_a_flag_was_there_goes_on(
    quick_train: Callable[..., Any],
) -> None:
    before = quick_train(max_epochs=1)
    saved = torch.load(LAST, weights_only=True)
    del saved["config"]["logit_scale"], saved["config"]["photo_like"]
    AtomicCheckpointIO().save_checkpoint(saved, LAST)
    assert (
        quick_train(max_epochs=1, ckpt_path="last")["test/loss"] == before["test/loss"]
    )
