"""What a run shows on the terminal, at its start and at its end."""

import logging
import os
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from common.text import as_typed
from config import Config
from custom_resnet import layer_table
from datamodule import CIFAR10DataModule
from lightning_module import WITH_TTA
from machine.hardware import Hardware
from machine.provenance import device_name
from training.loggers import mlflow_store
from training.run_folder import RunFolder

log = logging.getLogger(__name__)

SOURCES = {"cifar10": "CIFAR-10", "folder": "own", "synthetic": "drawn shapes"}
TRIAL = "fast_dev_run: {}; nothing is written, the figures mean nothing"
Lines = list[tuple[str, str]]


@rank_zero_only
def show_start(
    config: Config,
    hardware: Hardware,
    images: CIFAR10DataModule,
    net: nn.Module,
    done: int,
) -> None:
    """Print what is about to be trained, a line each.

    Args:
        config: All flags, settled but for the learning rate.
        hardware: What it trains on.
        images: What it trains with.
        net: What is trained.
        done: Steps that an earlier part of the run has done.
    """
    if config.show_layers:
        print(layer_table(net), end="\n\n")
    if config.fast_dev_run:
        few = _counted(int(config.fast_dev_run), "batch", "batches")
        print(TRIAL.format(f"a trial of {few}"))
    device = device_name(hardware.device)
    if hardware.world_size > 1:
        device = f"{hardware.world_size} processes, the first on {device}"
    train, val, test = images.sizes().values()
    parameters = sum(parameter.numel() for parameter in net.parameters())
    lines = [
        ("device", f"{device}, {config.precision}"),
        (
            "images",
            f"{SOURCES[images.source]}: {train:,} training, {val:,} validation, "
            f"{test:,} test, {len(images.classes)} classes",
        ),
        ("network", f"{type(net).__name__}, {parameters:,} parameters"),
    ]
    if not config.fast_dev_run:
        lines.append(("plan", _plan(config, train, done)))
    _show(lines, width=8)


def _plan(config: Config, images: int, done: int) -> str:
    """Epochs, steps and batches of a training."""
    steps, limit = images // config.batch_size, config.limit_train_batches
    steps = int(steps * limit) if isinstance(limit, float) else min(steps, limit)
    epochs = _counted(config.max_epochs, "epoch", "epochs")
    plan = f"{epochs} of {_counted(steps, 'step', 'steps')}, batches of "
    plan += f"{config.batch_size}"
    return plan + (f", resuming after step {done:,}" if done else "")


@rank_zero_only
def show_lr(lr: float, origin: str) -> None:
    """Print the maximum learning rate, and where it comes from."""
    _show([("max LR", f"{lr:.3g}, {origin}")], width=8)


@rank_zero_only
def show_end(
    metrics: dict[str, Any], images: CIFAR10DataModule, config: Config, run: RunFolder
) -> None:
    """Print the final figures, and where to look on.

    Args:
        metrics: What metrics.json holds.
        images: What the run trained on.
        config: All flags.
        run: The run folder.
    """
    lines = [
        (f"{split} accuracy", f"{100 * metrics[f'{split}/acc']:.2f} %")
        for split in ("train", "val", "test")
        if metrics[f"{split}/acc"] is not None
    ]
    lines += [
        (words, f"{100 * metrics[name]:.2f} %")
        for name, words in WITH_TTA.items()
        if name in metrics
    ]
    lines += [
        ("max LR", f"{metrics['max_lr']:.3g}"),
        ("time", f"{metrics['seconds']:.0f} s"),
    ]
    if metrics["images_per_second"] is not None:
        lines.append(("training", f"{metrics['images_per_second']:.0f} images/s"))
    print()
    _show(lines)
    print()
    if config.fast_dev_run:
        print(TRIAL.format("every stage works"))
        return
    _show(_places(config, run))
    warn_of_guessing(metrics, images.train_set[1])


def _places(config: Config, run: RunFolder) -> Lines:
    """Where to look on, what is most worth it first."""
    runs, loggers = run.path.parent, config.loggers()
    lines: Lines = []
    if config.report and config.limit_test_batches and run.report.exists():
        lines.append(("report", str(run.report)))
    if "tensorboard" in loggers:
        command = as_typed(["tensorboard", "--logdir", str(runs)])
        lines.append(("TensorBoard", command))
    if "mlflow" in loggers and not os.environ.get("MLFLOW_TRACKING_URI"):
        command = as_typed(["mlflow", "ui", "--backend-store-uri", mlflow_store(runs)])
        lines.append(("MLflow", command))
    return [*lines, ("run folder", str(run.path))]


def _show(lines: Lines, width: int = 16) -> None:
    for name, value in lines:
        print(f"{name:<{width}} {value}", flush=True)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def warn_of_guessing(metrics: dict[str, Any], labels: Tensor) -> None:
    """Say so if a run has learned next to nothing.

    Args:
        metrics: What metrics.json holds.
        labels: int64 (N,), those of the training images.
    """
    accuracy, kind = metrics["val/acc"], "validation"
    if accuracy is None:  # nothing is held out
        accuracy, kind = metrics["train/acc"], "training"
    guessing = labels.bincount().max().item() / len(labels)
    if accuracy < min(2 * guessing, guessing + 0.1 * (1 - guessing)):
        log.warning(
            f"hardly better than guessing: {100 * accuracy:.1f} % of the {kind} images "
            f"are right, and {100 * guessing:.1f} % would be if the most common class "
            "were named each time; look at curves.png, and train for longer or with "
            f"another rate, such as --lr {0.003 if metrics['max_lr'] > 0.005 else 0.01}"
        )
