"""The run folder: what a run leaves behind, and the checkpoints to go on from.

config.yaml            the resolved configuration; `train.py --config` runs it again
metrics.csv            a row an epoch
metrics.json           the final figures
curves.png             loss and accuracy by epoch
lr_finder.png          the LR range test, if there was one
report.html            all of it on one page, written last
checkpoints/last.ckpt  the last finished epoch
checkpoints/step.ckpt  within an epoch: at a signal, or every so many steps
checkpoints/best.ckpt  the best one by val/acc, if anything is held out
events.out.tfevents.*  for TensorBoard
"""

import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.utilities import rank_zero_only

from components.errors import InputError
from components.files import SUFFIX, replacing

# Not part of what a run is, so not in its config.yaml: they say where it goes, and how
# it treats what is there.
PLACE = ("output_dir", "name", "overwrite", "ckpt_path", "fast_dev_run")
FILES = (
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "curves.png",
    "lr_finder.png",
    "report.html",
    "checkpoints/last.ckpt",
    "checkpoints/step.ckpt",
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
        found = _newest_first(Path(output_dir).glob("*/checkpoints/*.ckpt"))
        self.is_stamped = name is None and not (resume and found)
        if name is None and not self.is_stamped:
            self.path = found[0].parent.parent
        else:
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            self.path = Path(output_dir) / (name or f"{stamp}_seed{seed}")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def config(self) -> Path:
        """The file of the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_csv(self) -> Path:
        """The file with a row an epoch."""
        return self.path / "metrics.csv"

    def newest_checkpoints(self) -> list[Path]:
        """The checkpoints to go on from, in the order in which to try them.

        `best.ckpt` comes last whatever its age: it may be of an epoch of which the run
        has not saved `last.ckpt`.
        """
        names = ("last.ckpt", "step.ckpt", "best.ckpt")
        last, step, best = (self.checkpoints / name for name in names)
        paths = [*_newest_first(filter(Path.exists, (last, step))), best]
        return [path for path in paths if path.exists()]

    def check_free(self) -> None:
        """Refuse to mix a new run with an old one.

        Raises:
            InputError: The folder has a checkpoint.
        """
        if self.newest_checkpoints():
            raise InputError(
                f"{self.path} already holds a run; give another --name, --ckpt_path "
                "last to go on with it, or --overwrite to replace it"
            )

    @rank_zero_only
    def create(self, *, overwrite: bool) -> None:
        """Make the folder, and take away what an earlier run left unfinished in it.

        Args:
            overwrite: Take away all files of an earlier run.

        Raises:
            InputError: It cannot be made or written.
        """
        try:
            if self.is_stamped:
                self._claim()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            old = [self.path / (file + SUFFIX) for file in FILES]
            if overwrite:
                old += [self.path / file for file in FILES]
                old += self.path.glob("events.out.tfevents.*")
            for path in old:
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
        with replacing(self.config, "w") as file:
            yaml.safe_dump(settings(config), file, sort_keys=False)

    @rank_zero_only
    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        with replacing(self.path / "metrics.json", "w") as file:
            file.write(json.dumps(metrics, indent=2) + "\n")

    def _claim(self) -> None:
        """Find a name that no other run took in the same second."""
        stamped = self.path
        for number in itertools.count(2):
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                self.path = stamped.with_name(f"{stamped.name}_{number}")


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The flags that say what a run is, without those that say where it goes."""
    return {flag: value for flag, value in config.items() if flag not in PLACE}


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
