"""What happens beside the training: history, clock, TensorBoard."""

import csv
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard._pytorch_graph import graph
from torchvision.utils import make_grid
from tqdm import tqdm

from analysis.figures import Row, confusion_figure, own_style
from common.errors import DivergedError
from common.files import replacing
from config import IMAGE_SIZE
from custom_resnet import CustomResNet
from machine.provenance import now

COLUMNS = ("train/loss", "train/acc", "val/loss", "val/acc")
GRID_IMAGES = 64  # augmented training images in TensorBoard


class History(Checkpoint):
    """A row of metrics an epoch: on the terminal, in the checkpoint, in `metrics.csv`.

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
        if trainer.is_global_zero:
            shown = [f"{name} {row[name]:.4f}" for name in COLUMNS if name in row]
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            tqdm.write("  ".join([epoch, *shown]), file=sys.stderr)
            if self.path is not None:
                self._write(self.path)

    def _write(self, path: Path) -> None:
        with replacing(path, "w") as file:
            writer = csv.DictWriter(file, ("epoch", "step", "lr", *COLUMNS))
            writer.writeheader()
            writer.writerows(self.rows)


class TrainingClock(Callback):
    """Seconds and images spent in training epochs, validation left out.

    It travels with the checkpoint, so a run that was interrupted counts all its parts.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self.started = 0.0
        self.step = 0  # of which the images are counted

    def state_dict(self) -> dict[str, Any]:
        """What the epochs so far took."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start, perhaps within an epoch."""
        self.started = now(trainer.strategy.root_device)
        self.step = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start."""
        self.started = now(trainer.strategy.root_device)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Pause."""
        self.seconds += now(trainer.strategy.root_device) - self.started

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Go on."""
        self.started = now(trainer.strategy.root_device)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop, and count the epoch's images in all processes."""
        self.seconds += now(trainer.strategy.root_device) - self.started
        loader: Any = trainer.train_dataloader
        self.images += (trainer.global_step - self.step) * loader.batch_size
        self.step = trainer.global_step

    def images_per_second(self) -> float | None:
        """Pace of the training; None if no epoch was trained."""
        return round(self.images / self.seconds, 1) if self.images else None


class FiniteLoss(Callback):
    """Ends a run whose loss or weights are infinite or not a number.

    The first such step is noted on the device and read once an epoch, so no step waits
    for it, and before a checkpoint is written: plain callbacks come first.
    `StepCheckpoint` asks before it writes one within an epoch.
    """

    def __init__(
        self, history: History, newest_checkpoints: Callable[[], list[Path]]
    ) -> None:
        self.history = history
        self.newest_checkpoints = newest_checkpoints

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """No bad step so far."""
        self.bad_step = torch.tensor(-1, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Note the step if it is the first bad one."""
        is_bad = ~outputs["loss"].isfinite()
        is_first = is_bad & (self.bad_step < 0)
        self.bad_step = torch.where(is_first, trainer.global_step - 1, self.bad_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look at the whole epoch."""
        self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """End the run, in every process alike.

        Raises:
            DivergedError: A loss so far was not finite, or a weight is not.
        """
        bad_step = int(trainer.strategy.reduce(self.bad_step, reduce_op="max"))
        weights = trainer.lightning_module.parameters()
        are_finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        # A step can spoil the weights and still have had a loss.
        if bad_step < 0 and not are_finite:
            bad_step = trainer.global_step - 1
        if bad_step >= 0:
            lr = self.history.lrs[bad_step - trainer.global_step]
            good = (*self.newest_checkpoints(), "none")[0]
            raise DivergedError(
                f"the loss or a weight was not finite at step {bad_step}, where the LR "
                f"was {lr:.3g}; last good checkpoint: {good}; try a lower --lr, or "
                "--precision 32-true"
            )


class TensorBoardDetails(Callback):
    """What the logger does not write by itself: LR per step, graph, pictures."""

    def __init__(self, logger: TensorBoardLogger, history: History) -> None:
        self.writer = logger.experiment
        self.history = history

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Log the network's graph and a grid of augmented images."""
        if not trainer.is_global_zero:
            return
        images, _ = next(iter(trainer.train_dataloader or ()))
        grid = make_grid(images[:GRID_IMAGES].cpu(), nrow=8)
        self.writer.add_image("images/augmented", grid, trainer.global_step)
        classes, width = pl_module.hparams["classes"], pl_module.hparams["base_width"]
        self.writer.file_writer.add_graph(_traced(len(classes), width))

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the LRs of the epoch at once: writing at each step costs time."""
        if trainer.is_global_zero:
            lrs = self.history.lrs
            for step, lr in enumerate(lrs, trainer.global_step - len(lrs)):
                self.writer.add_scalar("lr", lr, step)
            self.writer.flush()  # before the checkpoint that says it is written

    @own_style()
    def on_test_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Log the confusion matrix of the test set."""
        confusion: Any = pl_module.test_confusion
        counts = confusion.compute()
        if trainer.is_global_zero:
            figure = confusion_figure(counts, pl_module.hparams["classes"])
            self.writer.add_figure("test/confusion", figure, trainer.global_step)


@functools.cache  # torch never frees what it has traced
def _traced(num_classes: int, base_width: int) -> Any:
    """The network's graph for TensorBoard."""
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # torch.jit.trace is deprecated: https://github.com/pytorch/pytorch/issues/49823
        warnings.simplefilter("ignore", DeprecationWarning)
        net = CustomResNet(num_classes, base_width).eval()
        return graph(net, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
