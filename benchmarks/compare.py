"""How far two recipes are apart, and how often chance alone would do that.

    python benchmarks/compare.py "RECIPE A" "RECIPE B"

Runs on record with the same device and precision are compared, of each seed the newest.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import (
    ACCURACIES,
    RUNS,
    Run,
    by_kind,
    percent,
    read_given,
    values,
)
from common import cli
from common.errors import InputError

FEWEST = 3  # runs of a recipe from which a spread can be seen


def compare(recipes: list[str], runs: str = str(RUNS)) -> None:
    """Say how far the accuracies of two recipes are apart, and whether by chance.

    Args:
        recipes: Names of the two on record, or their beginnings.
        runs: CSV file of the runs.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if len(recipes) != 2:
        raise InputError(f"give the names of two recipes, got {len(recipes)}")
    print(comparison(read_given(runs), *recipes))


def comparison(runs: Sequence[Run], first: str, second: str) -> str:
    """The second recipe against the first, a line for each accuracy and device.

    Args:
        runs: All runs.
        first: Name of a recipe, or its beginning.
        second: Likewise.

    Raises:
        InputError: There is no such recipe, or there are too few runs of it on a
            device that the other has run on.
    """
    before, after = (find_recipe(runs, name) for name in (first, second))
    groups = by_kind(runs)
    lines = []
    for (recipe, *place), old_runs in groups.items():
        if recipe != before:
            continue
        new_runs = groups.get((after, place[0], place[1]), [])
        for column, name in ACCURACIES.items():
            old, new = values(old_runs, column), values(new_runs, column)
            if min(len(old), len(new)) < FEWEST:
                continue
            lines.append(
                f"{name}: {gain(old, new)} points, p = {welch(old, new):.2g}, from "
                f"{percent(old)}, n = {len(old)}, to {percent(new)}, n = {len(new)}; "
                f"{', '.join(place)}"
            )
    if not lines:
        raise InputError(
            f"a comparison needs at least {FEWEST} runs of both {before!r} and "
            f"{after!r} on the same device at the same precision; make more, with "
            "other seeds"
        )
    return "\n".join([f"{before} -> {after}", *lines])


def gain(before: Sequence[float], after: Sequence[float]) -> str:
    """How far the second mean is above the first, in percentage points."""
    return f"{100 * (statistics.mean(after) - statistics.mean(before)):+.2f}"


def find_recipe(runs: Sequence[Run], name: str) -> str:
    """The recipe of this name, or the only one whose name begins so.

    Raises:
        InputError: There is none, or several.
    """
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    if name in recipes:
        return name
    found = [recipe for recipe in recipes if recipe.startswith(name)]
    if len(found) == 1:
        return found[0]
    known = "; ".join(found or recipes)
    raise InputError(f"{name!r} is not the name of one recipe: {known}")


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """How probable it is that chance alone sets two means at least this far apart.

    Welch's t-test, two-sided: the spreads may differ; the values should be about
    normally distributed, as accuracies over seeds are.

    Args:
        first: Independent values, at least two.
        second: Likewise.
    """
    errors = [statistics.variance(each) / len(each) for each in (first, second)]
    distance = abs(statistics.mean(first) - statistics.mean(second))
    if not sum(errors):
        return float(distance == 0)
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(each) - 1)
        for error, each in zip(errors, (first, second), strict=True)
    )
    return student(distance / math.sqrt(sum(errors)), freedom)


def paired(differences: Sequence[float]) -> float:
    """How probable it is that chance alone makes a mean at least this far from 0.

    Student's t-test of pairs, two-sided.

    Args:
        differences: Independent ones, a pair each, at least two.
    """
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if not deviation:
        return float(not mean)
    count = len(differences)
    return student(abs(mean) / deviation * math.sqrt(count), count - 1)


def student(t: float, freedom: float, steps: int = 10_000) -> float:
    """Probability that Student's t is at least so far from 0, on either side.

    With t = sqrt(freedom) tan(x) its density becomes cos(x) ** (freedom - 1), which is
    smooth and ends at pi / 2.
    """
    start = math.atan(t / math.sqrt(freedom))

    def area(low: float) -> float:
        step = (math.pi / 2 - low) / steps
        middles = (low + (i + 0.5) * step for i in range(steps))
        return step * math.fsum(math.cos(x) ** (freedom - 1) for x in middles)

    return area(start) / area(0)


if __name__ == "__main__":
    cli.run("compare.py", compare)
