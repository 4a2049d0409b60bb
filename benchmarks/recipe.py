"""Measure a recipe: train it with several seeds and put every run on record.

    python benchmarks/recipe.py configs/seed.yaml --seeds 5
    python benchmarks/recipe.py configs/seed.yaml --seeds 5 --select

Each run has a seed of its own and trains on all training images. The network of its
last epoch is tested once, with and without test-time augmentation, and the row of the
run is added to `benchmarks/results/runs.csv` at once, whatever it is. What is on record
already (recipe, seed, commit, device and precision) is not trained again, so the same
command goes on with a measurement that was stopped. What this protocol decides
overrules the file.

`--select` is for choosing between recipes: 5,000 training images are held out instead,
others for each seed, and the test set is not touched. Its rows go to `selection.csv`.

`fit_seconds` follows the rule of the speedruns: when the clock starts, the images are
on the device and the kernels are warm. Augmentation is inside; validation, saving and
what comes before the first step are not. So that the first run is like the others, a
training of a few steps comes before it, which is not timed and leaves nothing behind.
"""

import contextlib
import io
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import (
    ACCURACIES,
    Run,
    add_run,
    percent,
    read_runs,
    results_table,
)
from common import cli
from common.errors import InputError, StoppedError
from config import Config
from images.class_folders import is_image_folder
from machine import provenance
from machine.hardware import choose_hardware
from train import FAST_DEV_LR, train

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
# Names on record say what differs from this file, which stays as it is, and not from
# the defaults of train.py, which follow what is found.
PLAIN = PROJECT / "configs" / "seed.yaml"
WARM_UP_STEPS = 3
# Flags that the protocol decides, and those that are on record otherwise.
PROTOCOL: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "overwrite": True,
    "ckpt_path": None,
    "report": False,
    "fast_dev_run": False,
    "limit_val_batches": 1.0,
}
MEASURING = {"val_size": 0, "limit_test_batches": 1.0, "tta": "flip"}
SELECTING = {"val_size": "auto", "limit_test_batches": 0, "tta": "none"}
OTHERWISE = (
    *("accelerator", "precision", "seed", "data", "data_dir", "download_url"),
    *("max_epochs", "output_dir", "name", "ckpt_every_n_steps"),
)

log = logging.getLogger(__name__)


