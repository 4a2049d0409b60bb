"""Checkpoints: which are kept, what is in them, and how they are written."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from common.errors import InputError
from common.files import replacing, sealed

BEST = "best.ckpt"  # always followed by the last.ckpt of the same epoch


def serialised(checkpoint: dict[str, Any]) -> list[memoryview | bytes]:
    """What a checkpoint's file holds, in parts."""
    content = io.BytesIO()  # torch hides what goes wrong with a file
    torch.save(checkpoint, content)
    return sealed(memoryview(content.getvalue()))


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
        self.write(checkpoint, [Path(path)])

    def write(self, checkpoint: dict[str, Any], paths: Sequence[Path]) -> None:
        """Replace several files by the same, one after the other.

        Raises:
            InputError: One cannot be written; what was there before still is.
        """
        parts = serialised(checkpoint)
        for path in paths:
            try:
                with replacing(path) as file:
                    file.writelines(parts)
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be written ({error.strerror or error}); the "
                    "previous checkpoint is intact: put that right, then resume with "
                    "--ckpt_path last"
                ) from None


class KeptCheckpoint(ModelCheckpoint):
    """Knows its file again in a run folder that was moved.

    Lightning's forgets the best score where the folder has another name than before,
    and then replaces the best checkpoint by a worse one.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was known of the file, if it is in this folder."""
        # It splits at both separators: the run may come from Windows.
        name = PureWindowsPath(state_dict["best_model_path"]).name
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
    "best", so that the newest score is in it; `BackgroundCheckpointIO` counts on it.
    """
    keep = partial(
        KeptCheckpoint,
        folder,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    name = BEST.removesuffix(".ckpt")
    first = [keep(name, monitor="val/acc", mode="max")] if best else []
    return [*first, keep("last")]


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
