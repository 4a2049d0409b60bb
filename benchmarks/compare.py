"""How far recipes are apart, and how often chance alone would do that.

    python benchmarks/compare.py "RECIPE A" "RECIPE B"
    python benchmarks/compare.py > FILE.md

Runs on record with the same device and precision are compared, of each seed the newest.
The second writes a dated report of the recipes in configs/: every run that the README's
table has means of, and how far any two recipes are apart.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from benchmarks.gains import FEWEST, comparison
from benchmarks.rows import markdown, today
from benchmarks.runs import (
    ACCURACIES,
    RUNS,
    by_kind,
    labels,
    percent,
    read_runs,
    results,
    results_table,
    runs_of_configs,
)
from common import cli
from common.errors import InputError


def compare(recipes: list[str], runs: str = str(RUNS), across: bool = False) -> None:
    """Say how far the accuracies of two recipes are apart, and whether by chance.

    Args:
        recipes: Names of the two on record, or their beginnings.
        runs: CSV file of the runs.
        across: Compare also runs of one device with those of another.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if len(recipes) != 2:
        raise InputError(f"give the names of two recipes, got {len(recipes)}")
    on_record = read_runs(Path(runs), must_exist=True)
    before, after = (find_recipe(labels(on_record), recipe) for recipe in recipes)
    found = comparison(on_record, before, after, across=across)
    if found.empty:
        where = "" if across else " on the same device at the same precision"
        raise InputError(
            f"a comparison needs at least {FEWEST} runs of both {before!r} and "
            f"{after!r}{where}; make more, with other seeds"
        )
    print(f"{before} -> {after}\n\n{markdown(found)}")


def find_recipe(names: pd.Series, name: str) -> str:
    """The recipe of this name, or the only one whose name begins so.

    Raises:
        InputError: There is none, or several.
    """
    recipes: list[str] = names.unique().tolist()
    if name in recipes:
        return name
    found = [recipe for recipe in recipes if recipe.startswith(name)]
    if len(found) == 1:
        return found[0]
    known = "; ".join(found or recipes)
    raise InputError(f"{name!r} is not the name of one recipe: {known}")


def report() -> None:
    """Print a dated report of what is on record of the recipes in configs/."""
    print(page(runs_of_configs(read_runs())))


def page(runs: pd.DataFrame) -> str:
    """The report, Markdown."""
    newest = pd.concat([same for _, same in by_kind(runs)])
    parts = [
        f"# Accuracy, {today()}",
        "Of the weights of the last epoch. Rows without a val accuracy trained on all "
        "training images.",
        results_table(runs),
        "## Two recipes compared",
        f"Welch's t-test, two-sided, where both have {FEWEST} runs or more; of val "
        "accuracies with the same seeds, the paired one.",
        *(differences(runs) or ["No two recipes have."]),
        "## Every run",
        markdown(every_run(newest)),
        "## Commands and versions",
        "\n".join(f"- `{command}`" for command in newest["command"].unique()),
        "\n".join(f"- {versions}" for versions in newest["versions"].unique()),
        f"All rows, with losses, are in `{RUNS.name}`.",
    ]
    return "\n\n".join(parts)


def differences(runs: pd.DataFrame) -> list[str]:
    """Each pair of recipes that can be compared, the less accurate first."""
    parts = []
    recipes = results(runs)["recipe"].drop_duplicates()
    for before, after in itertools.combinations(recipes[::-1], 2):
        found = comparison(runs, before, after)
        if len(found):
            parts += [f"{before} -> {after}", markdown(found)]
    return parts


def every_run(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run."""
    shown = {"recipe": labels(runs), "on": runs["device"], "seed": runs["seed"]}
    for column, words in ACCURACIES.items():
        shown[words] = runs[column].map(lambda share: percent(pd.Series([share])))
    shown |= {"max LR": runs["max_lr"].astype("str"), "date": runs["date"]}
    return pd.DataFrame(shown | {"commit": runs["commit"].str[:10]})


if __name__ == "__main__":
    cli.run("compare.py", compare if sys.argv[1:] else report)
