"""All tables of the README, docs/ and weights/ that follow from what is on record.

    python benchmarks/tables.py
    python benchmarks/tables.py --check
    python benchmarks/tables.py --add runs/NAME --recipe "what it is"

The first writes them anew, between the markers in the pages; the second says which of
them are not what is on record. The last puts a finished run of train.py on record
before, as measure.py does by itself.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from benchmarks import (
    gpu_visit,
    model_card,
    operations,
    pace,
    saving,
    scale,
    ship,
)
from benchmarks.gains import comparison, left_out_table, steps_tables
from benchmarks.recipes import read_recipe, read_run
from benchmarks.rows import RESULTS, markdown
from benchmarks.runs import (
    add_run,
    labels,
    read_runs,
    results_table,
    runs_of_configs,
)
from benchmarks.studies import (
    airbench,
    explanations,
    fine_tuning,
    last_epochs,
    lr_rules,
    lr_small,
    photos,
    screening,
    small_maps,
    unknown_images,
)
from benchmarks.sweeps import find_sweeps, sweep_table
from common import cli
from common.errors import InputError
from machine.provenance import PROJECT


class Table(NamedTuple):
    """What is between two markers of a page."""

    page: str
    marker: str
    write: Callable[[], str]


def compared(before: dict[str, str], after: dict[str, str]) -> str:
    """Two recipes called "best" against each other, on whatever device they ran.

    Args:
        before: Flags that tell the first from all others of this name.
        after: Those of the second.
    """
    runs = read_runs()
    best, names = runs[runs["recipe"] == "best"], labels(runs)
    ends = (
        names[best.index[(best[[*flags]] == pd.Series(flags)).all(axis=1)][0]]
        for flags in (before, after)
    )
    return markdown(comparison(runs, *ends, across=True).drop(columns="on"))


# Recipes called "best", one after the other; the second is the defaults with OWN flags.
FIRST = {"dirac": "False", "ema_decay": "0.99"}
OWN = {"lr": 0.0035, "logit_scale": 0.25, "whiten": True, "dirac": True}
SECOND = {"dirac": "True", "crop_padding": "4", "sam_radius": "0.0"}
SHARP = SECOND | {"sam_radius": "0.1", "sam_share": "0.25"}
THIRD = {"norm_batch": "32", "cutout": "8"}
FOURTH = {"norm_batch": "32", "cutout": "10"}


TABLES = (
    Table("README.md", "results", lambda: results_table(runs_of_configs(read_runs()))),
    Table("README.md", "weights", lambda: ship.weights_table(read_runs())),
    Table(
        "docs/lab/accuracy.md",
        "ablation",
        lambda: steps_tables(read_runs(RESULTS / "ablation.csv")),
    ),
    Table("docs/lab/accuracy.md", "screening", screening.tables),
    Table("docs/lab/accuracy.md", "last_epochs", last_epochs.table),
    Table(
        "docs/lab/accuracy.md",
        "left_out",
        lambda: left_out_table(
            read_runs(RESULTS / "leave_out.csv"),
            read_recipe(None, OWN, select=True),
        ),
    ),
    Table("docs/lab/accuracy.md", "adopted", lambda: compared(FIRST, SECOND)),
    Table("docs/lab/accuracy.md", "sharp", lambda: compared(SECOND, SHARP)),
    Table("docs/lab/accuracy.md", "third", lambda: compared(SECOND, THIRD)),
    Table("docs/lab/accuracy.md", "fourth", lambda: compared(SECOND, FOURTH)),
    Table("docs/lab/explanations.md", "results", explanations.table),
    Table("docs/lab/learning_rate.md", "results", lr_rules.picks_table),
    Table("docs/lab/learning_rate.md", "lr_small", lr_small.table),
    Table(
        "docs/lab/learning_rate.md",
        "lr_sweep",
        lambda: sweep_table(find_sweeps(read_runs(RESULTS / "lr_sweep.csv"))),
    ),
    Table("docs/one_cycle.md", "results", lr_rules.suggestions_table),
    Table("docs/lab/photos.md", "results", photos.table),
    Table("docs/lab/scale.md", "results", scale.tables),
    Table("docs/lab/speed.md", "results", pace.table),
    Table("docs/lab/speed.md", "operations", operations.table),
    Table("docs/lab/speed.md", "small_maps", small_maps.table),
    Table("docs/own_images.md", "fine_tuning", fine_tuning.table),
    Table("docs/lab/speed.md", "saving", saving.table),
    Table("docs/lab/speed.md", "checks", gpu_visit.table),
    Table("docs/lab/speed.md", "airbench", airbench.table),
    Table("docs/unknown_images.md", "results", unknown_images.table),
    Table("weights/README.md", "head", model_card.head),
    Table("weights/README.md", "accuracy", model_card.table),
    Table("weights/README.md", "robust", model_card.robust_table),
)


def tables(
    check: bool = False,
    add: str | None = None,
    recipe: str = "default",
    timed: bool = True,
) -> None:
    """Write all tables anew.

    Args:
        check: Write nothing, and say whether they are up to date.
        add: Folder of a finished run to put on record first.
        recipe: Name of that run's recipe.
        timed: Whether its times are worth keeping: not if other work ran beside it.

    Raises:
        InputError: The run is not there, or a table is not up to date.
    """
    if add is not None:
        if not (Path(add) / "metrics.json").is_file():
            raise InputError(f"--add {add}: no metrics.json in it; give a finished run")
        add_run(Path(add), recipe, read_run(Path(add)), timed=timed)
    old = []
    for table in TABLES:
        page = PROJECT / table.page
        text = page.read_text(encoding="utf-8")
        fresh = with_table(text, table.write(), table.marker)
        if fresh != text:
            old.append(f"{table.page} ({table.marker})")
            if not check:
                page.write_text(fresh, encoding="utf-8")
    if check and old:
        raise InputError(
            f"not up to date: {', '.join(old)}; run python benchmarks/tables.py"
        )
    print(f"written anew: {', '.join(old)}" if old else "all tables are up to date")


def with_table(page: str, table: str, marker: str) -> str:
    """A page with the table between the two markers of this name."""
    begin, end = (f"<!-- {marker}: {mark} -->" for mark in ("begin", "end"))
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    cli.run("tables.py", tables)
