"""Small recipes, and runs on record that are made up."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.recipe import PLAIN
from benchmarks.rows import add_row
from benchmarks.tables import Run

SMALL: dict[str, Any] = yaml.safe_load(PLAIN.read_text()) | {
    "accelerator": "cpu",
    "precision": "32-true",
    "base_width": 4,
    "batch_size": 32,
    "max_epochs": 1,
    "lr": 0.01,
}
COLUMNS = (
    *("test/acc", "test/acc_tta", "val/acc"),
    *("seconds", "fit_seconds", "max_lr", "commit"),
)


def write_recipe(name: str, /, **flags: Any) -> str:
    """A recipe's file, small but for these flags; its path."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(SMALL | flags))
    return f"{name}.yaml"


def runs_of(
    recipe: str, shares: list[float], column: str = "test/acc", **others: str
) -> list[Run]:
    """A run for each of these accuracies, with seeds from 0."""
    same = dict.fromkeys(COLUMNS, "") | {"device": "CPU", "precision": "32-true"}
    same |= {"recipe": recipe, **others}
    return [
        same | {"seed": str(seed), column: str(share)}
        for seed, share in enumerate(shares)
    ]


def held_out(recipe: str, shares: list[float], **others: str) -> list[Run]:
    """The same, for accuracies on held-out images."""
    return runs_of(recipe, shares, "val/acc", **others)


def write_runs(file: Path, runs: list[Run]) -> None:
    """Put runs on record."""
    for run in runs:
        add_row(file, run)
