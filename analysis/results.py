"""Results of a run: figures, pictures and report, in the folder and in its loggers."""

import logging
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only

from analysis.evaluation import Evaluation, evaluate_images
from analysis.figures import (
    confusion_figure,
    curves_figure,
    lr_finder_figure,
    mistakes_figure,
    own_style,
    per_class_figure,
    reliability_figure,
    rendered,
    samples_figure,
)
from analysis.finished_run import open_run, read_run
from analysis.report import write_report
from analysis.samples import first_samples
from common.errors import InputError, show_traceback
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import WITH_TTA, LitCustomResNet
from training.history import Row
from training.loggers import end_loggers, hyperparameters, log_picture
from training.lr_finder import RangeTest
from training.run_folder import RunFolder
from training.tensorboard import TensorBoard

log = logging.getLogger(__name__)

# Metrics in the order in which to look at them.
RANKED = ("test/acc", *WITH_TTA, "val/acc", "train/acc", "test/loss", "val/loss")
RANKED += ("train/loss",)
BATCH_IMAGES = 32  # in train_batch.png


@rank_zero_only
@own_style()
def write_start(
    run: RunFolder,
    trainer: pl.Trainer,
    config: Config,
    images: CIFAR10DataModule,
    test: RangeTest | None,
) -> None:
    """Write the configuration, some images, and the range test if there was one.

    A trial leaves nothing, here and in `write_results`.
    """
    if run.is_trial:
        return
    run.write_config(config)
    seen = first_samples(images, BATCH_IMAGES)
    figure = samples_figure(seen.augmented, seen.labels, images.classes)
    _write(run, "train_batch.png", figure)
    if test is not None:
        run.write_range_test(test)
        picture = _write(run, "lr_finder.png", lr_finder_figure(test))
        log_picture(trainer.loggers, "lr_finder", picture, 0)


@rank_zero_only
@own_style()
def write_results(
    run: RunFolder,
    trainer: pl.Trainer,
    module: LitCustomResNet,
    images: CIFAR10DataModule,
    config: Config,
    metrics: dict[str, Any],
    rows: list[Row],
) -> None:
    """Write what a finished run leaves for people and programs, and log it.

    Args:
        run: Its folder.
        trainer: Its Trainer, whose loggers get the same.
        module: Trained and tested.
        images: What it was trained on.
        config: All flags.
        metrics: What metrics.json is to hold.
        rows: A row an epoch.
    """
    if run.is_trial:
        return
    if config.limit_test_batches:
        figure = confusion_figure(module.confusion, module.hparams["classes"])
        picture = _write(run, "confusion_matrix.png", figure)
        log_picture(trainer.loggers, "test/confusion", picture, trainer.global_step)
    run.write_metrics(metrics)
    _write(run, "curves.png", curves_figure(rows))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_results(hyperparameters(config), RANKED)
    if config.report and config.limit_test_batches:
        _write_report(run, trainer, images)
    end_loggers(trainer.loggers)


def _write_report(
    run: RunFolder, trainer: pl.Trainer, images: CIFAR10DataModule
) -> None:
    """Evaluate the test images once more, for report.html and for the loggers.

    The training is done and saved: what goes wrong here is a line in the log.
    """
    try:
        finished = read_run(run.path)
        model, images = open_run(finished, images=images)
        model = model.to(trainer.strategy.root_device)
        # Shapes that come a few times are not worth cuDNN's search.
        torch.backends.cudnn.benchmark = False
        evaluation = evaluate_images(model, *images.test_set)
        _log_pictures(trainer, evaluation)
        write_report(finished, evaluation, images)
    except (InputError, OSError) as error:
        log.warning(f"no report.html: {error}")
        show_traceback()


def _write(run: RunFolder, name: str, figure: Figure) -> NDArray[np.uint8]:
    """Write a figure into the run folder; the loggers get the same picture."""
    picture = rendered(figure, dpi=150)  # once: it is what takes time
    Image.fromarray(picture).save(run.path / name)
    return picture


def _log_pictures(trainer: pl.Trainer, evaluation: Evaluation) -> None:
    pictures = {
        "test/per_class": per_class_figure(evaluation.counts, evaluation.classes),
        "test/reliability": reliability_figure(evaluation.calibration),
    }
    if evaluation.mistakes:
        pictures["test/mistakes"] = mistakes_figure(evaluation.mistakes)
    for name, figure in pictures.items():
        log_picture(trainer.loggers, name, rendered(figure), trainer.global_step)
