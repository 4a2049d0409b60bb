"""The pictures of docs/, from the schedule and the curves on record.

    python benchmarks/pictures.py

writes SVG files to docs/pictures/. They show numbers only: the schedule is that of a
run, range tests and the sweep of rates are those on record.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import lr_finder_figure, own_style
from analysis.report import lr_schedule
from benchmarks.rows import RESULTS
from benchmarks.runs import read_runs
from benchmarks.studies import screening
from benchmarks.studies.lr_rules import lightning, picks_figure
from benchmarks.studies.lr_stability import CURVES, Tests, read_tests
from benchmarks.sweeps import AUTO, Sweep, find_sweeps
from common import cli
from machine.provenance import PROJECT
from training.lr_finder import RangeTest, smooth

BATCHES, EPOCHS = 175, 24  # of 256 in the 45,000 images that train.py trains on


def schedule_figure(max_lr: float) -> Figure:
    """Learning rate and first beta over a run of 24 epochs."""
    lrs, betas = lr_schedule(max_lr, BATCHES * EPOCHS)
    epochs = np.arange(len(lrs)) / BATCHES
    figure = Figure(figsize=(7, 4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    upper.plot(epochs, lrs, color="C0")
    peak = int(np.argmax(lrs))
    upper.annotate(
        f"max LR {max_lr:g} at epoch {epochs[peak]:.0f}",
        (epochs[peak], lrs[peak]),
        (8, 0.95 * max_lr),
    )
    upper.set(ylabel="learning rate")
    lower.plot(epochs, betas, color="C1")
    lower.set(xlabel="epoch", ylabel="first beta of Adam", xlim=(0, EPOCHS))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def range_tests_figure(tests: Tests) -> Figure:
    """All range tests: smoothed loss, our picks and those of Lightning's rule."""
    figure = Figure(figsize=(7, 2.2 * len(tests)), layout="constrained")
    panels = figure.subplots(len(tests), 1, sharex=True)
    for axes, ((recipe, batch_size), group) in zip(panels, tests.items(), strict=True):
        _draw_tests(axes, group)
        axes.set_title(f"{recipe}.yaml, batch size {batch_size}", fontsize="small")
        axes.set_ylabel("training loss, smoothed")
    panels[0].legend(loc="upper center")
    panels[-1].set_xlabel("learning rate")
    return figure


def _draw_tests(axes: Axes, tests: list[RangeTest]) -> None:
    for seed, test in enumerate(tests):
        lrs, smoothed = np.array(test.lrs), smooth(test.losses)
        axes.semilogx(lrs, smoothed, color="C0", alpha=0.5, linewidth=1)
        for label, lr, style in (
            ("pick", test.lr, "C3o"),
            ("Lightning's suggestion", lightning(test), "kx"),
        ):
            height = np.interp(np.log(lr), np.log(lrs), smoothed)
            axes.plot(lr, height, style, label=None if seed else label)
    axes.set_ylim(1.4, 4.2)
    axes.grid(alpha=0.3)


def sweep_figure(sweeps: list[Sweep]) -> Figure:
    """Accuracy over the max LR: a panel a recipe and device, a line a batch size."""
    panels: dict[tuple[str, str], list[Sweep]] = {}
    for sweep in sweeps:
        panels.setdefault((sweep.recipe, sweep.place), []).append(sweep)
    figure = Figure(figsize=(7, 3.6 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (titles, lines) in zip(grid.flat, panels.items(), strict=True):
        for number, sweep in enumerate(lines):
            _draw_sweep(axes, sweep, f"C{number}")
        axes.set_title("\n".join(titles), fontsize="small")
        axes.set(xscale="log", ylabel="held-out accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    rates = {str(lr) for sweep in sweeps for lr in sweep.accuracies} - {AUTO}
    lrs = sorted(map(float, rates))
    grid.flat[-1].set_xticks(lrs, [f"{lr:g}" for lr in lrs], minor=False)
    grid.flat[-1].set_xticks([], minor=True)
    grid.flat[-1].set_xlabel("max learning rate")
    return figure


def _draw_sweep(axes: Axes, sweep: Sweep, color: str) -> None:
    """A point a run, a line through the means of the fixed rates, stars for auto."""
    label, accuracies = f"batch size {sweep.batch_size}", 100 * sweep.accuracies
    means = accuracies.drop(columns=AUTO, errors="ignore").mean()
    axes.plot([float(lr) for lr in means.index], means, color, label=label)
    for lr, shares in accuracies.items():
        style: dict[str, Any] = {"marker": "."}
        if lr == AUTO:
            style = {"marker": "*", "s": 120, "label": f"{label}, picks of auto"}
        axes.scatter(sweep.max_lrs[lr], shares, color=color, **style)


# Drawn again they are the same files, and their letters are not pictures.
@own_style({"svg.hashsalt": "docs", "svg.fonttype": "none"})
def pictures(folder: Path = PROJECT / "docs" / "pictures") -> None:
    """Draw all pictures.

    Args:
        folder: Where they go.
    """
    tests = read_tests(CURVES)
    first = tests["best", 256][0]
    figures = {
        "schedule": schedule_figure(first.lr),
        "range_test": lr_finder_figure(first),
        "range_tests": range_tests_figure(tests),
        "lr_rules": picks_figure(tests),
    }
    sweeps = find_sweeps(read_runs(RESULTS / "lr_sweep.csv"))
    figures["lr_sweep"] = sweep_figure(sweeps)
    effects = screening.figure()
    if effects is not None:
        figures["screening"] = effects
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    print(*(f"{folder / name}.svg" for name in figures), sep="\n")


if __name__ == "__main__":
    cli.run("pictures.py", pictures)
