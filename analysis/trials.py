"""Trials of a sweep: a table, and Optuna's plots."""

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from common.files import replacing
from training.study import is_stopped

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

ENOUGH = 4  # trials from which importances can be told


def show_trials(study: "Study", folder: Path) -> None:
    """Print all trials, the best first, and write trials.csv and plots.

    Args:
        study: The sweep's.
        folder: Gets `trials.csv`, `history.png`, `parallel.png` and `importance.png`,
            where there are trials enough.
    """
    trials = study.get_trials(deepcopy=False)
    table = [row_of(trial) for trial in sorted(trials, key=_rank)]
    names = list(dict.fromkeys(name for row in table for name in row))
    with replacing(folder / "trials.csv", "w") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(table)
    shown = [names, *([str(row.get(name, "")) for name in names] for row in table)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for cells in shown:
        line = "  ".join(map(str.ljust, cells, widths))
        print(line.rstrip())
    draw(study, folder)


def _rank(trial: "FrozenTrial") -> tuple[bool, float]:
    """Complete trials come first, the best of them at the top."""
    accuracy = accuracy_of(trial)
    return trial.state.name != "COMPLETE", 0 if accuracy is None else -accuracy


def accuracy_of(trial: "FrozenTrial") -> float | None:
    """The last val/acc, of a pruned trial that of the epoch which was its last."""
    epochs = trial.intermediate_values
    return epochs[max(epochs)] if epochs else None


def row_of(trial: "FrozenTrial") -> dict[str, Any]:
    """A trial as a row of the table."""
    accuracy, duration = accuracy_of(trial), trial.duration
    return {
        "trial": trial.number,
        "state": "stopped" if is_stopped(trial) else trial.state.name.lower(),
        "val/acc": "" if accuracy is None else f"{accuracy:.4f}",
        "epochs": len(trial.intermediate_values),
        "seconds": "" if duration is None else round(duration.total_seconds(), 1),
        **{
            flag: f"{value:.4g}" if type(value) is float else value
            for flag, value in trial.params.items()
        },
        **{name: text for name, text in trial.user_attrs.items() if name == "error"},
    }


def draw(study: "Study", folder: Path) -> None:
    """Write Optuna's plots as pictures, those for which there are trials enough."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    values = [one.value for one in study.get_trials(states=(TrialState.COMPLETE,))]
    wanted: dict[str, Callable[[Study], Any]] = {}
    if values:
        wanted["history"] = plots.plot_optimization_history
        wanted["parallel"] = plots.plot_parallel_coordinate
    if len(values) >= ENOUGH and len(set(values)) > 1:
        wanted["importance"] = plots.plot_param_importances
    plt.switch_backend("agg")  # no window
    for name, plot in wanted.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Where all trials have the same value of a flag, or the same accuracy.
            warnings.filterwarnings("ignore", "Attempting to set identical")
            figure = plot(study).figure
        with replacing(folder / f"{name}.png") as file:
            figure.savefig(file, bbox_inches="tight", dpi=120)
        plt.close(figure)
