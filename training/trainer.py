"""Lightning's Trainer with this project's loggers, callbacks and checkpoints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from config import Config
from datamodule import CIFAR10DataModule
from machine.hardware import Hardware, cudnn_benchmark
from training.averaging import ExponentialAverage
from training.checkpoint import ConfigInCheckpoint, checkpoint_callbacks
from training.cuda_graph import CudaGraph
from training.features import SAMPLE, FeaturesInCheckpoint
from training.guard import Guard
from training.history import History, TrainingClock
from training.loggers import LoggerDetails, build_loggers
from training.progress import EpochTable, RunProgressBar
from training.resume import Checkpoint
from training.run_folder import RunFolder
from training.saving import BackgroundCheckpointIO
from training.sharpness import SharpnessAware
from training.tensorboard import TensorBoardDetails


def build_trainer(
    config: Config,
    hardware: Hardware,
    run: RunFolder,
    images: CIFAR10DataModule,
    history: History,
    clock: TrainingClock,
    saved: Checkpoint | None,
    others: Sequence[Callback] = (),
) -> pl.Trainer:
    """Lightning's Trainer with this project's loggers, callbacks and checkpoints.

    Args:
        config: All flags, settled.
        hardware: What to train on.
        run: Where everything is written; not used with fast_dev_run.
        images: The data module, set up.
        history: Filled as the training goes on.
        clock: Likewise.
        saved: The checkpoint that the run goes on from, if any.
        others: Callbacks of a program around the training.

    Raises:
        InputError: A logger refuses.
    """
    loggers = [] if config.fast_dev_run else build_loggers(config, run, saved)
    guard = Guard(run, config.ckpt_every_n_steps, history)
    callbacks = _build_callbacks(config, run, loggers, images, history, clock)
    return pl.Trainer(
        **shared_arguments(config, hardware),
        max_epochs=config.max_epochs,
        logger=loggers or False,
        callbacks=[*others, *callbacks, guard],
        plugins=[BackgroundCheckpointIO()],
        default_root_dir=config.output_dir,
        fast_dev_run=int(config.fast_dev_run),
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        limit_test_batches=config.limit_test_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=0,  # everything is logged once an epoch
        enable_progress_bar=False,  # ours is among the callbacks
        enable_model_summary=False,  # `show_start` says what is trained
    )


def shared_arguments(config: Config, hardware: Hardware) -> dict[str, Any]:
    """Arguments of Lightning's Trainer that a range test has from the training."""
    deterministic = config.deterministic
    return hardware.arguments | {
        "deterministic": deterministic,
        "benchmark": cudnn_benchmark(hardware.device, deterministic=deterministic),
        "sync_batchnorm": config.sync_batchnorm,
    }


def _build_callbacks(
    config: Config,
    run: RunFolder,
    loggers: list[Logger],
    images: CIFAR10DataModule,
    history: History,
    clock: TrainingClock,
) -> list[Callback]:
    """What happens beside the training, in the order in which it has to."""
    callbacks: list[Callback] = [RunProgressBar(), clock]
    if config.ema_decay:
        callbacks.append(ExponentialAverage(config.ema_decay))
    if config.sam_radius:
        callbacks.append(SharpnessAware(config.sam_radius, config.sam_share))
    if config.cuda_graph:
        callbacks.append(CudaGraph())
    if config.fast_dev_run:
        return [*callbacks, history, EpochTable(history)]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            callbacks.append(TensorBoardDetails(logger, history))
    callbacks += [LoggerDetails(history), history, EpochTable(history)]
    callbacks.append(ConfigInCheckpoint(asdict(config), images.fingerprint))
    callbacks.append(FeaturesInCheckpoint(images.sample(SAMPLE)))
    has_val = config.val_size and config.limit_val_batches
    return callbacks + checkpoint_callbacks(run.checkpoints, best=bool(has_val))
