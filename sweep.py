"""Search for good flags of train.py with Optuna, judged on held-out images.

python sweep.py --config configs/best.yaml --lr 0.001:0.01:log --weight_decay 0.1,0.3
python sweep.py --help
"""

import contextlib
import io
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pytorch_lightning as pl
import yaml
from filelock import FileLock, Timeout
from pytorch_lightning.callbacks import Callback

from analysis.trials import is_stopped, show_trials
from common import cli
from common.errors import DivergedError, InputError, StoppedError, is_out_of_memory
from common.files import replacing
from common.text import as_typed, one_line
from config import PATHS, SHAPING, TYPES, Config
from images.class_folders import is_image_folder
from train import train_with

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

RANGE = re.compile(r"([^:,]+):([^:,]+)(:log)?")
# Their text may hold commas and colons, so they are not searched.
FREE_TEXT = PATHS | {
    flag
    for flag, kind in TYPES.items()
    if {str, list} & {kind, *map(get_origin, get_args(kind)), *get_args(kind)}
    and flag not in SHAPING
}
JUDGING = ("val_size", "limit_val_batches", "limit_test_batches", "tta")
USELESS = ("ckpt_path", "overwrite", "fast_dev_run")
# With another value, trials do not compare.
FIXED = (
    *SHAPING,
    *("lr", "lr_steps", "lr_finder", "data", "limit_val_batches", "precision"),
)
STUDY_LOCK = ".study.lock"
HOPELESS = 3  # trials that all failed

Space = dict[str, "BaseDistribution"]


@dataclass(frozen=True, kw_only=True)
class Sweep(Config):
    """Search for good flags of train.py; give some a range LOW:HIGH or a list A,B,C.

    Raises:
        InputError: A value is out of its range, or makes no sense in a sweep.
    """

    trials: int = 20
    """Trials in all, those of other processes and failed ones included."""
    storage: str | None = None
    """Address of a database that several machines share; null for a file."""

    def __post_init__(self) -> None:
        """Check what a training would not mind."""
        super().__post_init__()
        if self.trials < 1:
            raise InputError(f"--trials must be at least 1, got {self.trials}")
        if self.storage is not None and self.name is None:
            raise InputError("--storage needs --name, by which all know the sweep")
        for flag in USELESS:
            if getattr(self, flag) not in (None, False):
                raise InputError(
                    f"--{flag} makes no sense in a sweep; leave it out (the same "
                    "command with the same --name goes on with a sweep)"
                )
        for flag in ("val_size", "limit_val_batches"):
            if getattr(self, flag) == 0:
                raise InputError(
                    f"--{flag} is 0, but a sweep chooses on held-out images; leave it "
                    "out"
                )
        if str(self.devices) != "1" or self.num_nodes != 1:
            raise InputError(
                "a trial trains on one device; leave --devices and --num_nodes out, "
                "and start the same command with --name several times"
            )


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


def sweep(flags: Sweep, searched: dict[str, str], command: list[str]) -> None:
    """Train trial after trial, and show at the end which flags did best.

    Args:
        flags: All flags; those that are searched have some value.
        searched: Ranges and lists as text, by flag.
        command: The command line, to go on with.

    Raises:
        InputError: A range is wrong, the sweep was begun with others, or nothing works.
    """
    if find_spec("optuna") is None:
        raise InputError("it needs optuna; pip install -r requirements-extras.txt")
    if not searched:
        raise InputError(
            "nothing to search for; give a flag a range or a list, such as --lr "
            "0.001:0.01:log or --cutout 4,8"
        )
    space = {flag: read_space(flag, text) for flag, text in searched.items()}
    name = flags.name or time.strftime("%Y-%m-%d_%H-%M-%S_sweep")
    if flags.name is None:
        command = [*command, "--name", name]
    folder = Path(flags.output_dir) / name
    config = Config(**{flag: getattr(flags, flag) for flag in TYPES})
    study = open_study(folder, flags.storage, config, space)
    try:
        while run_trial(study, config, space, folder, flags.trials):
            pass
    except StoppedError as stop:
        message = f"stopped by {stop.name} after {len(finished(study))} trials"
        again = as_typed(["python", *command])
        cli.end_together("sweep.py", f"{message}; go on with: {again}", stop.exit_code)
    show_trials(study, folder)
    write_best(study, config, folder)


