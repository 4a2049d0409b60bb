"""The run folder: its files, its lock, and the checkpoints to resume from.

config.yaml            the resolved configuration; `train.py --config` runs it again
metrics.csv            a row an epoch
metrics.json           the final figures
curves.png             loss and accuracy by epoch
train_batch.png        some training images as the training sees them
confusion_matrix.png   of the test images
lr_finder.png          the LR range test, if there was one
lr_finder.json         its numbers
report.html            all of it on one page, written last
checkpoints/last.ckpt  the last finished epoch
checkpoints/step.ckpt  within an epoch: at a signal, or every so many steps
checkpoints/best.ckpt  the best one by val/acc, if anything is held out
events.out.tfevents.*  for TensorBoard, also in train/, val/ and test/
csv/version_0/         of Lightning's CSVLogger, if there is one
wandb/                 of Weights & Biases, likewise
"""

import contextlib
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from common.errors import InputError
from common.files import remove_leftovers, replacing
from config import Config
from training.lr_finder import RangeTest

log = logging.getLogger(__name__)

LOCK = ".lock"  # held by the run that is at work in the folder
FILES = (
    "config.yaml",
    "metrics.csv",
    "metrics.json",
    "curves.png",
    "train_batch.png",
    "confusion_matrix.png",
    "lr_finder.png",
    "lr_finder.json",
    "report.html",
    "checkpoints/last.ckpt",
    "checkpoints/step.ckpt",
    "checkpoints/best.ckpt",
)
OF_LOGGERS = ("events.out.tfevents.*", "*/events.out.tfevents.*", "csv/version_*/*")


