"""Sweeps of the rate on record: auto against fixed rates."""

import math
from typing import NamedTuple

import pandas as pd
from scipy import stats

from benchmarks.rows import markdown
from benchmarks.runs import KIND, labels, spread
from datamodule import DEFAULT_VAL_SIZE

AUTO = "auto"
CLOSE = 0.2  # points behind the best fixed rate that still count as "within"
CONFIDENCE = 0.95


class Sweep(NamedTuple):
    """Runs that differ in rate and seed only.

    Attributes:
        recipe: Its name.
        batch_size: Images in a batch.
        place: Device and precision.
        images: How many were held out in each; None where that is not known.
        accuracies: On these, as fractions: a row a seed, a column a rate, from the
            least to auto. Only seeds that all rates have, so that the rates differ in
            nothing but the rate, held-out images included.
        max_lrs: The rates that these runs had.
    """

    recipe: str
    batch_size: int
    place: str
    images: int | None
    accuracies: pd.DataFrame
    max_lrs: pd.DataFrame


class Gap(NamedTuple):
    """How far auto is behind the best fixed rate, in percentage points."""

    best: str  # the rate with the highest mean accuracy
    points: float
    low: float  # end of the confidence interval
    high: float


def find_sweeps(runs: pd.DataFrame) -> list[Sweep]:
    """The sweeps of the rate on record, by recipe and batch size."""
    runs = runs.dropna(subset="val/acc").drop_duplicates([*KIND, "seed"], keep="last")
    names, found = labels(runs, without=("lr", "batch_size")), []
    for _, same in runs.groupby([column for column in KIND if column != "lr"]):
        first = same.iloc[0]
        rates = sorted(same["lr"].unique(), key=order)
        accuracies = same.pivot(index="seed", columns="lr", values="val/acc")
        accuracies = accuracies[rates].dropna()
        max_lrs = same.pivot(index="seed", columns="lr", values="max_lr")
        is_known = (first["images"], first["val_size"]) == ("cifar10", "auto")
        found.append(
            Sweep(
                names[same.index].iloc[0],
                int(first["batch_size"]),
                f"{first['device']}, {first['precision']}",
                DEFAULT_VAL_SIZE if is_known else None,
                accuracies,
                max_lrs.loc[accuracies.index, rates],
            )
        )
    return sorted(found, key=lambda sweep: sweep[:3])


def order(lr: str) -> float:
    """Where a rate stands among others."""
    return math.inf if lr == AUTO else float(lr)


def find_gap(accuracies: pd.DataFrame, images: int | None) -> Gap | None:
    """How far auto is behind the best fixed rate; None if no seed has run both.

    The best of several noisy means is likely to be one that luck has raised. So the gap
    to each rate has an interval, wide enough for all of them to hold together
    (Bonferroni); where they do, the gap to the rate that is truly best lies between the
    highest lower end and the highest upper end.

    Args:
        accuracies: As in `Sweep`.
        images: Likewise.
    """
    fixed = accuracies.drop(columns=AUTO, errors="ignore")
    if fixed.empty or AUTO not in accuracies:
        return None
    auto = accuracies[AUTO]
    outside = (1 - CONFIDENCE) / fixed.shape[1]
    gaps = 100 * (fixed.mean() - auto.mean())
    reach = 100 * fixed.apply(half_width, second=auto, images=images, outside=outside)
    low, high = (gaps - reach).max(), (gaps + reach).max()
    return Gap(str(gaps.idxmax()), gaps.max(), low, high)


def half_width(
    first: pd.Series, second: pd.Series, images: int | None, outside: float
) -> float:
    """Half a confidence interval of a difference of two mean accuracies, seed by seed.

    It is the larger of two: that of the images, binomial, as if the two runs of a seed
    had not shared theirs, and that of the seeds by Student's t. Infinite where neither
    is known.

    Args:
        first: Accuracies as fractions, a seed each.
        second: Likewise, with the same seeds.
        images: How many each is the accuracy on; None where that is not known.
        outside: Chance that the true difference is not in the interval.
    """
    found = []
    if images is not None:
        count = len(first) * images
        hits = stats.binom.var(count, [first.mean(), second.mean()])
        found.append(stats.norm.isf(outside / 2) * math.sqrt(hits.sum()) / count)
    if len(first) > 1:
        reach = stats.t.isf(outside / 2, len(first) - 1)
        found.append(float(reach * stats.sem(first - second)))
    return max(found, default=math.inf)


def verdict(gap: Gap | None) -> str:
    """Whether auto is as close to the best fixed rate as it should be."""
    if gap is not None and gap.high <= CLOSE:
        return f"within {CLOSE}"
    if gap is not None and gap.low > CLOSE:
        return f"not within {CLOSE}"
    return "cannot be told"


def sweep_table(sweeps: list[Sweep]) -> str:
    """A row a recipe, batch size and device: what each rate reached, and the gap."""
    rates = sorted({str(lr) for sweep in sweeps for lr in sweep.accuracies}, key=order)
    rows = []
    for sweep in sweeps:
        gap = find_gap(sweep.accuracies, sweep.images)
        row = {"recipe": sweep.recipe, "batch size": sweep.batch_size}
        row |= {"n": len(sweep.accuracies)}
        for lr in rates:
            cell = spread(sweep.accuracies.get(lr, pd.Series(dtype=float)))
            row[lr] = f"**{cell}**" if gap and lr == gap.best else cell
        picks = sweep.max_lrs.get(AUTO, pd.Series(dtype=float))
        row["its picks"] = " ".join(f"{lr:.2g}" for lr in picks)
        row["auto behind the best, points"] = (
            f"{gap.points:z.2f} ({gap.low:z.2f} to {gap.high:z.2f})" if gap else ""
        )
        rows.append(row | {"verdict": verdict(gap), "on": sweep.place})
    return markdown(pd.DataFrame(rows))