def read_space(flag: str, text: str) -> "BaseDistribution":
    """What to draw a flag from: LOW:HIGH, LOW:HIGH:log or A,B,C.

    Raises:
        InputError: It is none of these, or a value is not one of the flag's.
    """
    from optuna import distributions

    if flag in JUDGING:
        raise InputError(f"--{flag} decides how trials are judged; give it one value")
    if "," in text:
        values = [read_value(flag, part) for part in text.split(",")]
        return distributions.CategoricalDistribution(values)
    parts = RANGE.fullmatch(text)
    ends = [read_value(flag, part) for part in parts.groups()[:2]] if parts else []
    is_log = parts is not None and parts[3] is not None
    are_numbers = bool(ends) and all(type(end) in (int, float) for end in ends)
    if not are_numbers or ends[0] >= ends[1] or (is_log and ends[0] <= 0):
        raise InputError(
            f"--{flag} {one_line(text)}: no range; give LOW:HIGH of two numbers, "
            "LOW:HIGH:log above 0, or a list A,B,C"
        )
    low, high = ends
    if type(low) is type(high) is int:
        return distributions.IntDistribution(low, high, log=is_log)
    return distributions.FloatDistribution(low, high, log=is_log)


def read_value(flag: str, text: str) -> Any:
    """A value of a flag.

    Raises:
        InputError: It is out of the flag's range.
    """
    values = cli.parse(Config, [f"--{flag}={text}"], "sweep.py")
    return getattr(Config(**values), flag)


def open_study(
    folder: Path, storage: str | None, config: Config, space: Space
) -> "Study":
    """The study of a sweep, new or as it was left.

    Args:
        folder: The sweep's; it gets `study.db` where there is no `storage`.
        storage: Address of a database, or None.
        config: The flags that are fixed.
        space: What the others are drawn from.

    Raises:
        InputError: It was begun with other flags, or folder or database cannot be
            opened.
    """
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Not before the rate has passed its peak, at a fifth of the training; and never
    # where lengths differ, for then an epoch of one is not that of another.
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=config.max_epochs // 4)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(
            f"--name {one_line(folder.name)}: {one_line(folder)} is a file; give "
            "another name"
        ) from None
    file = URL.create("sqlite", database=str(folder.absolute() / "study.db"))
    with FileLock(folder / STUDY_LOCK):
        try:
            known = [] if storage else optuna.get_all_study_names(str(file))
            study = optuna.create_study(
                storage=storage or str(file),
                study_name=known[0] if known else folder.name,  # if it was renamed
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.NopPruner() if "max_epochs" in space else pruner,
            )
        except Exception as error:  # of many databases and their drivers
            raise InputError(
                f"--storage {storage or folder / 'study.db'}: cannot be opened "
                f"({one_line(str(error))}); give another"
            ) from None
        check_same_sweep(study, config, space, on_this_machine=storage is None)
        give_up_dead(study, folder, on_this_machine=storage is None)
    log.info(f"{folder}: {len(finished(study))} trials are done")
    return study


def check_same_sweep(
    study: "Study", config: Config, space: Space, *, on_this_machine: bool
) -> None:
    """Refuse to mix trials that do not compare.

    Args:
        study: The sweep's.
        config: The flags that are fixed.
        space: What the others are drawn from.
        on_this_machine: Whether all trials are.

    Raises:
        InputError: The sweep was begun with other flags or ranges.
    """
    fixed = {flag: getattr(config, flag) for flag in FIXED}
    now = {flag: str(value) for flag, value in (fixed | space).items()}
    before = study.user_attrs.get("flags", now)
    folder = Path(config.data_dir).resolve()
    # CIFAR-10 is the same wherever it lies; another machine may have its own places.
    if on_this_machine and ("data_dir" in before or is_image_folder(folder)):
        now["data_dir"] = str(folder)
        before = {"data_dir": str(folder)} | before  # before, there may have been none
    for flag in now.keys() | before.keys():
        if now.get(flag) != before.get(flag):
            raise InputError(
                f"--{flag} is {now.get(flag)}, but the sweep was begun with "
                f"{before.get(flag)}; give the old value, or another --name"
            )
    study.set_user_attr("flags", now)


def give_up_dead(study: "Study", folder: Path, *, on_this_machine: bool) -> None:
    """End the trials whose process was killed; their flags are tried again.

    It needs the study's lock: where a trial is new, its own lock is not held yet.

    Args:
        study: The sweep's.
        folder: Likewise.
        on_this_machine: Whether all trials are; a lock of another is not seen here.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        path = lock_of(folder, trial.number)
        if (path.exists() or on_this_machine) and not is_held(path):
            stop(study, trial)
            path.unlink(missing_ok=True)


def lock_of(folder: Path, number: int) -> Path:
    """The file whose lock a trial holds for as long as its process lives."""
    return folder / f".trial_{number:04}.lock"


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def stop(study: "Study", trial: "Trial | FrozenTrial") -> None:
    """End a trial that is not to count, and try its flags again."""
    from optuna.trial import TrialState

    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params)


@contextlib.contextmanager
def next_trial(
    study: "Study", space: Space, folder: Path, most: int
) -> Iterator["Trial | None"]:
    """A trial with drawn flags, and a sign to others that it is alive.

    Args:
        study: The sweep's.
        space: What flags are drawn from.
        folder: The sweep's, for the sign.
        most: Trials in all; None is given where so many are over or under way.
    """
    with FileLock(folder / STUDY_LOCK):
        if len(finished(study)) + under_way(study, folder) >= most:
            yield None
            return
        trial = study.ask(space)
        path = lock_of(folder, trial.number)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield trial
    finally:
        lock.release()
        path.unlink(missing_ok=True)  # Windows has it go by releasing it


def finished(study: "Study") -> list[Any]:
    """The trials that are over, but those that a signal ended."""
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.state.is_finished() and not is_stopped(one)]


def under_way(study: "Study", folder: Path) -> int:
    """How many trials processes of this machine are at."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    paths = [lock_of(folder, trial.number) for trial in running]
    return sum(path.exists() and is_held(path) for path in paths)


