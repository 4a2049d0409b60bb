"""Checkpoints: which are kept, what is in them, and how they are written."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torchmetrics import Metric

from common.errors import InputError, StoppedError
from common.files import replacing, sealed
from training.callbacks import FiniteLoss
from training.stop import StopSignal

EPOCH_METRICS = ("train_loss", "train_acc")  # those that an epoch adds up


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and to the disk before it says so.

    Lightning's own goes through the system's temporary folder, syncs nothing, and takes
    a refused permission for success:
    https://github.com/Lightning-AI/pytorch-lightning/issues/21253.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Replace the file at `path`.

        Raises:
            InputError: It cannot be written; what was there before still is.
        """
        content = io.BytesIO()  # torch hides what goes wrong with a file
        torch.save(checkpoint, content)
        try:
            with replacing(Path(path)) as file:
                file.write(sealed(content.getvalue()))
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); the "
                "checkpoint before it is whole: put that right, then go on with "
                "--ckpt_path last"
            ) from None


class KeptCheckpoint(ModelCheckpoint):
    """Knows its file again in a run folder that was moved.

    Lightning's forgets the best score where the folder has another name than before,
    and then replaces the best checkpoint by a worse one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was known of the file, if it is in this folder."""
        name = Path(state_dict["best_model_path"]).name
        here = Path(str(self.dirpath)) / name
        if name and here.is_file():
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(here),
                "kth_best_model_path": str(here),
                "best_k_models": {
                    str(here): score for score in state_dict["best_k_models"].values()
                },
            }
        super().load_state_dict(state_dict)


def checkpoint_callbacks(folder: Path, *, best: bool) -> list[ModelCheckpoint]:
    """Callbacks that keep `best.ckpt`, by val/acc, and always `last.ckpt`.

    `save_last=True` of Lightning's would be the last *best* epoch. "last" comes after
    "best", so that the newest score is in it.
    """
    last = KeptCheckpoint(
        folder, "last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    if not best:
        return [last]
    return [
        KeptCheckpoint(
            folder,
            "best",
            monitor="val/acc",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        last,
    ]


class StepCheckpoint(Checkpoint):
    """Saves `step.ckpt` within an epoch, every so often and when a signal asks to stop.

    It also makes a run go on exactly there: with the next batch, and with what the
    epoch's metrics had added up. At the end of an epoch `last.ckpt` is saved instead,
    and `step.ckpt` goes. Put it last.

    Args:
        path: The file, or None to save nothing and only stop.
        every_n_steps: How often; 0 for at a signal only.
        stop: Who notes the signals.
        finite_loss: Who knows whether the weights are worth saving.
    """

    def __init__(
        self,
        path: Path | None,
        every_n_steps: int,
        stop: StopSignal,
        finite_loss: FiniteLoss,
    ) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.stop, self.finite_loss = stop, finite_loss

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Go on with the batch after the last one."""
        loader: Any = trainer.train_dataloader
        epoch, batch = divmod(trainer.global_step, int(trainer.num_training_batches))
        loader.resume_at(epoch, batch)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save, if it is time to; stop, if a signal came.

        Raises:
            DivergedError: A loss was not finite, so nothing is saved.
            StoppedError: A signal came.
        """
        if not _steps_in_epoch(trainer):
            return  # the epoch is over: `last.ckpt` is next
        signum = self.stop.agreed(trainer)
        is_due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if self.path is not None and (signum or is_due):
            self.finite_loss.check(trainer)
            trainer.save_checkpoint(self.path)
        if signum:
            raise StoppedError(signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Drop what `last.ckpt` has overtaken; stop, if a signal came.

        Raises:
            StoppedError: A signal came.
        """
        if self.path is not None and trainer.is_global_zero:
            self.path.unlink(missing_ok=True)
        signum = self.stop.agreed(trainer)
        if signum:
            raise StoppedError(signum)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Within an epoch, add the sums of its metrics, of every process."""
        if _steps_in_epoch(trainer):
            checkpoint["epoch_metrics"] = {
                metric: pl_module.all_gather(_metric(pl_module, metric).metric_state)
                for metric in EPOCH_METRICS
            }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Give every process its sums back."""
        for metric, sums in checkpoint.get("epoch_metrics", {}).items():
            for name, value in sums.items():
                own = value.view(trainer.world_size, -1)[trainer.global_rank]
                state = getattr(_metric(pl_module, metric), name)
                state.copy_(own.view_as(state))


class ConfigInCheckpoint(Callback):
    """Stores what a run is in every checkpoint, for a resume to compare."""

    def __init__(self, config: dict[str, Any], fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Add configuration, number of processes and fingerprint of the images."""
        checkpoint["config"] = self.config
        checkpoint["world_size"] = trainer.world_size
        checkpoint["images"] = self.fingerprint


def _metric(module: Any, name: str) -> Metric:
    metric: Metric = getattr(module, name)
    return metric


def _steps_in_epoch(trainer: pl.Trainer) -> int:
    """Steps since the last whole epoch."""
    return int(trainer.global_step % trainer.num_training_batches)
