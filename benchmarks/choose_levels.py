"""Write the recipe that a design of `screening.py` speaks for.

    python benchmarks/choose_levels.py --design third --output new.yaml

A factor is at its upper level where that raises the accuracy on held-out images by two
standard errors more than it raises the loss; both are the mean without and with flip
TTA, and each counts in its own standard errors. So one that is ahead by one in both is
taken: a level that is taken by mistake costs little, and the recipe is measured on its
own afterwards. Factors that train.py has no flag for are named, and stay as they were.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from benchmarks.factorial import Factors, Row, effects, lower
from benchmarks.plain_training import LRS
from benchmarks.recipes import CONFIGS, FLAGS, read_recipe, write_recipe
from benchmarks.studies import screening
from common import cli
from common.errors import InputError
from common.files import expanded

LEAST = 2.0  # standard errors that accuracy must gain more than the loss
OTHER_NAMES = {"sam": "sam_radius"}  # factors that are flags of another name


def choose_levels(
    design: str,
    output: str,
    recipe: str = str(CONFIGS / "best.yaml"),
    rows: str = str(screening.RECORD),
    least: float = LEAST,
) -> None:
    """Write the recipe of the levels that are ahead.

    Args:
        design: Name of the design, from first to fifth.
        output: YAML file to write.
        recipe: YAML file of a recipe; what the design says nothing of is as in it.
        rows: CSV file of screening.py.
        least: Standard errors that accuracy must gain more than the loss.

    Raises:
        InputError: The design is not all on record.
    """
    screening.numbers_of(design, None)  # it is there
    read_recipe(recipe, {}, select=True)  # likewise
    finished = screening.read_finished(expanded(rows))
    if design not in finished:
        raise InputError(
            f"--rows {rows} does not hold all of the {design} design; train the others "
            "with screening.py"
        )
    trained, (base, factors) = finished[design], screening.STUDIES[design]
    gains = advantages(trained, factors)
    ahead = {name: factors[name][1] for name in factors if gains[name] >= least}
    left = [name for name in ahead if name not in (*FLAGS, *OTHER_NAMES)]
    taken = {name: level for name, level in ahead.items() if name not in left}
    shape = {name: int(trained[name].iloc[0]) for name in ("epochs", "base_width")}
    words = " ".join(f"{name} {level}" for name, level in taken.items())
    said = f"the {design} design, {len(trained)} rows: {words or 'as it was'}"
    changes = flags(base | lower(factors) | taken | shape)
    write_recipe(output, recipe, changes, said)
    print(f"{output}: {said}")
    if left:
        print(f"left out, as train.py has no flag for it: {', '.join(left)}")


def advantages(rows: pd.DataFrame, factors: Factors) -> pd.Series:
    """What each upper level gains in accuracy and in loss, in standard errors."""
    found = {}
    for response, sign in (("acc", 1), ("loss", -1)):
        both = rows[f"val/{response}"] + rows[f"val/{response}_tta"]
        effect = effects(rows.assign(mean=both / 2), "mean", factors)
        found[response] = sign * effect["effect"] / effect["error"]
    return found["acc"] + found["loss"]


def flags(row: Row) -> dict[str, Any]:
    """The flags of train.py for a row of a design, with its epochs and width."""
    known = {OTHER_NAMES.get(name, name): level for name, level in row.items()}
    known["max_epochs"] = row["epochs"]
    known["lr"] = round(row["lr"] * LRS[row["batch_size"]], 6)
    return {flag: known[flag] for flag in FLAGS if flag in known}


if __name__ == "__main__":
    cli.run("choose_levels.py", choose_levels)
