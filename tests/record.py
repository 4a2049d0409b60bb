"""Small recipes, and runs on record that are made up."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.recipes import CONFIGS, columns, read_recipe
from benchmarks.rows import add_row
from benchmarks.runs import ACCURACIES, KIND, TIMES

SEED = str(CONFIGS / "seed.yaml")
SMALL: dict[str, Any] = yaml.safe_load(Path(SEED).read_text(encoding="utf-8")) | {
    "accelerator": "cpu",
    "precision": "32-true",
    "base_width": 4,
    "batch_size": 32,
    "max_epochs": 1,
    "lr": 0.01,
}
OTHERS = ("seed", "max_lr", "date", "versions", "commit", "command")


def write_recipe(name: str, /, **flags: Any) -> str:
    """A recipe's file, small but for these flags; its path."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(SMALL | flags))
    return f"{name}.yaml"


def runs_of(
    recipe: str, shares: list[float], column: str = "test/acc", **others: Any
) -> pd.DataFrame:
    """A run of the plain recipe for each of these accuracies, with seeds from 0."""
    flags = columns(read_recipe(SEED, {"data": "cifar10"}, select=False))
    same = flags | {"device": "CPU", "precision": "32-true", "commit": "a1b2"}
    rows = [
        same | {"recipe": recipe, "seed": seed, "max_lr": 0.01, column: share} | others
        for seed, share in enumerate(shares)
    ]
    names = dict.fromkeys([*KIND, *OTHERS, *ACCURACIES, *TIMES])
    return pd.DataFrame(rows, columns=[*names])


def held_out(recipe: str, shares: list[float], **others: Any) -> pd.DataFrame:
    """The same, for accuracies on held-out images."""
    return runs_of(recipe, shares, "val/acc", **{"val_size": "auto"} | others)


def together(*runs: pd.DataFrame) -> pd.DataFrame:
    """All of them, one after the other."""
    return (
        pd.concat([some.dropna(axis=1, how="all") for some in runs])
        .reset_index(drop=True)
        .reindex(columns=runs[0].columns)
    )


def write_runs(file: Path, runs: pd.DataFrame) -> None:
    """Put runs on record."""
    for row in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        add_row(file, {str(name): cell for name, cell in row.items()})


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without those of its head."""
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
