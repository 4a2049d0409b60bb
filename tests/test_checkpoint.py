"""Writing checkpoints: whole or not at all, and with what an exact resume needs."""

import errno
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from common.errors import InputError
from common.files import remove_leftovers, replacing
from run_files import LAST
from training.checkpoint import AtomicCheckpointIO

Train = Callable[..., dict[str, Any]]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(TypeError), replacing(path, "w") as file:
        file.write(b"torn")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            calls.append(name)
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    folder_too = ["fsync"] if os.name == "posix" else []
    assert calls == ["fsync", "replace", *folder_too]


def test_only_what_was_being_written_is_cleared_away(tmp_path: Path) -> None:
    for name in (f".{4 * '0123'}.tmp", "mine.tmp", ".mine", ".mine.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.tmp").mkdir()
    remove_leftovers(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".folder.tmp", ".mine", ".mine.tmp", "mine.tmp"]


def refuse(error: OSError) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("fsync", OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        ("replace", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("replace", PermissionError(errno.EACCES, "Permission denied"), "Permission"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    call: str,
    error: OSError,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(os, call, refuse(error))
    with pytest.raises(InputError, match=f"cannot be written .{reason}"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "full")
    (tmp_path / ".full.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_a_run_on_a_full_disk_can_go_on_when_there_is_room(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = quick_train(name="unbroken", max_epochs=3)
    replace, checkpoints = os.replace, 0

    def fill_up(source: Path, target: Path) -> None:
        nonlocal checkpoints
        if Path(target).suffix == ".ckpt":
            checkpoints += 1
            if checkpoints == 3:  # after the first epoch's best and last
                raise OSError(errno.ENOSPC, "full")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_up)
        with pytest.raises(InputError, match=r"\(full\); the previous checkpoint is"):
            quick_train(max_epochs=3)
    resumed = quick_train(max_epochs=3, ckpt_path="last")
    for key in ("train/loss", "val/loss", "test/loss"):
        assert resumed[key] == unbroken[key]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_folder_without_permission_is_named_before_the_training(
    quick_train: Train,
) -> None:
    with pytest.raises(InputError, match="--output_dir /proc/runs: cannot be written"):
        quick_train(output_dir="/proc/runs")


def test_step_checkpoint_goes_when_the_epoch_is_saved(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    write = AtomicCheckpointIO.write

    def note(self: Any, checkpoint: Any, paths: list[Path]) -> None:
        write(self, checkpoint, paths)
        names = sorted(path.name for path in LAST.parent.iterdir())
        seen.append([str(checkpoint["global_step"]), *names])

    monkeypatch.setattr(AtomicCheckpointIO, "write", note)
    quick_train(ckpt_every_n_steps=2, limit_val_batches=0)  # three steps an epoch
    assert seen == [
        ["2", "step.ckpt"],
        ["3", "last.ckpt", "step.ckpt"],
        ["4", "last.ckpt", "step.ckpt"],
        ["6", "last.ckpt", "step.ckpt"],
    ]
    assert [path.name for path in LAST.parent.iterdir()] == ["last.ckpt"]


def test_what_is_synced_is_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only in a buffer would not be on the disk."""
    sizes: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert sizes[0] == 3
