"""What a user sees of a training in a terminal."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.progress import header, line

PROJECT = Path(__file__).resolve().parent.parent
COLUMNS = 80


@pytest.mark.parametrize("has_val", [True, False])
def test_rows_stand_below_their_header_in_80_columns(has_val: bool) -> None:
    row = {"epoch": 9998, "step": 1, "lr": 1e-10}
    row |= {"train/loss": 12345.6789, "train/acc": 1.0}
    row |= {"val/loss": 0.12345, "val/acc": 0.98765} if has_val else {}
    names, values = header(row), line(row, 9999, 123456.78)
    assert len(names) == len(values) <= COLUMNS
    assert names.split()[-1] == "seconds"
    expected = "9999/9999 1.00e-10 12345.6789 100.00 % 0.1235 98.77 % 123456.8"
    if not has_val:
        expected = expected.replace("0.1235 98.77 % ", "")
    assert values.split() == expected.split()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bars_tear_no_line_of_a_terminal(image_folder: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, COLUMNS, 0, 0))
    flags = ["--data_dir", str(image_folder), "--batch_size", "16", "--name", "run"]
    flags += ["--max_epochs", "2", "--base_width", "4", "--precision", "32-true"]
    flags += ["--accelerator", "cpu", "--lr_steps", "40", "--report", "false"]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), *flags],
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                text += part
        except OSError:  # how Linux says that nobody writes any more
            pass
    assert process.wait(timeout=120) == 0, text
    lines = text.decode().split("\r\n")
    drawn = [part for whole in lines for part in whole.split("\r")]
    assert not any(re.search(r"[\x00-\x1f]", part) for part in drawn)
    bars = [part for part in drawn if "%|" in part]
    assert max(map(len, bars)) <= COLUMNS
    assert {"LR range test", "Training"} <= {bar.split(":")[0] for bar in bars}
    left = [whole.split("\r")[-1] for whole in lines]  # when all is drawn
    assert not any("%|" in part for part in left)
    head = next(k for k, part in enumerate(left) if part.split()[:1] == ["epoch"])
    assert [part.split()[0] for part in left[head + 1 : head + 3]] == ["1/2", "2/2"]
    assert max(map(len, left[head : head + 3])) <= COLUMNS
    assert "max LR " in left[head - 1]
    assert f"run folder       {Path('runs/run')}" in left


def test_a_run_that_goes_on_says_from_where(
    quick_train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"max_epochs": 2, "ckpt_every_n_steps": 2}
    quick_train(**flags)
    first = capsys.readouterr().out
    assert "plan     2 epochs of 3 steps, batches of 32\n" in first
    quick_train(**flags, ckpt_path="last", report=False, logger="csv")
    again = capsys.readouterr().out
    assert "batches of 32, resuming after step 6\n" in again
    assert "max LR   0.01, that of the checkpoint\n" in again
    assert again.splitlines()[-1] == f"run folder       {Path('runs/run')}"
    assert "tensorboard" not in again


def test_the_plan_is_that_of_the_limits(
    quick_train: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    quick_train(limit_train_batches=2, max_epochs=1)
    assert "plan     1 epoch of 2 steps, batches of 32\n" in capsys.readouterr().out
