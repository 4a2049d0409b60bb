"""What a run shows on the terminal and writes down, at its start and at its end."""

import logging
import shlex
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from analysis import report
from analysis.figures import (
    confusion_figure,
    curves_figure,
    lr_finder_figure,
    mistakes_figure,
    own_style,
    per_class_figure,
    reliability_figure,
)
from analysis.findings import Findings
from common.errors import InputError, show_traceback
from datamodule import CIFAR10DataModule
from lightning_module import WITH_TTA, LitCustomResNet
from training.history import Row
from training.lr_finder import RangeTest
from training.resume import IDENTITY
from training.run_folder import RunFolder

log = logging.getLogger(__name__)


@rank_zero_only
def show_start(layers: str, images: str, config: dict[str, Any]) -> None:
    """Print what is about to be trained."""
    print(layers)
    print(images)
    print(
        f"max LR {config['lr']:.3g}, batches of {config['batch_size']}, "
        f"{config['max_epochs']} epochs, {config['precision']}",
        flush=True,
    )


@rank_zero_only
@own_style()
def write_start(
    run: RunFolder, trainer: pl.Trainer, config: dict[str, Any], test: RangeTest | None
) -> None:
    """Write the configuration, and the range test if there was one."""
    run.write_config(config)
    if test is not None:
        figure = lr_finder_figure(test)
        figure.savefig(run.path / "lr_finder.png", dpi=150)
        _logger(trainer).experiment.add_figure("lr_finder", figure)


@rank_zero_only
@own_style()
def log_confusion(trainer: pl.Trainer, module: LitCustomResNet) -> None:
    """Show TensorBoard the confusion matrix of the test set."""
    figure = confusion_figure(module.confusion, module.hparams["classes"])
    tag = "test/confusion"
    _logger(trainer).experiment.add_figure(tag, figure, trainer.global_step)


@rank_zero_only
@own_style()
def write_end(
    run: RunFolder,
    trainer: pl.Trainer,
    config: dict[str, Any],
    metrics: dict[str, Any],
    rows: list[Row],
) -> None:
    """Write the final figures, for people, programs and TensorBoard."""
    run.write_metrics(metrics)
    curves_figure(rows).savefig(run.path / "curves.png", dpi=150)
    final = {
        f"final/{name}": value
        for name, value in metrics.items()
        if "/" in name and value is not None
    }
    logger = _logger(trainer)
    shaping = {flag: config[flag] for flag in ("lr", "precision", "data", *IDENTITY)}
    logger.log_hyperparams(shaping, final, step=trainer.global_step)


@rank_zero_only
def write_report(
    run: RunFolder, trainer: pl.Trainer, images: CIFAR10DataModule
) -> None:
    """Look at the test images once more, for report.html and for TensorBoard.

    The training is done and saved: what goes wrong here is a line in the log.
    """
    try:
        finished = report.read_run(run.path)
        device = trainer.strategy.root_device
        findings = report.examine_run(finished, device, images)
        _log_pictures(trainer, findings)
        report.write_report(finished, findings)
    except (InputError, OSError) as error:
        log.warning(f"no report.html: {error}")
        show_traceback()


@rank_zero_only
def show_end(
    metrics: dict[str, Any], images: CIFAR10DataModule, folder: Path | None
) -> None:
    """Print the final figures, and where to look on.

    Args:
        metrics: What metrics.json holds.
        images: What the run trained on.
        folder: The run folder; None for a trial, which is too short to learn.
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
    if folder is not None:
        lines.append(("run folder", str(folder)))
    print()
    for name, value in lines:
        print(f"{name:<16} {value}")
    if folder is not None:
        print(f"\nLook at it: tensorboard --logdir {shlex.quote(str(folder.parent))}")
        warn_of_guessing(metrics, images.train_set[1])


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


@own_style()
def _log_pictures(trainer: pl.Trainer, findings: Findings) -> None:
    pictures = {
        "test/per_class": per_class_figure(findings.counts, findings.classes),
        "test/reliability": reliability_figure(findings.calibration),
    }
    if findings.mistakes:
        pictures["test/mistakes"] = mistakes_figure(findings.mistakes)
    for tag, figure in pictures.items():
        _logger(trainer).experiment.add_figure(tag, figure, trainer.global_step)


def _logger(trainer: pl.Trainer) -> TensorBoardLogger:
    assert isinstance(trainer.logger, TensorBoardLogger)
    return trainer.logger
