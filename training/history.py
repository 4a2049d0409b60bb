"""The history of a run: a row of metrics an epoch, and the time that it took."""

import csv
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from common.files import replacing
from machine.provenance import now

log = logging.getLogger(__name__)

COLUMNS = ("train/loss", "train/acc", "val/loss", "val/acc")
Row = dict[str, float]  # of metrics.csv: epoch, step, lr and what there is of `COLUMNS`


class History(Checkpoint):
    """A row of metrics an epoch, in the checkpoint and in `metrics.csv`.

    As it travels with the checkpoint, the file is complete after a resume. It is a
    `Checkpoint` because Lightning calls those, in their given order, after the module
    has logged the epoch's metrics: put it before the callbacks that save.

    Attributes:
        rows: A row for each epoch that is done.
        lrs: Learning rate of each step of the epoch that is not.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.lrs: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and what will go into the next."""
        return {"rows": self.rows, "lrs": self.lrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the rows of a checkpoint."""
        self.rows, self.lrs = list(state_dict["rows"]), list(state_dict["lrs"])

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keep the learning rate that this step uses."""
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add a row: epoch from 0, steps so far, LR of the last step, metrics."""
        row: Row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["lr"] = self.lrs[-1]
        self.lrs.clear()
        metrics = trainer.callback_metrics
        row |= {name: metrics[name].item() for name in COLUMNS if name in metrics}
        self.rows.append(row)
        if trainer.is_global_zero and self.path is not None:
            try:
                self._write(self.path)
            except PermissionError as error:
                # Windows lets nobody replace a file that a spreadsheet has open. The
                # rows are in the checkpoint, which must not be lost for it.
                log.warning(
                    f"{self.path} cannot be replaced ({error.strerror}); close it, and "
                    "the next epoch writes it whole"
                )

    def _write(self, path: Path) -> None:
        with replacing(path, "w") as file:
            writer = csv.DictWriter(file, ("epoch", "step", "lr", *COLUMNS))
            writer.writeheader()
            writer.writerows(self.rows)


class TrainingClock(Callback):
    """Seconds and images spent in training epochs, and seconds since it was made.

    It travels with the checkpoint, so a run that was interrupted counts all its parts.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = 0.0
        self.images = 0
        self.trainer: pl.Trainer | None = None  # while it trains
        self.started = 0.0
        self.step = 0  # of which the images are counted

    def state_dict(self) -> dict[str, Any]:
        """What the training took so far, within an epoch, too."""
        self._count()
        return {
            "seconds": self.seconds,
            "images": self.images,
            "run_seconds": self.run_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        # Checkpoints of before this was counted have none.
        self.began -= state_dict.get("run_seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start, perhaps within an epoch."""
        self.step = trainer.global_step
        self._start(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start."""
        self._start(trainer)

    def on_validation_start(self, *_: Any) -> None:
        """Pause."""
        self._stop()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Go on."""
        self._start(trainer)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop."""
        self._stop()

    def _start(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self.started = now(trainer.strategy.root_device)

    def _stop(self) -> None:
        self._count()
        self.trainer = None

    def _count(self) -> None:
        """Add the time and the images, of all processes, since it was last done."""
        if self.trainer is None:
            return
        here = now(self.trainer.strategy.root_device)
        self.seconds, self.started = self.seconds + here - self.started, here
        loader: Any = self.trainer.train_dataloader
        self.images += (self.trainer.global_step - self.step) * loader.batch_size
        self.step = self.trainer.global_step

    def run_seconds(self) -> float:
        """What the run took so far."""
        return time.perf_counter() - self.began

    def images_per_second(self) -> float | None:
        """Pace of the training; None if no epoch was trained."""
        return round(self.images / self.seconds, 1) if self.images else None
