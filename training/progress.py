"""What is seen of a training while it runs: a bar, and a table of epochs."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint
from tqdm import tqdm

from training.history import COLUMNS, History, Row


class RunProgressBar(Callback):
    """One bar over all epochs, for as long as somebody may look on.

    The remaining time comes from the mean pace so far, validation included, so it does
    not jump back at every epoch. Nothing in it waits for the device. In a file or a
    pipe there is no bar.

    Args:
        name: What it is a bar of.
    """

    def __init__(self, name: str = "Training") -> None:
        self.name = name
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Open the bar where the training starts, or goes on."""
        if trainer.is_global_zero:
            self.bar = tqdm(
                total=int(trainer.estimated_stepping_batches),
                initial=trainer.global_step,
                desc=self.name,
                unit="step",
                smoothing=0,
                mininterval=0.5,
                dynamic_ncols=True,
                leave=False,
                disable=not (sys.stderr.isatty() or "ipykernel" in sys.modules),
            )

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.update()

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that a message begins on a line of its own."""
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class EpochTable(Checkpoint):
    """A line an epoch on the terminal, above the bar.

    It is a `Checkpoint` to be called after `history`, behind which it must stand.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.has_header = False
        self.started = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, perhaps within an epoch."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Print the epoch, and before the first one what the columns are."""
        now = time.perf_counter()
        row, seconds, self.started = self.history.rows[-1], now - self.started, now
        if trainer.is_global_zero:
            lines = [line(row, int(trainer.max_epochs or 0), seconds)]
            if not self.has_header:
                lines.insert(0, header(row))
            self.has_header = True
            tqdm.write("\n".join(lines), file=sys.stdout)
            sys.stdout.flush()


def header(row: Row) -> str:
    """What the columns of a row are."""
    names = [name.replace("/", " ") for name in COLUMNS if name in row]
    return _aligned(["epoch", "LR", *names, "seconds"])


def line(row: Row, epochs: int, seconds: float) -> str:
    """A row in at most 80 columns.

    Args:
        row: Of the history.
        epochs: Length of the training.
        seconds: What the epoch took, validation included.
    """
    cells = [f"{row['epoch'] + 1:.0f}/{epochs}", f"{row['lr']:.2e}"]
    for name in COLUMNS:
        if name in row:
            value = row[name]
            is_share = name.endswith("acc")
            cells.append(f"{100 * value:.2f} %" if is_share else f"{value:.4f}")
    return _aligned([*cells, f"{seconds:.1f}"])


def _aligned(cells: list[str]) -> str:
    first, *others = cells
    return f"{first:>9}" + "".join(f" {cell:>10}" for cell in others)
