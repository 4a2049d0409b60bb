"""Lightning's Trainer with this project's logger, callbacks and checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from config import Config
from datamodule import CIFAR10DataModule
from machine.hardware import Hardware
from training.checkpoint import ConfigInCheckpoint, checkpoint_callbacks
from training.guard import Guard
from training.history import History, TrainingClock
from training.progress import RunProgressBar
from training.resume import Checkpoint
from training.run_folder import RunFolder
from training.saving import BackgroundCheckpointIO
from training.tensorboard import TensorBoardDetails


def build_trainer(
    config: Config,
    hardware: Hardware,
    run: RunFolder,
    images: CIFAR10DataModule,
    history: History,
    clock: TrainingClock,
    saved: Checkpoint | None,
) -> pl.Trainer:
    """Lightning's Trainer with this project's logger, callbacks and checkpoints.

    Args:
        config: All flags, settled.
        hardware: What to train on.
        run: Where everything is written; not used with fast_dev_run.
        images: The data module, set up.
        history: Filled as the training goes on.
        clock: Likewise.
        saved: The checkpoint that the run goes on from, if any.
    """
    logger = None if config.fast_dev_run else _build_logger(run, saved)
    saving = BackgroundCheckpointIO()

    def newest_checkpoints() -> list[Path]:
        saving.wait()
        return run.newest_checkpoints()

    guard = Guard(
        None if logger is None else run.checkpoints / "step.ckpt",
        config.ckpt_every_n_steps,
        history,
        newest_checkpoints,
    )
    callbacks = _build_callbacks(config, run, logger, images, history, clock)
    return pl.Trainer(
        **hardware.arguments,
        max_epochs=config.max_epochs,
        logger=logger or False,
        callbacks=[*callbacks, guard],
        plugins=[saving],
        default_root_dir=config.output_dir,
        fast_dev_run=int(config.fast_dev_run),
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        limit_test_batches=config.limit_test_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=0,  # everything is logged once an epoch
        enable_progress_bar=False,  # ours is among the callbacks
        enable_model_summary=False,  # `show_start` shows the layers
        deterministic=config.deterministic,
        sync_batchnorm=config.sync_batchnorm,
    )


def _build_logger(run: RunFolder, saved: Checkpoint | None) -> TensorBoardLogger:
    """TensorBoard's, told to forget what comes after the checkpoint's last epoch."""
    done = 0
    if saved is not None:
        done = saved["global_step"] - len(saved["callbacks"]["History"]["lrs"])
    logger = TensorBoardLogger(
        run.path, "", "", default_hp_metric=False, purge_step=done
    )
    logger.NAME_HPARAMS_FILE = run.config.name  # or it writes an empty one
    return logger


def _build_callbacks(
    config: Config,
    run: RunFolder,
    logger: TensorBoardLogger | None,
    images: CIFAR10DataModule,
    history: History,
    clock: TrainingClock,
) -> list[Callback]:
    """What happens beside the training, in the order in which it has to."""
    callbacks: list[Callback] = [RunProgressBar(), clock]
    if config.ema_decay:
        average = exponential_average(config.ema_decay)
        callbacks.append(WeightAveraging(multi_avg_fn=average))
    if logger is None:
        return [*callbacks, history]
    callbacks += [TensorBoardDetails(logger, history), history]
    callbacks.append(ConfigInCheckpoint(asdict(config), images.fingerprint))
    has_val = config.val_size and config.limit_val_batches
    return callbacks + checkpoint_callbacks(run.checkpoints, best=bool(has_val))


def exponential_average(
    decay: float,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]:
    """What moves averages of weights towards the new weights, given the step.

    It keeps less than `decay` at first, as TensorFlow's ExponentialMovingAverage does,
    so that it never reaches back to the weights that a short training began with.
    """

    def average(
        averages: Sequence[Tensor], weights: Sequence[Tensor], step: Tensor
    ) -> None:
        kept = ((1 + step) / (10 + step)).clamp(max=decay)  # once for all of them
        for old, new in zip(averages, weights, strict=True):
            # What does not change, as the mean of the images, stays to the last bit.
            old.copy_(old + (1 - kept) * (new - old))

    return average
