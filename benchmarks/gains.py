"""What a recipe gains over another, and how often chance alone would do that."""

from typing import Any

import pandas as pd
from scipy import stats

from benchmarks.recipes import FLAGS, columns
from benchmarks.rows import markdown
from benchmarks.runs import ACCURACIES, KIND, by_kind, labels, percent
from config import Config

FEWEST = 3  # runs of a recipe from which a spread can be seen


def comparison(
    runs: pd.DataFrame, before: str, after: str, *, across: bool = False
) -> pd.DataFrame:
    """The second recipe against the first, a row for each device and accuracy.

    Whether chance alone would set the means so far apart is Welch's t-test, two-sided:
    the spreads may differ; accuracies over seeds are about normally distributed. Where
    both have held out the same images, as they do with the same seeds, most of the
    spread is that of the images, so it is the paired test of these runs.

    Args:
        runs: All runs.
        before: Name of a recipe, as `labels` gives it.
        after: Likewise.
        across: Whether all devices count as one.
    """
    names, rows = labels(runs), []
    newest = runs.drop_duplicates([*KIND, "seed"], keep="last")
    places = newest.groupby(["device", "precision"], sort=False)
    every: Any = [(("several",), newest)] if across else places
    for place, here in every:
        for column, words in ACCURACIES.items():
            old, new = (
                here[names[here.index] == name].set_index("seed")[column].dropna()
                for name in (before, after)
            )
            if min(len(old), len(new)) < FEWEST:
                continue
            seeds = old.index.intersection(new.index)
            are_unique = old.index.is_unique and new.index.is_unique
            if column == "val/acc" and are_unique and len(seeds) >= FEWEST:
                old, new = old[seeds], new[seeds]
                p = stats.ttest_rel(old, new).pvalue
            else:
                p = stats.ttest_ind(old, new, equal_var=False).pvalue
            rows.append(
                {
                    "accuracy": words,
                    "from": f"{percent(old)}, n = {len(old)}",
                    "to": f"{percent(new)}, n = {len(new)}",
                    "gain, points": f"{100 * (new.mean() - old.mean()):+.2f}",
                    "p": f"{p:.2g}",
                    "on": ", ".join(map(str, place)),
                }
            )
    return pd.DataFrame(rows)


def steps_tables(runs: pd.DataFrame) -> str:
    """What each step brings: a table for each kind of runs that compare, and its name.

    A row a step, in the order of the record: what it changes of the row above, its
    accuracies, and what they gain, over the row above and over the first.
    """
    tables: dict[str, list[tuple[dict[str, str], pd.Series]]] = {}
    for kind, same in by_kind(runs):
        column = "test/acc" if same["test/acc"].notna().any() else "val/acc"
        words = ACCURACIES[column].replace("val ", "held-out ")
        name = f"{kind['images']}, {kind['max_epochs']} epochs, {words}"
        name = f"{name}, {kind['device']}, {kind['precision']}"
        steps = tables.setdefault(name, [])
        steps.append((kind, same.set_index("seed")[column]))
    return "\n\n".join(
        f"{name}:\n\n{markdown(pd.DataFrame(_gains(steps)))}"
        for name, steps in tables.items()
    )


def _gains(steps: list[tuple[dict[str, str], pd.Series]]) -> list[dict[str, str]]:
    rows = []
    for above, (kind, accuracies) in zip([None, *steps], steps, strict=False):
        row = {"step": kind["recipe"], "changes": ""}
        row |= {"accuracy": percent(accuracies), "n": str(len(accuracies))}
        row |= dict.fromkeys(("gain, points", "p", "gain in all", "p in all"), "")
        if above is not None:
            row["changes"] = " ".join(_changes(above[0], kind))
            row["gain, points"], row["p"] = gain(above[1], accuracies)
            row["gain in all"], row["p in all"] = gain(steps[0][1], accuracies)
        rows.append(row)
    return rows


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [f"`--{f} {after[f]}`" for f in FLAGS if after[f] != before[f]]


def left_out_table(runs: pd.DataFrame, full: Config) -> str:
    """What a recipe loses without one of its parts, held-out accuracy seed by seed.

    Args:
        runs: Those of the recipe, and of some that differ from it in a flag or two.
        full: The recipe.
    """
    kinds = [
        (_changes(columns(full), kind), kind, same.set_index("seed")["val/acc"])
        for kind, same in by_kind(runs)
    ]
    [whole] = [accuracies for changes, _, accuracies in kinds if not changes]
    rows = []
    for changes, kind, accuracies in sorted(kinds, key=lambda one: len(one[0])):
        lost, p = gain(whole, accuracies) if changes else ("", "")
        row = {
            "with": " ".join(changes) or "all of it",
            "accuracy": percent(accuracies),
        }
        row |= {"n": str(len(accuracies)), "against all of it, points": lost, "p": p}
        rows.append(row | {"on": f"{kind['device']}, {kind['precision']}"})
    return markdown(pd.DataFrame(rows))


def gain(before: pd.Series, after: pd.Series) -> tuple[str, str]:
    """What accuracies gain over others with the seeds of both, and how certain that is.

    In percentage points, with the standard deviation over seeds; p by Student's t-test
    of pairs, two-sided.

    Args:
        before: Accuracies as fractions, by seed.
        after: Likewise.
    """
    gains = 100 * (after - before).dropna()
    if gains.empty:
        return "", ""
    mean = f"{gains.mean():+.2f}"
    if len(gains) == 1:
        return mean, ""
    p = f"{stats.ttest_1samp(gains, 0).pvalue:.2g}" if len(gains) >= FEWEST else ""
    return f"{mean} ± {gains.std():.2f}", p
