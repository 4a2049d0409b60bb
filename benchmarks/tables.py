"""The README's table of results, from the runs on record.

    python benchmarks/tables.py --add runs/NAME --recipe "what it is"
    python benchmarks/tables.py

The first adds a finished run to `benchmarks/results/runs.csv`; both write the table
between the two markers in the README anew.
"""

import csv
import datetime
import itertools
import json
import statistics
from pathlib import Path

from jsonargparse import auto_cli

PROJECT = Path(__file__).resolve().parent.parent
RUNS = PROJECT / "benchmarks" / "results" / "runs.csv"
README = PROJECT / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

Run = dict[str, str]


def add_run(
    folder: Path, recipe: str, runs: Path = RUNS, *, timed: bool = True
) -> None:
    """Add a run's metrics.json as a row of the CSV file `runs`.

    Args:
        folder: The run folder.
        recipe: Name under which runs that differ only in their seed are put together.
        runs: The CSV file; made when it is not there.
        timed: Whether its times are worth keeping: not if other work ran beside it.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    if not timed:
        metrics |= {"seconds": "", "images_per_second": ""}
    row = {"date": datetime.date.today().isoformat(), "recipe": recipe, **metrics}
    rows = [*read_runs(runs), row] if runs.exists() else [row]
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    with runs.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_runs(runs: Path = RUNS) -> list[Run]:
    """All runs on record, oldest first."""
    with runs.open(newline="") as file:
        return list(csv.DictReader(file))


def results_table(runs: list[Run]) -> str:
    """A row a recipe and device, the most accurate first: mean, spread and number."""
    lines = [
        "| recipe | test accuracy | val accuracy | n | seconds a run | on |",
        "|---|---|---|---|---|---|",
    ]

    def kind(run: Run) -> tuple[str, str, str]:
        return run["recipe"], run["device"], run["precision"]

    def accuracy(group: tuple[tuple[str, str, str], list[Run]]) -> float:
        return statistics.mean(float(run["test/acc"]) for run in group[1])

    groups = [
        (names, list(group))
        for names, group in itertools.groupby(sorted(runs, key=kind), kind)
    ]
    for (recipe, device, precision), same in sorted(groups, key=accuracy, reverse=True):
        seconds = [float(run["seconds"]) for run in same if run["seconds"]]
        cells = [
            recipe,
            percent([run["test/acc"] for run in same]),
            percent([run["val/acc"] for run in same]),
            str(len(same)),
            f"{statistics.median(seconds):.0f}" if seconds else "",
            f"{device}, {precision}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(shares: list[str]) -> str:
    """Mean in percent, with standard deviation and range where there are several."""
    values = [100 * float(share) for share in shares if share]
    if len(values) < 2:
        return f"{values[0]:.2f} %" if values else ""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.2f} ± {spread:.2f} % ({min(values):.2f} to {max(values):.2f})"


def with_table(readme: str, table: str) -> str:
    """The README with the table between its markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def tables(add: str | None = None, recipe: str = "default", timed: bool = True) -> None:
    """Rebuild the README's table of results.

    Args:
        add: Folder of a finished run to add first.
        recipe: Name of that run's recipe.
        timed: Whether its times are worth keeping: not if other work ran beside it.
    """
    if add is not None:
        add_run(Path(add), recipe, timed=timed)
    table = results_table(read_runs())
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_table(readme, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    auto_cli(tables, as_positional=False)
