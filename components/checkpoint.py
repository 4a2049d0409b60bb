"""Checkpoints: which are kept, what is in them, and the checks before one is used."""

from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from components.errors import InputError

# What must be the same when a run goes on; other flags may change.
IDENTITY = (
    "data",
    "batch_size",
    "max_epochs",
    "val_size",
    "seed",
    "limit_train_batches",
    "weight_decay",
    "label_smoothing",
    "base_width",
    "crop_padding",
    "flip",
    "cutout",
)

Checkpoint = dict[str, Any]


class Images(Protocol):
    """What a data module says of its images."""

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def checkpoint_callbacks(folder: Path, *, best: bool) -> list[ModelCheckpoint]:
    """Callbacks that keep `best.ckpt`, by val/acc, and always `last.ckpt`.

    `save_last=True` of Lightning's would be the last *best* epoch. "last" comes after
    "best", so that the newest score is in it.
    """
    last = ModelCheckpoint(
        folder, "last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    if not best:
        return [last]
    return [
        ModelCheckpoint(
            folder,
            "best",
            monitor="val/acc",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        last,
    ]


class ConfigInCheckpoint(Callback):
    """Stores the run's configuration in every checkpoint, for a resume to compare."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Add the configuration."""
        checkpoint["config"] = self.config


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this project; nothing in it is ever run.

    Raises:
        InputError: It is not there, torn, or of something else.
    """
    if not path.is_file():
        raise InputError(
            f"--ckpt_path {path}: no such file; give a checkpoint or 'last'"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for torn and foreign files
        reason = str(error).split("\n")[0].rstrip(". ") or type(error).__name__
        raise InputError(
            f"--ckpt_path {path}: not a readable checkpoint ({reason}); give another"
        ) from None
    needed = ("config", "hyper_parameters", "state_dict", "optimizer_states")
    if not isinstance(checkpoint, dict) or not all(key in checkpoint for key in needed):
        raise InputError(
            f"--ckpt_path {path}: not a checkpoint of this project; give one that "
            "train.py has written"
        )
    return checkpoint


def check_same_run(
    checkpoint: Checkpoint, config: dict[str, Any], images: Images
) -> None:
    """Refuse to go on with other settings or images than the checkpoint's.

    Raises:
        InputError: Something that shapes the run is not what it was.
    """
    known = checkpoint["hyper_parameters"]
    for name in ("classes", "mean", "std"):
        before, now = list(known.get(name, ())), list(getattr(images, name))
        if before != now:
            raise InputError(
                f"--data_dir {config['data_dir']}: the {name} of the images are {now}, "
                f"the checkpoint's {before}; give the images that it was trained with"
            )
    for flag in IDENTITY:
        before, now = checkpoint["config"].get(flag), config[flag]
        if before != now:
            raise InputError(
                f"--{flag} is {now}, but the checkpoint was trained with {before}; a "
                "run can only go on as it began: give the old value, or start anew"
            )
