"""Results of a run: figures, pictures and report, in the folder and in its loggers."""

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from analysis import report
from analysis.evaluation import Evaluation
from analysis.figures import (
    confusion_figure,
    curves_figure,
    lr_finder_figure,
    mistakes_figure,
    own_style,
    per_class_figure,
    reliability_figure,
    rendered,
)
from common.errors import InputError, show_traceback
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import WITH_TTA, LitCustomResNet
from training.history import Row
from training.loggers import hyperparameters, log_picture
from training.lr_finder import RangeTest
from training.run_folder import RunFolder
from training.tensorboard import TensorBoard

log = logging.getLogger(__name__)

# Metrics in the order in which to look at them.
RANKED = ("test/acc", *WITH_TTA, "val/acc", "train/acc", "test/loss", "val/loss")
RANKED += ("train/loss",)


@rank_zero_only
@own_style()
def write_start(
    run: RunFolder, trainer: pl.Trainer, config: Config, test: RangeTest | None
) -> None:
    """Write the configuration, and the range test if there was one."""
    run.write_config(config)
    if test is not None:
        figure = lr_finder_figure(test)
        figure.savefig(run.path / "lr_finder.png", dpi=150)
        log_picture(trainer.loggers, "lr_finder", rendered(figure), 0)


@rank_zero_only
@own_style()
def write_end(
    run: RunFolder,
    trainer: pl.Trainer,
    config: Config,
    metrics: dict[str, Any],
    rows: list[Row],
) -> None:
    """Write the final figures, for people, programs and TensorBoard."""
    run.write_metrics(metrics)
    curves_figure(rows).savefig(run.path / "curves.png", dpi=150)
    final = [name for name in RANKED if metrics.get(name) is not None]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_results(hyperparameters(config), final)


@rank_zero_only
def write_report(
    run: RunFolder, trainer: pl.Trainer, images: CIFAR10DataModule
) -> None:
    """Evaluate the test images once more, for report.html and for the loggers.

    The training is done and saved: what goes wrong here is a line in the log.
    """
    try:
        finished = report.read_run(run.path)
        device = trainer.strategy.root_device
        evaluation = report.evaluate_run(finished, device, images)
        _log_pictures(trainer, evaluation)
        report.write_report(finished, evaluation)
    except (InputError, OSError) as error:
        log.warning(f"no report.html: {error}")
        show_traceback()


@rank_zero_only
@own_style()
def log_confusion(trainer: pl.Trainer, module: LitCustomResNet) -> None:
    """Show the loggers the confusion matrix of the test set."""
    figure = confusion_figure(module.confusion, module.hparams["classes"])
    picture, step = rendered(figure), trainer.global_step
    log_picture(trainer.loggers, "test/confusion", picture, step)


@own_style()
def _log_pictures(trainer: pl.Trainer, evaluation: Evaluation) -> None:
    pictures = {
        "test/per_class": per_class_figure(evaluation.counts, evaluation.classes),
        "test/reliability": reliability_figure(evaluation.calibration),
    }
    if evaluation.mistakes:
        pictures["test/mistakes"] = mistakes_figure(evaluation.mistakes)
    for name, figure in pictures.items():
        log_picture(trainer.loggers, name, rendered(figure), trainer.global_step)
