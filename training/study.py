"""The trials of a sweep in Optuna's study, which processes and machines may share."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Callback

from common.errors import InputError
from common.text import one_line
from config import SHAPING, Config
from images.class_folders import is_image_folder

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

# With another value, trials do not compare.
FIXED = (
    *SHAPING,
    *("lr", "lr_steps", "lr_finder", "data", "limit_val_batches", "precision"),
)

Space = dict[str, "BaseDistribution"]


class Pruning(Callback):
    """Ends a trial that is below the median of the others at the same epoch."""

    def __init__(self, trial: "Trial") -> None:
        self.trial = trial

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report the epoch.

        Raises:
            TrialPruned: It is below.
        """
        from optuna import TrialPruned

        accuracy = trainer.callback_metrics["val/acc"].item()
        self.trial.report(accuracy, trainer.current_epoch)
        if self.trial.should_prune():
            raise TrialPruned


class SharedStudy:
    """The study of a sweep, new or as it was left.

    While a process is at a trial, it holds the lock of the trial's file, so that others
    see that it lives. Locks of another machine are not seen here.

    Args:
        folder: The sweep's; it gets `study.db` where there is no `storage`.
        storage: Address of a database that several machines may share, or None.
        config: The flags that are fixed.
        space: What the others are drawn from.

    Raises:
        InputError: It was begun with other flags, or folder or database cannot be
            opened.
    """

    def __init__(
        self, folder: Path, storage: str | None, config: Config, space: Space
    ) -> None:
        self.folder, self.space = folder, space
        self.is_on_this_machine = storage is None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(
                f"--name {one_line(folder.name)}: {one_line(folder)} is a file; give "
                "another name"
            ) from None
        self._lock = FileLock(folder / ".study.lock")
        with self._lock:
            self.study = self._open(storage, config.max_epochs)
            self._check_same_flags(config)
        log.info(f"{folder}: {len(self.finished())} trials are done")

    def _open(self, storage: str | None, epochs: int) -> "Study":
        import optuna
        from sqlalchemy import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Not before the rate has passed its peak, at a fifth of the training; and never
        # where lengths differ, for then an epoch of one is not that of another.
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=epochs // 4)
        varies = "max_epochs" in self.space
        file = URL.create("sqlite", database=str(self.folder.absolute() / "study.db"))
        try:
            known = [] if storage else optuna.get_all_study_names(str(file))
            return optuna.create_study(
                storage=storage or str(file),
                study_name=known[0] if known else self.folder.name,  # if it was renamed
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner() if varies else pruner,
            )
        except Exception as error:  # of many databases and their drivers
            raise InputError(
                f"--storage {storage or self.folder / 'study.db'}: cannot be opened "
                f"({one_line(str(error))}); give another"
            ) from None

    def _check_same_flags(self, config: Config) -> None:
        """Refuse to mix trials that do not compare."""
        fixed = {flag: getattr(config, flag) for flag in FIXED}
        now = {flag: str(value) for flag, value in (fixed | self.space).items()}
        # A sweep of before a flag was there was begun with its default.
        defaults = {flag: str(getattr(Config(), flag)) for flag in FIXED}
        before = defaults | self.study.user_attrs.get("flags", now)
        images = Path(config.data_dir).resolve()
        # CIFAR-10 is the same wherever it lies; another machine has places of its own.
        are_own = "data_dir" in before or is_image_folder(images)
        if are_own and self.is_on_this_machine:
            now["data_dir"] = str(images)
            before = {"data_dir": str(images)} | before  # there may have been none
        for flag in now.keys() | before.keys():
            if now.get(flag) != before.get(flag):
                raise InputError(
                    f"--{flag} is {now.get(flag)}, but the sweep was begun with "
                    f"{before.get(flag)}; give the old value, or another --name"
                )
        self.study.set_user_attr("flags", now)

    @contextlib.contextmanager
    def next_trial(self, most: int) -> Iterator["Trial | None"]:
        """A trial with drawn flags, and a sign to others that it is alive.

        Args:
            most: Trials in all; None is given where so many are over or under way.
        """
        with self._lock:
            if len(self.finished()) + self._under_way() >= most:
                yield None
                return
            trial = self.study.ask(self.space)
            path = self._lock_of(trial.number)
            lock = FileLock(path)
            lock.acquire()
        try:
            yield trial
        finally:
            lock.release()
            path.unlink(missing_ok=True)  # Windows has it go by releasing it

    def finished(self) -> list["FrozenTrial"]:
        """The trials that are over, but those that a signal ended."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            one for one in trials if one.state.is_finished() and not is_stopped(one)
        ]

    def stop(self, trial: "Trial | FrozenTrial") -> None:
        """End a trial that is not to count, and try its flags again."""
        from optuna.trial import TrialState

        self.study.tell(trial.number, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params)

    def _under_way(self) -> int:
        """How many trials processes of this machine are at.

        Those whose process was killed are stopped. It needs the study's lock: where a
        trial is new, its own is not held yet.
        """
        from optuna.trial import TrialState

        count = 0
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            path = self._lock_of(trial.number)
            if not (path.exists() or self.is_on_this_machine):
                continue  # another machine's
            if _is_held(path):
                count += 1
            else:
                self.stop(trial)
                path.unlink(missing_ok=True)
        return count

    def _lock_of(self, number: int) -> Path:
        """The file whose lock a trial holds for as long as its process lives."""
        return self.folder / f".trial_{number:04}.lock"


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def is_stopped(trial: "FrozenTrial") -> bool:
    """Whether it ended for no fault of its own: a signal came, or it was killed."""
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs
