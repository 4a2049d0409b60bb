"""A dated report of the runs on record of the recipes in configs/.

    python benchmarks/accuracy_report.py --output FILE.md

The README's table has means; here is every run they are of, each seed's newest, and how
far any two recipes are apart where both have run often enough.
"""

import contextlib
import datetime
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.compare import FEWEST, comparison
from benchmarks.tables import (
    ACCURACIES,
    RUNS,
    Run,
    percent,
    ranked,
    results_table,
    runs_of_configs,
    values,
)
from common import cli
from common.errors import InputError
from common.files import replacing


def accuracy_report(output: str) -> None:
    """Write what is on record of the recipes in configs/.

    Args:
        output: The page, Markdown.

    Raises:
        InputError: There is no such folder.
    """
    if not Path(output).parent.is_dir():
        raise InputError(f"--output {output}: no such folder; make it first")
    with replacing(Path(output)) as file:
        file.write(page(runs_of_configs(), datetime.date.today()).encode())


def page(runs: Sequence[Run], date: datetime.date) -> str:
    """The report, Markdown.

    Args:
        runs: All that it is about.
        date: Of today.
    """
    kinds = ranked(runs)
    newest = list(itertools.chain.from_iterable(kinds.values()))
    parts = [
        f"# Accuracy, {date.isoformat()}",
        "Of the weights of the last epoch. Rows without a val accuracy trained on all "
        "training images.",
        results_table(newest),
        "## Two recipes compared",
        f"Welch's t-test, two-sided, where both have {FEWEST} runs or more.",
        *(differences(newest) or ["No two recipes have."]),
        "## Every run",
        *(f"{' on '.join(kind[:2])}:\n\n{every_run(kinds[kind])}" for kind in kinds),
        "## Commands and versions",
        "\n".join(dict.fromkeys(f"- `{run['command']}`" for run in newest)),
        "\n".join(dict.fromkeys(f"- {run['versions']}" for run in newest)),
        f"All rows, with losses, are in `{RUNS.name}`.",
    ]
    return "\n\n".join(parts) + "\n"


def differences(runs: Sequence[Run]) -> list[str]:
    """Each pair of recipes that can be compared, the less accurate first."""
    found = []
    recipes = dict.fromkeys(recipe for recipe, *_ in reversed(ranked(runs)))
    for pair in itertools.combinations(recipes, 2):
        with contextlib.suppress(InputError):  # too few runs
            found.append(comparison(runs, *pair).replace("\n", "\n- "))
    return found


def every_run(runs: Sequence[Run]) -> str:
    """A row a run."""
    head = ["seed", *ACCURACIES.values(), "max LR", "date", "commit"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        accuracies = [percent(values([run], column)) for column in ACCURACIES]
        rest = [run["max_lr"], run["date"], run["commit"][:10]]
        lines.append(f"| {' | '.join([run['seed'], *accuracies, *rest])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run("accuracy_report.py", accuracy_report)
