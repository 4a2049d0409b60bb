"""The run folder: what a run leaves behind, and the checkpoints to go on from.

config.yaml            the resolved configuration; `train.py --config` runs it again
metrics.csv            a row an epoch
metrics.json           the final figures
curves.png             loss and accuracy by epoch
lr_finder.png          the LR range test, if there was one
checkpoints/last.ckpt  the last finished epoch
checkpoints/best.ckpt  the best one by val/acc, if anything is held out
events.out.tfevents.*  for TensorBoard
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.utilities import rank_zero_only

from components.errors import InputError

# Not part of what a run is, so not in its config.yaml: they say where it goes, and how
# it treats what is there.
PLACE = ("output_dir", "name", "overwrite", "ckpt_path", "fast_dev_run")
FILES = (
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "curves.png",
    "lr_finder.png",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
)


class RunFolder:
    """One run's folder and the files in it.

    Args:
        output_dir: Folder of all runs.
        name: The run's own folder in it; None for time and seed, or, with `resume`, for
            the run with the newest checkpoint.
        seed: Part of the default name.
        resume: Whether the run is to go on from its newest checkpoint.
    """

    def __init__(
        self, output_dir: str, name: str | None, seed: int, *, resume: bool = False
    ) -> None:
        if name is not None and (Path(name).name != name or name in ("", ".", "..")):
            raise InputError(
                f"--name {name!r} is not the name of a folder; use --output_dir for "
                "the folder that it is in"
            )
        newest = _newest(Path(output_dir).glob("*/checkpoints/*.ckpt"))
        if name is None and resume and newest is not None:
            self.path = newest.parent.parent
        else:
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            self.path = Path(output_dir) / (name or f"{stamp}_seed{seed}")
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.yaml"
        self.metrics_csv = self.path / "metrics.csv"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint that was written last."""
        return _newest(self.checkpoints.glob("*.ckpt"))

    def check_free(self) -> None:
        """Refuse to mix a new run with an old one.

        Raises:
            InputError: The folder has a checkpoint.
        """
        if self.newest_checkpoint() is not None:
            raise InputError(
                f"{self.path} already holds a run; give another --name, --ckpt_path "
                "last to go on with it, or --overwrite to replace it"
            )

    @rank_zero_only
    def create(self, *, overwrite: bool) -> None:
        """Make the folder, and take away the files of an earlier run in it.

        Raises:
            InputError: It cannot be made or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if overwrite:
                old = [self.path / file for file in FILES]
                for path in [*old, *self.path.glob("events.out.tfevents.*")]:
                    path.unlink(missing_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--output_dir {self.path.parent}: cannot be written ({error}); choose "
                "another folder"
            ) from None

    @rank_zero_only
    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        self.config.write_text(yaml.safe_dump(settings(config), sort_keys=False))

    @rank_zero_only
    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json, whole or not at all."""
        fresh = self.path / "metrics.json.tmp"
        fresh.write_text(json.dumps(metrics, indent=2) + "\n")
        os.replace(fresh, self.path / "metrics.json")


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The flags that say what a run is, without those that say where it goes."""
    return {flag: value for flag, value in config.items() if flag not in PLACE}


def _newest(paths: Any) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
