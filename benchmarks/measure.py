"""Measure recipes: train them with several seeds and put every run on record.

    python benchmarks/measure.py configs/seed.yaml --seeds 5
    python benchmarks/measure.py a.yaml b.yaml --seeds 5 --select
    python benchmarks/measure.py a.yaml --select --sweep.lr '[0.01, 0.02, auto]'
    python benchmarks/measure.py configs/seed.yaml configs/best.yaml --steps --select

A run trains on all training images, the network of its last epoch is tested once, with
and without test-time augmentation, and its row is added to
`benchmarks/results/runs.csv` at once, whatever it is. All recipes have their first seed
before any has its second. What is on record already (recipe, seed, commit, device and
precision) is not trained again, a run that was stopped goes on from its newest
checkpoint, and one that is finished but could not be put on record is put there. So the
same command goes on with a measurement. What this protocol decides overrules the files.

`--select` is for choosing between recipes: 5,000 training images are held out instead,
others for each seed, and the test set is not touched. Its rows go to `selection.csv`.
`--sweep.FLAG` trains each recipe with each of these values, and with all combinations
where it is given for several flags; with `--best 2` only the two that are ahead after
the first seed are trained with the others. `--steps` leads from a first recipe to a
second: each step keeps what those before it have changed. Of both neither run folders
nor times are kept. A run that diverges is named, and the others go on.

`fit_seconds` follows the rule of the speedruns: when the clock starts, the images are
on the device and the kernels are warm. Augmentation is inside; validation, saving and
what comes before the first step are not. So that the first run is like the others, a
training of a few steps comes before it, which is not timed and leaves nothing behind.
"""

import contextlib
import itertools
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
from pytorch_lightning.callbacks import LambdaCallback

from benchmarks import recipes
from benchmarks.gains import steps_tables
from benchmarks.rows import check_writable
from benchmarks.runs import (
    ACCURACIES,
    RUNS,
    SELECTION,
    add_run,
    of_recipe,
    percent,
    read_runs,
    results_table,
)
from common import cli
from common.errors import DivergedError, InputError
from config import Config
from machine import provenance
from training.resume import read_newest
from training.run_folder import RunFolder

Recipe = tuple[str, Config]  # its name, and all flags but the seed
Sweep = dict[str, list[str | int | float | bool]]

log = logging.getLogger(__name__)