def recipe(
    configs: list[str],
    seeds: int = 5,
    first_seed: int = 0,
    select: bool = False,
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
        data_dir: Folder of the images; null for that of the file.
        output: CSV file of the runs; null for the project's own.
        timed: Whether the times are worth keeping: not if other work runs beside.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number, at least 1, got {seeds}")
    runs = Path(output or RESULTS / ("selection.csv" if select else "runs.csv"))
    runs.parent.mkdir(parents=True, exist_ok=True)
    wanted, rows = range(first_seed, first_seed + seeds), []
    for config in configs:
        flags = read_flags(config, {"data_dir": data_dir}, select=select)
        rows += put_on_record(Path(config).stem, flags, wanted, runs, timed=timed)
    print(results_table(rows))


def put_on_record(
    stem: str, flags: dict[str, Any], seeds: Sequence[int], runs: Path, *, timed: bool
) -> list[Run]:
    """Train one recipe with those seeds that are not on record yet.

    Args:
        stem: Start of the recipe's name and of the names of its run folders.
        flags: All flags of train.py, as `read_flags` gives them.
        seeds: One a run.
        runs: CSV file of the runs.
        timed: Whether the times are worth keeping.

    Returns:
        The rows of all these seeds.
    """
    commit = commit_of_code()
    same = {"recipe": recipe_name(stem, flags), "commit": commit, **place(flags)}
    known = {run["seed"] for run in on_record(runs, same, seeds)}
    missing = [seed for seed in seeds if str(seed) not in known]
    if known:
        listed = ", ".join(sorted(known, key=int))
        print(f"{same['recipe']}: seed {listed} on record already")
    if missing and timed:
        warm_up(flags | {"seed": missing[0]})
    for seed in missing:
        name = f"{stem}_seed{seed}".replace(" ", "_")
        folder = measure(flags, name, seed)
        add_run(folder, same["recipe"], runs, timed=timed, commit=commit)
    return on_record(runs, same, seeds)


def read_flags(config: str, own: dict[str, Any], *, select: bool) -> dict[str, Any]:
    """All flags of train.py but the seed and the name, the protocol's applied.

    Args:
        config: YAML file of flags.
        own: Flags that overrule those of the file where they are not None.
        select: Hold out training images, and leave the test set alone.
    """
    flags = cli.parse(Config, ["--config", config], Path(sys.argv[0]).name)
    flags |= PROTOCOL | (SELECTING if select else MEASURING)
    kind = "selection" if select else "recipes"
    flags["output_dir"] = str(Path(flags["output_dir"]) / kind)
    return flags | {flag: value for flag, value in own.items() if value is not None}


def recipe_name(stem: str, flags: dict[str, Any]) -> str:
    """A file's name, images, epochs, and every flag that is not the plain recipe's.

    So a file that has changed has another name, and its runs do not mix with the old.
    """
    folder = Path(flags["data_dir"]).expanduser()
    source = folder.resolve().name if is_image_folder(folder) else "cifar10"
    source = "shapes" if flags["data"] == "synthetic" else source
    plain = plain_flags()
    ours = {*PROTOCOL, *MEASURING, *OTHERWISE}
    changed = [
        f"{flag} {value}"
        for flag, value in flags.items()
        if flag not in ours and value != plain[flag]
    ]
    start = f"{stem} on {source}"
    return ", ".join([start, f"{flags['max_epochs']} epochs", *changed])


def plain_flags() -> dict[str, Any]:
    """The flags of the recipe that courses teach."""
    return cli.parse(Config, ["--config", str(PLAIN)])


def place(flags: dict[str, Any]) -> Run:
    """Device and precision of a recipe here, as in the rows on record."""
    hardware = choose_hardware(flags["accelerator"], 1, 1, "auto", flags["precision"])
    found = provenance.circumstances(hardware)
    return {column: found[column] for column in ("device", "precision")}


def commit_of_code() -> str:
    """The commit, "-dirty" behind it when code differs; results and pages may.

    The runs on record are a file of the project, which changes with every run.
    """
    commit = provenance.commit()
    if not commit.endswith("-dirty"):
        return commit
    command = [
        "git",
        "-C",
        str(provenance.PROJECT),
        "status",
        "--porcelain",
        "-uno",
        "--",
    ]
    paths = [".", ":!benchmarks/results", ":!*.md"]
    changed = subprocess.run([*command, *paths], capture_output=True, check=True)
    if not changed.stdout:
        return commit.removesuffix("-dirty")
    log.warning(
        "the code is not that of a commit; commit first if the runs are to count"
    )
    return commit


def on_record(runs: Path, same: Run, seeds: Sequence[int]) -> list[Run]:
    """The rows of some seeds that agree with `same` in all of its columns."""
    return [
        row
        for row in read_runs(runs)
        if row["seed"] in map(str, seeds)
        and all(row[column] == value for column, value in same.items())
    ]


def warm_up(flags: dict[str, Any]) -> None:
    """Train a few steps that leave nothing behind and are not timed."""
    few: dict[str, Any] = {
        "max_epochs": 1,
        "limit_train_batches": WARM_UP_STEPS,
        "limit_test_batches": 0,
        "lr": FAST_DEV_LR if flags["lr"] == "auto" else flags["lr"],
    }
    # TensorBoard's writer may still be at work in it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        quietly_train(flags | few | {"output_dir": folder, "name": "warm_up"})


def measure(flags: dict[str, Any], name: str, seed: int) -> Path:
    """Train once, say how it went, and return the run's folder."""
    metrics = quietly_train(flags | {"name": name, "seed": seed})
    found = [
        f"{words} {percent([metrics[column]])}"
        for column, words in ACCURACIES.items()
        if metrics.get(column) is not None
    ]
    print(f"seed {seed}: {', '.join(found)}, {metrics['fit_seconds']} s", flush=True)
    return Path(flags["output_dir"]) / name


def quietly_train(flags: dict[str, Any]) -> dict[str, Any]:
    """Call `train` without what it prints; its progress is on stderr."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return train(**flags)
    except StoppedError as stop:
        message = f"stopped by {stop.name}; the same command goes on with this run anew"
        cli.end_together(Path(sys.argv[0]).name, message, stop.exit_code)


def main() -> None:
    """The command line; a recipe may also be given as to train.py, by --config FILE."""
    sys.argv[1:] = [part for part in sys.argv[1:] if part != "--config"]
    cli.run("recipe.py", recipe, outlasts_readers=True)


if __name__ == "__main__":
    main()
