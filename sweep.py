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
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import yaml

from analysis.trials import show_trials
from common import cli
from common.errors import DivergedError, InputError, StoppedError, is_out_of_memory
from common.files import replacing
from common.text import as_typed, one_line
from config import PATHS, TYPES, Config
from train import train_with
from training.study import Pruning, SharedStudy

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

RANGE = re.compile(r"([^:,]+):([^:,]+)(:log)?")
# Their text may hold commas and colons, so they are not searched.
FREE_TEXT = PATHS | {"devices", "strategy", "download_url", "name", "logger"}
JUDGING = ("val_size", "limit_val_batches", "limit_test_batches", "tta")
USELESS = ("ckpt_path", "overwrite", "fast_dev_run")
HOPELESS = 3  # trials that all failed


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
            raise InputError("--storage needs --name, so that all share one sweep")
        for flag in USELESS:
            if getattr(self, flag) not in (None, False):
                raise InputError(
                    f"--{flag} makes no sense in a sweep; leave it out (the same "
                    "command with the same --name continues a sweep)"
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
    shared = SharedStudy(folder, flags.storage, config, space)
    try:
        while run_trial(shared, config, flags.trials):
            pass
    except StoppedError as stop:
        message = f"stopped by {stop.name} after {len(shared.finished())} trials"
        again = as_typed(["python", *command])
        cli.end_together(
            "sweep.py", f"{message}; continue with: {again}", stop.exit_code
        )
    show_trials(shared.study, folder)
    write_best(shared.study, config, folder)


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


def run_trial(shared: SharedStudy, config: Config, most: int) -> bool:
    """Train once with drawn flags; whatever becomes of it is in the study.

    Args:
        shared: The study; the folder of the trial is in its own.
        config: The flags that are fixed.
        most: Trials in all.

    Returns:
        Whether a trial was left to run.

    Raises:
        StoppedError: A signal came; the same flags are tried again.
        InputError: The first trials all failed; another error likewise.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    tell = shared.study.tell
    with shared.next_trial(most) as trial:
        if trial is None:
            return False
        log.info(f"trial {trial.number}: {trial.params}")
        folder = shared.folder / f"trial_{trial.number:04}"
        try:
            tell(trial, val_acc(trial, replace(config, **trial.params), folder))
        except TrialPruned:
            tell(trial, state=TrialState.PRUNED)
        except StoppedError:
            shared.stop(trial)
            raise
        except Exception as error:
            # What a disk or a drive does is not the fault of these flags.
            if isinstance(error, OSError) or isinstance(error.__context__, OSError):
                shared.stop(trial)
                raise
            trial.set_user_attr("error", one_line(str(error)))
            tell(trial, state=TrialState.FAIL)
            known = isinstance(error, InputError | DivergedError)
            if not (known or is_out_of_memory(error)) or is_hopeless(shared):
                raise
            log.warning(f"trial {trial.number} failed: {one_line(str(error))}")
        finally:  # what is best is trained anew, on all images
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return True


def is_hopeless(shared: SharedStudy) -> bool:
    """Whether the first trials have all failed, so that the fault is not in one."""
    trials = shared.finished()
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
    with contextlib.redirect_stdout(io.StringIO()):  # what each training shows
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
