"""What a run shows on the terminal, at its start and at its end."""

import logging
import shlex
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import WITH_TTA

log = logging.getLogger(__name__)


@rank_zero_only
def show_start(layers: str, images: str, config: Config) -> None:
    """Print what is about to be trained."""
    print(layers)
    print(images)
    print(
        f"max LR {config.lr:.3g}, batches of {config.batch_size}, "
        f"{config.max_epochs} epochs, {config.precision}",
        flush=True,
    )


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
