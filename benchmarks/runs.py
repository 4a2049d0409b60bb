"""Runs on record: which of them compare, what they are called, what they reached."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.recipes import BEFORE, CONFIGS, FLAGS, columns, read_recipe
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from common.errors import InputError
from config import Config

RUNS = RESULTS / "runs.csv"
SELECTION = RESULTS / "selection.csv"  # of runs with held-out images
TIMES = ("seconds", "fit_seconds", "images_per_second")
ACCURACIES = {
    "test/acc": "test accuracy",
    "test/acc_tta": "with flip TTA",
    "val/acc": "val accuracy",
}
RECIPE = ["recipe", "images", *FLAGS]
KIND = [*RECIPE, "device", "precision"]  # of runs that differ in their seed only


def add_run(
    folder: Path,
    recipe: str,
    config: Config,
    runs: Path = RUNS,
    *,
    timed: bool = True,
    commit: str | None = None,
) -> None:
    """Add a run's metrics.json as a row of the CSV file `runs`.

    Args:
        folder: The run folder.
        recipe: Name of the recipe.
        config: What the run was given.
        runs: The CSV file; made when it is not there.
        timed: Whether its times are worth keeping: not if other work ran beside it.
        commit: That of the code that ran; None for the one in metrics.json.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    if not timed:
        metrics |= {name: "" for name in TIMES if name in metrics}
    if commit is not None:
        metrics["commit"] = commit
    add_row(runs, {"date": today(), "recipe": recipe, **columns(config), **metrics})


def read_runs(file: Path = RUNS, *, must_exist: bool = False) -> pd.DataFrame:
    """All runs on record, oldest first, their flags as text.

    Args:
        file: The CSV file.
        must_exist: Whether it must be there.

    Raises:
        InputError: It is no record of runs.
    """
    if must_exist and not file.is_file():
        raise InputError(f"--runs {file}: no such file; give that of measure.py")
    needed = ("recipe", "images", "seed", "device", "precision", "commit")
    runs = read_rows(file, *needed, text=[*KIND, "commit"])
    # What a run had that is older than a flag.
    defaults = {flag: str(getattr(Config(), flag)) for flag in FLAGS} | BEFORE
    runs = runs.assign(**{flag: defaults[flag] for flag in FLAGS if flag not in runs})
    found = runs.reindex(
        columns=list(dict.fromkeys([*runs, *KIND, *ACCURACIES, *TIMES]))
    )
    return found.fillna(dict.fromkeys(KIND, "") | defaults)


def of_recipe(runs: pd.DataFrame, recipe: str, config: Config) -> pd.DataFrame:
    """The runs of one recipe, on any device."""
    same = pd.Series({"recipe": recipe, **columns(config)})
    return runs[(runs[same.index] == same).all(axis=1)]


def runs_of_configs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the recipes in configs/, and of the defaults, as they are now.

    They are what the README shows; trials of other lengths and rates are in the CSV.
    """
    found = []
    for file in (*sorted(CONFIGS.glob("*.yaml")), None):
        name, path = (file.stem, str(file)) if file else ("default", None)
        config = read_recipe(path, {"data": "cifar10"}, select=False)
        if file is None:  # train.py by itself holds images out
            config = replace(config, val_size="auto")
        found.append(of_recipe(runs, name, config))
    return pd.concat(found)


def by_kind(runs: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Runs that differ in their seed only, of which the newest of each seed counts.

    So a recipe that was measured again, after a change of the code, is not taken for
    twice as many independent runs.
    """
    for kind, same in runs.groupby(KIND, sort=False):
        newest = same.drop_duplicates("seed", keep="last").sort_values("seed")
        yield dict(zip(KIND, map(str, kind), strict=True)), newest


def labels(runs: pd.DataFrame, without: tuple[str, ...] = ()) -> pd.Series:
    """What to call the recipe of each run among these: "best on cifar10, 24 epochs".

    Where several have the same name, images and length, those flags are added in which
    they differ.

    Args:
        runs: Some runs.
        without: Flags that are shown elsewhere.
    """
    short = runs["recipe"] + " on " + runs["images"]
    short = short + ", " + runs["max_epochs"] + " epochs"
    for _, same in runs.groupby(short):
        for flag in FLAGS:
            if flag not in without and same[flag].nunique() > 1:
                short.loc[same.index] += f", {flag} " + same[flag]
    return short


def results(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a recipe and device, the most accurate first: mean, spread and number."""
    names, rows = labels(runs), []
    for kind, same in by_kind(runs):
        shown: dict[str, Any] = {"recipe": names[same.index[0]]}
        shown |= {words: percent(same[name]) for name, words in ACCURACIES.items()}
        shown |= {"n": len(same), "seconds a run": median(same["seconds"])}
        shown["of them training"] = median(same["fit_seconds"])
        shown["on"] = f"{kind['device']}, {kind['precision']}"
        mean = same[["test/acc", "val/acc"]].mean().bfill().iloc[0]
        rows.append(shown | {"accuracy": mean})
    ranked = pd.DataFrame(rows, columns=[*rows[0]] if rows else ["accuracy"])
    return ranked.sort_values("accuracy", ascending=False).drop(columns="accuracy")


def results_table(runs: pd.DataFrame) -> str:
    """The same in Markdown, without columns that are empty throughout."""
    found = results(runs)
    return markdown(found.loc[:, (found != "").any()])


def percent(shares: pd.Series) -> str:
    """Mean in percent, with standard deviation and range where there are several."""
    shares = shares.dropna()
    if shares.empty:
        return ""
    ends = f" ({100 * shares.min():.2f} to {100 * shares.max():.2f})"
    return f"{spread(shares)} %{ends if len(shares) > 1 else ''}"


def spread(shares: pd.Series) -> str:
    """Mean times 100, with the standard deviation where there are several."""
    shares = shares.dropna()
    if shares.empty:
        return ""
    mean = f"{100 * shares.mean():.2f}"
    return f"{mean} ± {100 * shares.std():.2f}" if len(shares) > 1 else mean


def median(seconds: pd.Series) -> str:
    """The median, with hundredths where it is short."""
    middle = seconds.median()
    if pd.isna(middle):
        return ""
    return f"{middle:.2f}" if middle < 60 else f"{middle:.0f}"
