"""How long a training waits for its checkpoints.

    python benchmarks/saving.py --output benchmarks/results/DATE_saving_cpu.csv

goes through the epochs of a run: fixed work, in place of an epoch's steps on a fast
GPU, and then the checkpoints `best.ckpt` and `last.ckpt`, each time both. The work is
that of a host that launches kernels, many small operations; what is saved is real, the
network of full width after a step of train.py. In turns:

none: nothing is saved;
waiting: the training waits until each of the two files is on the disk;
beside: it waits for a copy of what is to be saved, and a thread does the rest.

A row a way: seconds of the whole run, and those within calls that save; median and
range of the rounds. The first round warms up and is not counted.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from benchmarks.noise import RandomImages, fit, prepare
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, summary, today
from common import cli
from common.errors import InputError
from config import Config
from machine import provenance
from machine.hardware import Hardware, choose_hardware
from training.checkpoint import AtomicCheckpointIO
from training.resume import Checkpoint, read_checkpoint
from training.saving import BackgroundCheckpointIO

FILES = ("best.ckpt", "last.ckpt")
WAYS: dict[str, Callable[[], CheckpointIO] | None] = {
    "none": None,
    "waiting": AtomicCheckpointIO,
    "beside": BackgroundCheckpointIO,
}


def real_checkpoint(hardware: Hardware, base_width: int) -> Checkpoint:
    """What train.py saves after a step."""
    prepare("cpu")
    images = RandomImages(32, batch_size=32)
    images.setup()
    config = Config(
        lr=0.001, val_size=0, batch_size=32, max_epochs=1, base_width=base_width
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(config, hardware, images, folder)
        return read_checkpoint(Path(folder, "run", "checkpoints", "last.ckpt"))


def train(
    way: str, checkpoint: Checkpoint, epochs: int, operations: int, folder: Path
) -> tuple[float, float]:
    """Go through the epochs; seconds of all, and of the calls that save."""
    make = WAYS[way]
    saver, waited, counter = make and make(), 0.0, torch.zeros(8)
    started = time.perf_counter()
    for _ in range(epochs):
        for _ in range(operations):
            counter.add_(1)
        stopped = time.perf_counter()
        if saver is not None:
            for name in FILES:
                saver.save_checkpoint(checkpoint, folder / name)
        waited += time.perf_counter() - stopped
    stopped = time.perf_counter()
    if saver is not None:
        saver.teardown()
    ended = time.perf_counter()
    return ended - started, waited + ended - stopped


def measure(
    checkpoint: Checkpoint, epochs: int, operations: int, repeats: int, folder: Path
) -> dict[str, list[tuple[float, float]]]:
    """What `train` says of each way, in each round that counts."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(repeats + 1):
        for way, rounds in found.items():
            times = train(way, checkpoint, epochs, operations, folder)
            if number:
                rounds.append(times)
                print(f"round {number}: {way} {times[0]:.2f} s, {times[1]:.2f} s")
    return found


def saving(
    output: str | None = None,
    folder: str | None = None,
    epochs: int = 24,
    operations: int = 100_000,
    repeats: int = 5,
    base_width: int = 64,
) -> None:
    """Measure how long a training waits for its checkpoints.

    Args:
        output: CSV file to which the rows are added; docs/lab/speed.md shows those
            named benchmarks/results/DATE_saving_DEVICE.csv.
        folder: Where the checkpoints are written; null for the system's own.
        epochs: Length of a run.
        operations: Small operations of an epoch; 100,000 take about half a second.
        repeats: Rounds that count.
        base_width: Channels of the first convolution.

    Raises:
        InputError: A value is out of its range, or a file cannot be written.
    """
    if min(epochs, operations, repeats, base_width) < 1:
        raise InputError(
            "--epochs, --operations, --repeats and --base_width must be at least 1"
        )
    if output is not None:
        read_rows(Path(output), "way")  # a wrong file is refused before the work
    hardware = choose_hardware("cpu", precision="32-true")
    origin = provenance.circumstances(hardware)  # now: files may change
    checkpoint = real_checkpoint(hardware, base_width)
    with tempfile.TemporaryDirectory(dir=folder) as files:
        found = measure(checkpoint, epochs, operations, repeats, Path(files))
        size = Path(files, FILES[-1]).stat().st_size
    for way, rounds in found.items():
        run, waited = zip(*rounds, strict=True)
        row: dict[str, Any] = {
            "date": today(),
            "way": way,
            "epochs": epochs,
            "operations": operations,
            "MB": round(size / 1e6, 1),
            "repeats": repeats,
            "run, s": summary(run, 1),
            "waiting, s": summary(waited, 2),
            **origin,
        }
        if output is not None:
            add_row(Path(output), row)
        print(*(row[name] for name in ("way", "run, s", "waiting, s")))


def table() -> str:
    """All measurements on record, in Markdown."""
    files = sorted(RESULTS.glob("*_saving_*.csv"))
    rows = pd.concat([read_rows(file) for file in files])
    rows["code of"] = rows["commit"].str[:7]
    shown = ["way", "code of", "epochs", "MB", "run, s", "waiting, s"]
    return markdown(rows[shown].astype("str"))


if __name__ == "__main__":
    cli.run("saving.py", saving, outlasts_readers=True)