def run_trial(
    study: "Study", config: Config, space: Space, folder: Path, most: int
) -> bool:
    """Train once with drawn flags; whatever becomes of it is in the study.

    Args:
        study: The sweep's.
        config: The flags that are fixed.
        space: What the others are drawn from.
        folder: The sweep's; that of the trial is in it.
        most: Trials in all.

    Returns:
        Whether a trial was left to run.

    Raises:
        StoppedError: A signal came; the same flags are tried again.
        InputError: The first trials all failed; another error likewise.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    with next_trial(study, space, folder, most) as trial:
        if trial is None:
            return False
        log.info(f"trial {trial.number}: {trial.params}")
        own = folder / f"trial_{trial.number:04}"
        try:
            study.tell(trial, val_acc(trial, replace(config, **trial.params), own))
        except TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except StoppedError:
            stop(study, trial)
            raise
        except Exception as error:
            # What a disk or a drive does is not the fault of these flags.
            if isinstance(error, OSError) or isinstance(error.__context__, OSError):
                stop(study, trial)
                raise
            trial.set_user_attr("error", one_line(str(error)))
            study.tell(trial, state=TrialState.FAIL)
            known = isinstance(error, InputError | DivergedError)
            if not (known or is_out_of_memory(error)) or is_hopeless(study):
                raise
            log.warning(f"trial {trial.number} failed: {one_line(str(error))}")
        finally:  # what is best is trained anew, on all images
            shutil.rmtree(own / "checkpoints", ignore_errors=True)
    return True


def is_hopeless(study: "Study") -> bool:
    """Whether the first trials have all failed, so that the fault is not in one."""
    trials = finished(study)
    return len(trials) >= HOPELESS and all("error" in one.user_attrs for one in trials)


def val_acc(trial: "Trial", config: Config, folder: Path) -> float:
    """Accuracy on the held-out images after the last epoch; the test set stays unseen.

    Raises:
        TrialPruned: The trial is not worth its time.
        InputError: There is nothing to judge it by.
    """
    judged = replace(
        config,
        output_dir=folder.parent,
        name=folder.name,
        overwrite=True,
        limit_test_batches=0,
        report=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the layers, again and again
        metrics = train_with(judged, [Pruning(trial)])
    if metrics["val/acc"] is None:
        raise InputError(
            "a sweep chooses on held-out images, and of so few none is held out; give "
            "--val_size or more images"
        )
    return float(metrics["val/acc"])


def write_best(study: "Study", config: Config, folder: Path) -> None:
    """Write the best flags as a recipe, and say how to train with them."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        print("no trial came to its end")
        return
    best = replace(config, **study.best_params)
    with replacing(folder / "best.yaml", "w") as file:
        yaml.safe_dump(best.record(), file, sort_keys=False)
    print(
        f"best: trial {study.best_trial.number}, val/acc {study.best_value:.4f}; "
        f"{as_typed(['train.py', '--config', str(folder / 'best.yaml')])} trains with "
        "its flags"
    )


def split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Part a command line into ranges and lists, by flag, and what train.py knows."""
    searched: dict[str, str] = {}
    rest: list[str] = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if is_searched(flag, value):
            searched[flag[2:]] = value
        elif rest and is_searched(rest[-1], argument):
            searched[rest.pop()[2:]] = argument
        else:
            rest.append(argument)
    return searched, rest


def is_searched(flag: str, value: str) -> bool:
    """Whether an argument and its value are a range or a list of a flag."""
    is_flag = flag.startswith("--") and flag[2:] in TYPES.keys() - FREE_TEXT
    return is_flag and ("," in value or ":" in value)


def main() -> None:
    """The command line."""
    command = [*sys.argv]
    searched, sys.argv[1:] = split(sys.argv[1:])

    def run(**values: Any) -> None:
        sweep(Sweep(**values), searched, command)

    cli.run("sweep.py", run, flags=Sweep)


if __name__ == "__main__":
    main()