def measure(
    configs: list[str],
    seeds: int = 5,
    first_seed: int = 0,
    select: bool = False,
    sweep: Sweep | None = None,
    best: int | None = None,
    steps: bool = False,
    data_dir: str | None = None,
    output: str | None = None,
    timed: bool = True,
) -> None:
    """Train recipes with several seeds, and put every run on record.

    Args:
        configs: YAML files of flags of train.py, one a recipe.
        seeds: Number of runs of each, all with seeds of their own.
        first_seed: The first of them.
        select: Compare on held-out training images, and leave the test set alone.
        sweep: Values of flags, all of which each recipe is trained with.
        best: Number of recipes that are trained with more than the first seed, those
            that are ahead after it; null for all.
        steps: Train all that lies between two recipes, a step at a time.
        data_dir: Folder of the images; null for that of the file.
        output: CSV file of the runs; null for the project's own.
        timed: Whether the times are worth keeping: not if other work runs beside.

    Raises:
        InputError: A value or file that the user can put right.
        DivergedError: Some runs diverged; the others are on record.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number, at least 1, got {seeds}")
    if best is not None and (best < 1 or not select):
        raise InputError("--best must be at least 1, and is for --select only")
    runs = Path(output or (SELECTION if select else RUNS))
    check_writable(runs)
    own = {"seed": first_seed, "data_dir": data_dir}
    planned = plan(configs, own, sweep or {}, steps=steps, select=select)
    if steps:
        check_record(read_runs(runs), planned, runs)
    kept, commit = not (sweep or steps), provenance.commit()
    if commit.endswith("-dirty"):
        log.warning("the code differs from that of the commit; commit before it counts")
    timed = timed and kept
    unfinished = runs.with_suffix(".unfinished")  # of runs whose folder is not kept
    warm: list[Config] = []
    diverged: list[str] = []
    wanted = range(first_seed, first_seed + seeds)
    for name, config, seed in missing(planned, wanted, best, runs, commit):
        if timed and config not in warm:
            recipes.warm_up(config)
            warm.append(config)
        folder = folder_name(name, seed, config, sweep or {})
        given = replace(config, seed=seed, name=folder)
        if not kept:
            given = replace(given, output_dir=unfinished)
        try:
            train_once(name, given, runs, commit, timed=timed)
        except DivergedError as error:
            diverged.append(folder)
            print(f"{folder}: {error}", flush=True)
        if not kept:
            discard(unfinished / folder)
    rows = pd.concat([of_recipe(read_runs(runs), *recipe) for recipe in planned])
    print(steps_tables(rows) if steps else results_table(rows))
    if diverged:
        raise DivergedError(f"not on record, for they diverged: {', '.join(diverged)}")


def plan(
    configs: list[str],
    own: dict[str, Any],
    sweep: Sweep,
    *,
    steps: bool,
    select: bool,
) -> list[Recipe]:
    """All recipes to train.

    Args:
        configs: YAML files of flags.
        own: Flags that overrule those of the files where they are not None.
        sweep: Values of flags.
        steps: Whether those on the way from the first file to the second are meant.
        select: As for `read_recipe`.

    Raises:
        InputError: A value or file that the user can put right.
    """
    for flag, values in sweep.items():
        if flag not in recipes.FLAGS or not values:
            raise InputError(
                f"--sweep.{flag} {values}: give at least one value of a flag of a "
                f"recipe: {', '.join(recipes.FLAGS)}"
            )
    points = [
        dict(zip(sweep, values, strict=True))
        for values in itertools.product(*sweep.values())
    ]
    found = [
        (Path(config).stem, recipes.read_recipe(config, own | point, select=select))
        for config, point in itertools.product(configs, points)
    ]
    if not steps:
        return found
    if len(found) != 2:
        raise InputError(
            f"--steps needs two recipes, the first and the last, got {configs}"
        )
    (name, first), (_, last) = found
    return recipes.find_steps(name, first, last)


def check_record(runs: pd.DataFrame, planned: list[Recipe], file: Path) -> None:
    """Make sure that a file holds no runs of other steps.

    Raises:
        InputError: It does; its table would be neither's.
    """
    ours = pd.concat([of_recipe(runs, *recipe) for recipe in planned])
    others = runs[~runs.index.isin(ours.index)]
    if len(others):
        raise InputError(
            f"--output {file} holds runs of other steps, such as "
            f"{others['recipe'].iloc[0]!r}; give another file"
        )


def missing(
    planned: list[Recipe], seeds: range, best: int | None, file: Path, commit: str
) -> Iterator[tuple[str, Config, int]]:
    """Recipe and seed of each run that is not on record when its turn comes.

    Args:
        planned: All recipes.
        seeds: Those of each.
        best: Number of recipes that have more than the first seed; None for all.
        file: The record.
        commit: Of the code; with "-dirty" nothing on record counts, for it says nothing
            of what the code is now.
    """
    for seed, recipe in itertools.product(seeds, planned):
        name, config = recipe
        runs = read_runs(file)
        same = {"seed": seed, "commit": commit, **recipes.place(config)}
        if best is not None and seed > seeds[0]:
            first = same | {"seed": seeds[0]}
            if recipe not in ahead(planned, best, runs, first):
                continue
        if not commit.endswith("-dirty") and len(on_record(runs, *recipe, same)):
            print(f"{name}: seed {seed} on record already", flush=True)
            continue
        yield name, config, seed


def on_record(
    runs: pd.DataFrame, recipe: str, config: Config, same: dict[str, Any]
) -> pd.DataFrame:
    """The runs of a recipe that agree in other columns, too."""
    found = of_recipe(runs, recipe, config)
    return found[(found[[*same]] == pd.Series(same)).all(axis=1)]


def ahead(
    planned: list[Recipe], best: int, runs: pd.DataFrame, first: dict[str, Any]
) -> list[Recipe]:
    """The recipes with the highest held-out accuracy with the first seed.

    Args:
        planned: All of them.
        best: How many.
        runs: Those on record.
        first: What tells the runs with the first seed from others.
    """

    def accuracy(recipe: Recipe) -> float:
        found = on_record(runs, *recipe, first)["val/acc"]
        return float(found.iloc[-1]) if len(found) else -1.0  # it diverged

    return sorted(planned, key=accuracy, reverse=True)[:best]


def folder_name(recipe: str, seed: int, config: Config, swept: Iterable[str]) -> str:
    """Name of a run's folder, with the flags in which runs of a recipe differ."""
    point = [f"{flag}{getattr(config, flag)}" for flag in swept]
    parts = [recipe, f"seed{seed}", *point]
    return re.sub(r"[^\w.-]", "_", "_".join(parts))


