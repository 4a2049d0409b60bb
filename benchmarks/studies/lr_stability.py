"""How far the picked max LR moves from seed to seed.

    python benchmarks/studies/lr_stability.py configs/seed.yaml --output FILE.jsonl

runs the LR range test of `train.py` for several seeds (weights, split, order and
augmentation all change) at each batch size, adds a line a test to the output file, and
prints the picks with their spread, max / min. A line holds the curve and not the pick,
which follows from it: `read_tests` applies the rule as it is now.
"""

import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
from benchmarks.recipes import read_recipe
from benchmarks.rows import RESULTS, today
from common import cli
from common.errors import InputError
from config import Config
from machine import provenance
from machine.hardware import choose_hardware
from train import FAST_DEV_LR, build_module, load_images, settle_lr
from training.lr_finder import RangeTest, pick

CURVES = RESULTS / "2026-11-22_lr_stability_cpu.jsonl"

# By recipe and batch size, in the order of the seeds.
Tests = dict[tuple[str, int], list[RangeTest]]


def lr_stability(
    configs: list[str],
    output: str,
    batch_sizes: tuple[int, ...] = (512, 128),
    seeds: int = 5,
    data_dir: str | None = None,
) -> None:
    """Run the range tests of recipes and print the spread of their picks.

    Args:
        configs: YAML files of flags of train.py, one a recipe.
        output: File to which a line of JSON a test is added.
        batch_sizes: Batch sizes to test, each with every seed.
        seeds: Number of seeds, from 0.
        data_dir: Folder of the images; null for that of the file.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if seeds < 1:
        raise InputError(f"--seeds must be a whole number, at least 1, got {seeds}")
    for file, batch_size in itertools.product(configs, batch_sizes):
        own = {"data_dir": data_dir, "lr": "auto", "batch_size": batch_size}
        config = read_recipe(file, own, select=True)
        for seed in range(seeds):
            test = measure(replace(config, seed=seed))
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            with Path(output).open("a") as lines:
                lines.write(json.dumps({"recipe": Path(file).stem, **test}) + "\n")
    for (recipe, batch_size), tests in read_tests(Path(output)).items():
        lrs = [test.lr for test in tests]
        picks, spread = " ".join(f"{lr:.2g}" for lr in lrs), max(lrs) / min(lrs)
        print(f"| {recipe} | {batch_size} | {picks} | {spread:.2f} |")


def measure(config: Config) -> dict[str, Any]:
    """One range test as `train` would run it: its curve and circumstances."""
    started = time.perf_counter()
    hardware = choose_hardware(config.accelerator, precision=config.precision)
    images = load_images(config)
    spent = build_module(replace(config, lr=FAST_DEV_LR, compile=False), images)
    *_, test = settle_lr(config, images, hardware, None, spent)
    assert test is not None  # for the rate is auto
    return {
        "date": today(),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "classes": len(images.classes),
        "lr_finder": config.lr_finder,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance.circumstances(hardware),
        "lrs": [float(f"{lr:.5g}") for lr in test.lrs],
        "losses": [float(f"{loss:.5g}") for loss in test.losses],
    }


def read_tests(file: Path) -> Tests:
    """The range tests on record, with the picks of the rule as it is now."""
    tests: Tests = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        given = ("lrs", "losses", "classes", "batch_size")
        test = pick(*(record[field] for field in given))
        setting = record["recipe"], record["batch_size"]
        tests.setdefault(setting, []).append(test)
    return tests


if __name__ == "__main__":
    cli.run("lr_stability.py", lr_stability, outlasts_readers=True)
