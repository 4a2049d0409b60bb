"""Choose a recipe from a sweep by its accuracy on held-out images.

    python benchmarks/choose.py --recipe best.yaml --runs sweep.csv --output new.yaml

writes the one with the highest mean, with `--reach 0.94` the shortest one whose mean is
that high. To choose from are the recipes that `measure.py --select` has trained from
the given one, and of them those with the most seeds: the best of many single runs is
one that luck has raised. The new file is the given one but for the flags that differ.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from benchmarks.recipes import FLAGS, columns, read_recipe, write_recipe
from benchmarks.runs import by_kind, percent, read_runs
from common import cli
from common.errors import InputError
from config import Config

Trial = tuple[dict[str, str], pd.Series]  # flags as text, held-out accuracies


def choose(
    recipe: str,
    runs: str,
    output: str,
    reach: float | None = None,
    batch_size: int | None = None,
) -> None:
    """Write the recipe that held-out images speak for.

    Args:
        recipe: YAML file of the recipe that was swept.
        runs: CSV file of its runs with other flags.
        output: YAML file to write.
        reach: Least mean accuracy, a fraction, from which the shortest training counts;
            null for the most accurate of all.
        batch_size: Only recipes with batches of so many images; null for all.

    Raises:
        InputError: There is nothing to choose from, or nothing reaches the accuracy.
    """
    name = Path(recipe).stem
    base = columns(read_recipe(recipe, {}, select=True))
    trials = find_trials(read_runs(Path(runs), must_exist=True), name)
    if batch_size is not None:
        trials = [one for one in trials if one[0]["batch_size"] == str(batch_size)]
    if not trials:
        raise InputError(
            f"--runs {runs} holds no runs of {name!r} to choose from; make some with "
            "measure.py --select"
        )
    kind, accuracies = best(trials, reach)
    changed = [flag for flag in FLAGS if kind[flag] not in ("", base[flag])]
    settled = [f"--{flag}={kind[flag]}" for flag in changed]
    flags = cli.parse(Config, ["--config", recipe, *settled], "choose.py")
    said = f"{percent(accuracies)} of the held-out images, n = {len(accuracies)}"
    said = f"{said}, of {len(trials)} recipes on {kind['device']}"
    changes = {flag: flags[flag] for flag in changed}
    write_recipe(output, recipe, changes, f"{Path(runs).name}: {said}")
    print(f"{output}: {' '.join(settled) or 'as it was'}: {said}")


def find_trials(runs: pd.DataFrame, recipe: str) -> list[Trial]:
    """All that a sweep has trained.

    Raises:
        InputError: Some of them have seen the test set, or they are of several devices
            or sets of images.
    """
    runs = runs[runs["recipe"] == recipe]
    if runs["test/acc"].notna().any():
        raise InputError(
            f"runs of {recipe!r} were tested; nothing is chosen on the test set: give "
            "runs of measure.py --select"
        )
    for said, named in (("devices", ["device", "precision"]), ("sets", ["images"])):
        kinds = runs[named].drop_duplicates().agg(", ".join, axis=1)
        if len(kinds) > 1:
            raise InputError(
                f"runs of {recipe!r} are of several {said} ({'; '.join(kinds)}); give "
                "a file of one"
            )
    return [
        (kind, same.set_index("seed")["val/acc"].dropna())
        for kind, same in by_kind(runs)
    ]


def best(trials: list[Trial], reach: float | None) -> Trial:
    """Of those with the most seeds the most accurate, or the shortest that is enough.

    They are compared by the seeds that all of these have, as each holds out images of
    its own.

    Raises:
        InputError: None is, or they share no seed.
    """
    most = max(len(accuracies) for _, accuracies in trials)
    trials = [trial for trial in trials if len(trial[1]) == most]
    seeds = set.intersection(*({*accuracies.index} for _, accuracies in trials))
    if not seeds:
        raise InputError("the recipes share no seed; make runs with the same ones")
    trials = [(kind, accuracies[sorted(seeds)]) for kind, accuracies in trials]
    highest = max(trials, key=lambda trial: trial[1].mean())
    if reach is None:
        return highest
    enough = [trial for trial in trials if trial[1].mean() >= reach]
    if not enough:
        raise InputError(
            f"--reach {reach}: none of {len(trials)} recipes does; the best has "
            f"{percent(highest[1])} after {highest[0]['max_epochs']} epochs"
        )
    return min(
        enough, key=lambda trial: (int(trial[0]["max_epochs"]), -trial[1].mean())
    )


if __name__ == "__main__":
    cli.run("choose.py", choose)
