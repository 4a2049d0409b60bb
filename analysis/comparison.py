"""The comparison of runs: curves, flags that differ, accuracies, on one page."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from analysis import figures
from analysis.finished_run import Run
from analysis.html import COLOURS, flag, percent, svg, write_page
from analysis.report import without_folders
from config import LIMITS, SHAPING
from training.history import COLUMNS

ACCURACIES = {
    "test/acc": "test",
    "test/acc_tta": "test, flip TTA",
    "test/acc_views": "test, six views",
    "val/acc": "validation",
}
# What makes a run what it is, what it was judged by, and where it ran.
KIND = ("data", "lr", *dict.fromkeys((*SHAPING, *LIMITS)), "device", "precision")
FINDER = ("lr_steps", "lr_finder")
CIRCUMSTANCES = ("device", "commit", "versions")


class Entry(NamedTuple):
    """A run in the comparison.

    Attributes:
        name: That of its folder, with its path or a number where others have the same.
        run: The run.
        settings: Its flags and circumstances as text; a picked rate is "auto".
    """

    name: str
    run: Run
    settings: dict[str, str]


class Group(NamedTuple):
    """Runs that differ in their seed only.

    Attributes:
        names: Of the runs.
        settings: The settings in which groups differ.
        accuracies: Mean and spread of each of `ACCURACIES`, in words.
    """

    names: list[str]
    settings: dict[str, str]
    accuracies: dict[str, str]


def write_comparison(runs: Sequence[Run], path: Path, *, public: bool = False) -> Path:
    """Write a page that compares runs.

    Args:
        runs: Finished runs; their images and checkpoints are not needed.
        path: The HTML file.
        public: Whether to leave out folders of this machine.

    Raises:
        InputError: The package that fills in the template is missing.
    """
    entries = read_entries(runs, public=public)
    rows = {entry.name: entry.run.rows for entry in entries}
    measured = {name for run in runs for row in run.rows for name in row}
    known = {
        name for run in runs for name, value in run.metrics.items() if value is not None
    }
    drawings = {
        name: svg(partial(figures.comparison_figure, rows, name), f"compare {name}")
        for name in COLUMNS
        if name in measured
    }
    return write_page(
        path,
        "comparison.html",
        entries=entries,
        differing=differing([entry.settings for entry in entries]),
        groups=find_groups(entries),
        accuracies={name: ACCURACIES[name] for name in ACCURACIES if name in known},
        drawings=drawings,
        colours=COLOURS,
        shown=without_folders if public else str,
    )


def read_entries(runs: Sequence[Run], *, public: bool = False) -> list[Entry]:
    """What is compared of each run.

    Args:
        runs: Finished runs.
        public: Whether to number folders of the same name instead of giving their path.
    """
    counts = Counter(run.path.name for run in runs)
    entries = []
    for number, run in enumerate(runs, 1):
        name = run.path.name
        if counts[name] > 1:
            name = f"{name} ({number})" if public else str(run.path)
        entries.append(Entry(name, run, _settings(run)))
    return entries


def differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """The settings that are not the same in all."""
    return [
        name for name in settings[0] if len({values[name] for values in settings}) > 1
    ]


def find_groups(entries: Sequence[Entry]) -> list[Group]:
    """The runs by what makes them what they are, without the seed."""
    kinds: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(tuple(_kind(entry).values()), []).append(entry)
    groups = list(kinds.values())
    names = differing([_kind(group[0]) for group in groups])
    return [
        Group(
            [entry.name for entry in group],
            {name: group[0].settings[name] for name in names},
            {
                name: spread([entry.run.metrics.get(name) for entry in group])
                for name in ACCURACIES
            },
        )
        for group in groups
    ]


def _kind(entry: Entry) -> dict[str, str]:
    """The settings that runs which differ in their seed only have in common."""
    names = [name for name in (*KIND, *FINDER, "data_dir") if name != "seed"]
    kind = {name: entry.settings[name] for name in names}
    if entry.run.config.data != "folder":  # CIFAR-10 is the same wherever it lies
        kind["data_dir"] = ""
    if kind["lr"] != "auto":  # no range test
        kind |= dict.fromkeys(FINDER, "")
    return kind


def spread(values: Sequence[float | None]) -> str:
    """Mean, standard deviation and number, as in "94.18 ± 0.09 %, n = 5"."""
    shares = [value for value in values if value is not None]
    if not shares:
        return percent(None)
    middle = percent(mean(shares))
    if len(shares) > 1:
        number, unit = middle[:-2], middle[-2:]
        middle = f"{number} ± {100 * stdev(shares):.2f}{unit}"
    return f"{middle}, n = {len(shares)}"


def _settings(run: Run) -> dict[str, str]:
    values: dict[str, Any] = run.config.record()
    values |= {name: run.metrics[name] for name in CIRCUMSTANCES}
    if run.test is not None:
        values["lr"] = "auto"
    return {name: flag(value) for name, value in values.items()}
