"""Two processes on the CPU, as `--devices 2` starts them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet

SCRIPT = Path(__file__).resolve().parent.parent / "train.py"


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on Windows needs set-up")
def test_two_processes_leave_one_run_and_count_every_image_once(
    image_folder: Path,
) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    flags += ["--data_dir", str(image_folder), "--precision", "32-true"]
    flags += ["--batch_size", "32", "--max_epochs", "2", "--base_width", "4"]
    flags += ["--lr_steps", "40"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1

    [run] = Path("runs").iterdir()
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]
    metrics = json.loads((run / "metrics.json").read_text())

    # One process gets the same figures from the checkpoint, so none was counted twice.
    last = run / "checkpoints" / "last.ckpt"
    module = LitCustomResNet.load_from_checkpoint(last, weights_only=True).eval()
    assert module.hparams["lr"] == metrics["max_lr"]
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=7)
    data.setup()
    images, labels = data.test_set
    with torch.no_grad():
        logits = module(images.permute(0, 3, 1, 2))
    hits = (logits.argmax(1) == labels).float().mean().item()
    loss = F.cross_entropy(logits, labels).item()
    assert metrics["test/acc"] == pytest.approx(hits)
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-4)


def test_a_batch_that_cannot_be_shared(image_folder: Path) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2", "--batch_size", "31"]
    flags += ["--data_dir", str(image_folder)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: error: --batch_size 31 cannot be shared by 2 processes; give a "
        "multiple of their number\n"
    )
    assert not Path("runs").exists()