class RunFolder:
    """One run's folder and the files in it.

    Args:
        output_dir: Folder of all runs.
        name: The run's own folder in it; None for time and seed, or, with `resume`, for
            the run with the newest checkpoint.
        seed: Part of the default name.
        resume: Whether the run is to go on from its newest checkpoint.
        trial: Whether it is to write nothing.

    `is_own` says whether the files in it are of this run: it has begun, or goes on.
    """

    def __init__(
        self,
        output_dir: str | Path,
        name: str | None,
        seed: int,
        *,
        resume: bool = False,
        trial: bool = False,
    ) -> None:
        if name is not None and (Path(name).name != name or name in ("", ".", "..")):
            raise InputError(
                f"--name {name!r} is not the name of a folder; use --output_dir for "
                "the folder that it is in"
            )
        runs = Path(output_dir)
        newest = newest_run(runs) if resume and name is None else None
        self.is_stamped = name is None and newest is None
        stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_seed{seed}"
        self.path = newest or runs / (name or stamp)
        self.is_trial = trial
        self.is_own = False
        self._lock: FileLock | None = None
        self._made: list[Path] = []  # folders that nothing has been written to yet

    def __enter__(self) -> "RunFolder":
        """Keep other runs out of a folder that is there already."""
        if not self.is_trial and not self.is_stamped and self.path.is_dir():
            self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the next run in; take away a folder in which no run has begun."""
        if self._lock is not None:
            if self._made:
                with contextlib.suppress(OSError):  # Windows has it go by releasing it
                    (self.path / LOCK).unlink()
            self._lock.release()
        with contextlib.suppress(OSError):  # somebody else has put a file there
            for path in self._made:
                path.rmdir()

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

    @property
    def report(self) -> Path:
        """The report on one page, if it could be written."""
        return self.path / "report.html"

    def newest_checkpoints(self) -> list[Path]:
        """The checkpoints to go on from, in the order in which to try them.

        `best.ckpt` comes last whatever its age: it may be of an epoch of which the run
        has not saved `last.ckpt`.
        """
        names = ("last.ckpt", "step.ckpt", "best.ckpt")
        last, step, best = (self.checkpoints / name for name in names)
        return _newest_first([last, step]) + _newest_first([best])

    def check_free(self, checkpoint: Path | None = None) -> None:
        """Refuse to mix a new run with an old one; `is_own` if it is the same run.

        Args:
            checkpoint: What the run goes on from; it may be one of the folder's own.

        Raises:
            InputError: The folder has results or a checkpoint of another run.
        """
        own = self.checkpoints.resolve()
        if checkpoint is not None and checkpoint.resolve().parent == own:
            self.is_own = True
        elif self.newest_checkpoints():
            raise InputError(
                f"{self.path} already holds a run; give another --name, --ckpt_path "
                "last to resume it, or --overwrite to replace it"
                if checkpoint is None
                else f"{self.path} already holds another run than that of --ckpt_path "
                f"{checkpoint}; give another --name"
            )
        elif (self.path / "metrics.json").exists():
            raise InputError(
                f"{self.path} holds the results of a run, but no checkpoint of it; "
                "give another --name, or --overwrite to replace it"
            )

    @rank_zero_only
    def hold(self) -> None:
        """Keep other runs out for as long as this process lives, however it ends.

        Raises:
            InputError: Another run is at work in the folder, or it cannot be written.
        """
        if self._lock is not None:
            return
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"{self.path}: another run is at work in it; give another --name, or "
                "wait for its end"
            ) from None
        except NotImplementedError:  # some network drives
            log.warning(f"{self.path}: cannot be locked; start no second run in it")
        except OSError as error:
            raise self._unwritable(error) from None
        else:
            self._lock = lock

    @rank_zero_only
    def create(self) -> None:
        """Make the folder, if it is not there; nothing in it is changed yet.

        A trial needs none.

        Raises:
            InputError: It cannot be made or written, or another run is at work in it.
        """
        if self.is_trial:
            return
        try:
            parents = [path for path in self.path.parents if not path.exists()]
            is_new = self.is_stamped or not self.path.exists()
            if self.is_stamped:
                self._claim()
            self.path.mkdir(parents=True, exist_ok=True)
            self._made = [self.path, *parents] if is_new else []
            self.hold()
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def begin(self) -> None:
        """Take away what is left of another run; the folder is this run's now.

        A trial leaves everything as it is.

        Raises:
            InputError: It cannot be written.
        """
        if not self.is_trial:
            self._clear()
            self.is_own = True

    @rank_zero_only
    def _clear(self) -> None:
        self._made = []
        try:
            self.checkpoints.mkdir(exist_ok=True)
            remove_leftovers(self.path)
            remove_leftovers(self.checkpoints)
            old = [self.path / file for file in FILES]
            for pattern in OF_LOGGERS:
                old += self.path.glob(pattern)
            for path in () if self.is_own else old:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    @rank_zero_only
    def write_config(self, config: Config) -> None:
        """Write config.yaml."""
        with replacing(self.config, "w") as file:
            yaml.safe_dump(config.record(), file, sort_keys=False)

    @rank_zero_only
    def write_range_test(self, test: RangeTest) -> None:
        """Write lr_finder.json; a loss that is no number is null."""
        losses = [loss if math.isfinite(loss) else None for loss in test.losses]
        with replacing(self.path / "lr_finder.json", "w") as file:
            file.write(json.dumps(test._asdict() | {"losses": losses}) + "\n")

    @rank_zero_only
    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json."""
        with replacing(self.path / "metrics.json", "w") as file:
            file.write(json.dumps(metrics, indent=2) + "\n")

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"--output_dir {self.path.parent}: cannot be written ({error}); choose "
            "another folder"
        )

    def _claim(self) -> None:
        """Find a name that no other run took in the same second."""
        stamped = self.path
        for number in itertools.count(2):
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                if not os.path.lexists(self.path):  # a parent is a file or a dead link
                    raise
                self.path = stamped.with_name(f"{stamped.name}_{number}")


def newest_run(runs: Path) -> Path | None:
    """The run with the newest checkpoint in a folder of runs; None if there is none."""
    names = ("last", "step", "best")  # and not what export.py puts beside them
    found = _newest_first(
        path for name in names for path in runs.glob(f"*/checkpoints/{name}.ckpt")
    )
    return found[0].parent.parent if found else None


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    """Files by age; those that cannot be looked at are left out."""
    ages = {}
    for path in paths:
        with contextlib.suppress(OSError):
            ages[path] = path.stat().st_mtime_ns
    return sorted(ages, key=ages.__getitem__, reverse=True)
