"""The README's table of results, from the runs on record.

    python benchmarks/tables.py --add runs/NAME --recipe "what it is"
    python benchmarks/tables.py

The first adds a finished run to `benchmarks/results/runs.csv`, as recipe.py does by
itself. Both write the table between the two markers in the README anew.
"""

import datetime
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import Row, add_row, read_rows
from common import cli
from common.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent
RUNS = PROJECT / "benchmarks" / "results" / "runs.csv"
README = PROJECT / "README.md"
CONFIGS = PROJECT / "configs"
TIMES = ("seconds", "fit_seconds", "images_per_second")
ACCURACIES = {
    "test/acc": "test accuracy",
    "test/acc_tta": "with flip TTA",
    "val/acc": "val accuracy",
}

# Columns that every run on record has, whatever else was measured.
RUN = ("recipe", "seed", "device", "precision", "commit")

Run = Row
Kind = tuple[str, str, str]  # recipe, device, precision


def add_run(
    folder: Path,
    recipe: str,
    runs: Path = RUNS,
    *,
    timed: bool = True,
    commit: str | None = None,
) -> None:
    """Add a run's metrics.json as a row of the CSV file `runs`.

    Args:
        folder: The run folder.
        recipe: Name under which runs that differ only in their seed are put together.
        runs: The CSV file; made when it is not there.
        timed: Whether its times are worth keeping: not if other work ran beside it.
        commit: That of the code that ran; None for the one in metrics.json.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    if not timed:
        metrics |= {name: "" for name in TIMES if name in metrics}
    if commit is not None:
        metrics["commit"] = commit
    today = datetime.date.today().isoformat()
    add_row(runs, {"date": today, "recipe": recipe, **metrics})


def read_runs(runs: Path = RUNS) -> list[Run]:
    """All runs on record, oldest first; none where there is no file yet.

    Raises:
        InputError: The file is no record of runs.
    """
    return read_rows(runs, *RUN)


def read_given(runs: str) -> list[Run]:
    """The same, of the file that `--runs` names, which must be there.

    Raises:
        InputError: It is not, or is no record of runs.
    """
    if not Path(runs).is_file():
        raise InputError(f"--runs {runs}: no such file; give that of recipe.py")
    return read_runs(Path(runs))


def runs_of_configs() -> list[Run]:
    """The runs of those recipes that the head of a file in configs/ quotes.

    They are what the README shows; trials of other lengths and rates are in the CSV.
    """
    heads = "".join(path.read_text(encoding="utf-8") for path in CONFIGS.glob("*.yaml"))
    return [run for run in read_runs() if f'"{run["recipe"]}"' in heads]


def by_kind(runs: Sequence[Run]) -> dict[Kind, list[Run]]:
    """Runs that differ in their seed only, of which the newest of each seed counts.

    So a recipe that was measured again, after a change of the code, is not taken for
    twice as many independent runs.
    """
    groups: dict[Kind, dict[str, Run]] = {}
    for run in runs:
        kind = run["recipe"], run["device"], run["precision"]
        groups.setdefault(kind, {})[run["seed"]] = run
    return {kind: list(seeds.values()) for kind, seeds in groups.items()}


def ranked(runs: Sequence[Run]) -> dict[Kind, list[Run]]:
    """The same, the most accurate kind first."""

    def accuracy(same: list[Run]) -> float:
        found = values(same, "test/acc") or values(same, "val/acc")
        return statistics.mean(found or [0])

    groups = by_kind(runs).items()
    return dict(sorted(groups, key=lambda group: accuracy(group[1]), reverse=True))


def values(runs: Sequence[Run], column: str) -> list[float]:
    """What is in a column, without the runs for which it was not measured."""
    return [float(run[column]) for run in runs if run.get(column)]


def results_table(runs: Sequence[Run]) -> str:
    """A row a recipe and device, the most accurate first: mean, spread and number."""
    head = ["recipe", *ACCURACIES.values(), "n", "seconds a run", "of them training"]
    lines = [f"| {' | '.join([*head, 'on'])} |", f"|{'---|' * (len(head) + 1)}"]
    names = short_names(run["recipe"] for run in runs)
    for (recipe, device, precision), same in ranked(runs).items():
        cells = [
            names[recipe],
            *(percent(values(same, column)) for column in ACCURACIES),
            str(len(same)),
            median(values(same, "seconds")),
            median(values(same, "fit_seconds")),
            f"{device}, {precision}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short_names(recipes: Iterable[str]) -> dict[str, str]:
    """Each recipe's name without its flags, if no other one is called the same then.

    "best on cifar10, 24 epochs, lr 0.0035" is "best on cifar10, 24 epochs".
    """
    short = {recipe: ", ".join(recipe.split(", ")[:2]) for recipe in recipes}
    count = Counter(short.values())
    return {recipe: s if count[s] == 1 else recipe for recipe, s in short.items()}


def percent(shares: Sequence[float]) -> str:
    """Mean in percent, with standard deviation and range where there are several."""
    if not shares:
        return ""
    ends = f" ({100 * min(shares):.2f} to {100 * max(shares):.2f})"
    return f"{spread(shares)} %{ends if shares[1:] else ''}"


def spread(shares: Sequence[float]) -> str:
    """Mean times 100, with the standard deviation where there are several."""
    if not shares:
        return ""
    mean = f"{100 * statistics.mean(shares):.2f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.2f}" if shares[1:] else mean


def median(seconds: Sequence[float]) -> str:
    """The median, with hundredths where it is short."""
    if not seconds:
        return ""
    middle = statistics.median(seconds)
    return f"{middle:.2f}" if middle < 60 else f"{middle:.0f}"


def with_table(page: str, table: str, name: str = "results") -> str:
    """A page with the table between the two markers of this name."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def tables(
    add: str | None = None,
    recipe: str = "default",
    timed: bool = True,
) -> None:
    """Rebuild the README's table of results.

    Args:
        add: Folder of a finished run to add first.
        recipe: Name of that run's recipe.
        timed: Whether its times are worth keeping: not if other work ran beside it.

    Raises:
        InputError: The run is not there.
    """
    if add is not None:
        if not (Path(add) / "metrics.json").is_file():
            raise InputError(f"--add {add}: no metrics.json in it; give a finished run")
        add_run(Path(add), recipe, timed=timed)
    table = results_table(runs_of_configs())
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_table(readme, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    cli.run("tables.py", tables)