def discard(folder: Path) -> None:
    """Remove a run folder, and the folder around it when it was the last there."""
    # TensorBoard's writer may still be at work in it, and others beside it.
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def train_once(
    recipe: str, config: Config, runs: Path, commit: str, *, timed: bool
) -> None:
    """Train once, say how it went, and put the run on record.

    Args:
        recipe: Its name on record.
        config: All flags.
        runs: CSV file of the runs.
        commit: That of the code.
        timed: Whether the times are worth keeping.

    Raises:
        InputError: The same run was begun with other flags.
    """
    place = Path(config.output_dir) / str(config.name)
    is_finished = (place / "metrics.json").exists()
    is_ours = not commit.endswith("-dirty") and commit_of(place) == commit
    if is_ours and is_finished and is_same(place, config):  # its row was not written
        print(f"{config.name}: finished before, now on record", flush=True)
        add_run(place, recipe, config, runs, timed=False, commit=commit)
        return
    if is_ours and not is_finished:
        print(f"{config.name}: going on with it", flush=True)
        config = replace(config, overwrite=False, ckpt_path="last")

    def sign(_: Any, __: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["measured_at"] = commit

    try:
        metrics = recipes.quietly_train(
            config, [LambdaCallback(on_save_checkpoint=sign)]
        )
    except InputError as error:
        if config.ckpt_path is None or not str(error).endswith("start anew"):
            raise
        raise InputError(f"{error}, by removing {place}") from None
    found = [
        f"{words} {percent(pd.Series([metrics[column]]))}"
        for column, words in ACCURACIES.items()
        if metrics.get(column) is not None
    ]
    seconds = f"{metrics['fit_seconds']} s"
    print(f"{config.name}: {', '.join([*found, seconds])}", flush=True)
    add_run(place, recipe, config, runs, timed=timed, commit=commit)


def commit_of(place: Path) -> str | None:
    """Commit of the code of a measurement, by the newest checkpoint of its folder."""
    folder = RunFolder(place.parent, place.name, seed=0)
    with contextlib.suppress(InputError):  # all are damaged
        newest = read_newest(folder.newest_checkpoints())
        return newest and newest[1].get("measured_at")
    return None


def is_same(place: Path, config: Config) -> bool:
    """Whether a finished run has these flags and this seed, and is of such a device."""
    with contextlib.suppress(InputError):
        given = recipes.read_run(place)
        metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        here = recipes.place(config)
        there = {name: metrics[name] for name in here}
        flags = recipes.columns(given) == recipes.columns(config)
        return flags and there == here and given.seed == config.seed
    return False


if __name__ == "__main__":
    cli.run("measure.py", measure, outlasts_readers=True)
