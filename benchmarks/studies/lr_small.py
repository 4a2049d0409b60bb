"""Whether `--lr auto` serves small runs: narrow networks, easy or few images.

    python benchmarks/studies/lr_small.py --data_dir FOLDER

records the range test of `train.py` for each base width, seed, batch size and
kind of images, trains each with four fixed rates and with the pick in short runs, and
puts the accuracy on held-out images on record. It takes the narrow networks first, goes
on where it was stopped, and leaves the test set alone. Where a fixed rate gets every
held-out image right, no other can be better, and those left are not tried. A curve
holds no pick: that follows from it by the rule as it is now, so after a change of the
rule only the runs whose pick has moved are missing.

FOLDER holds the real images as train/CLASS/ and test/CLASS/: 7,000 for training, of
which 5,000 are held out, because the accuracy on a few hundred is mostly luck.
"""

import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import pytorch_lightning as pl

from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from benchmarks.studies.lr_stability import measure
from common import cli
from config import DEFAULT_DIR, Config
from machine import memory, provenance
from machine.hardware import Hardware, choose_hardware
from train import build_module, load_images
from training.lr_finder import pick

CURVES = RESULTS / "2026-11-25_lr_small_cpu.jsonl"
RUNS = RESULTS / "2026-11-25_lr_small_cpu.csv"
LRS = (0.003, 0.001, 0.01, 0.03)  # the best one is most often the first
ENOUGH = 0.95  # of the accuracy of the best fixed rate
WIDTHS, BATCH_SIZES = (4, 8, 16, 32, 64), (64, 128, 512)
HELD_OUT = {"shapes": 500, "real": 5000}  # of 5,000 and of 7,000 images
# Short, and yet long enough to learn: large batches give few steps an epoch, and the
# narrowest network needs twice as many.
EPOCHS = {
    "shapes": {64: 2, 128: 3, 512: 8},
    "real": {64: 5, 128: 8, 512: 24},
}


class Setting(NamedTuple):
    """What the runs of a comparison share."""

    base_width: int
    data: str
    batch_size: int
    seed: int


def config_of(setting: Setting, data_dir: str | None) -> Config:
    """All flags of train.py, without a rate."""
    longer = 2 if setting.base_width == min(WIDTHS) else 1
    return Config(
        data="synthetic" if setting.data == "shapes" else "auto",
        data_dir=data_dir or DEFAULT_DIR,
        base_width=setting.base_width,
        batch_size=setting.batch_size,
        seed=setting.seed,
        val_size=HELD_OUT[setting.data],
        max_epochs=longer * EPOCHS[setting.data][setting.batch_size],
    )


def read_picks() -> dict[Setting, float]:
    """What the rule as it is now picks from the range tests on record."""
    lines = CURVES.read_text(encoding="utf-8").splitlines() if CURVES.exists() else []
    picks = {}
    for record in map(json.loads, lines):
        setting = Setting(*(record[field] for field in Setting._fields))
        given = ("lrs", "losses", "classes", "batch_size")
        picks[setting] = pick(*(record[field] for field in given)).lr
    return picks


def lr_small(
    data_dir: str,
    base_widths: tuple[int, ...] = WIDTHS,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seeds: int = 5,
    curves_only: bool = False,
) -> None:
    """Put range tests and short trainings on record, those that are not there yet.

    Args:
        data_dir: Folder of the real images.
        base_widths: Channels of the first convolution.
        batch_sizes: Images in a batch.
        seeds: Number of seeds, from 0.
        curves_only: Do not train.
    """
    memory.keep_freed_memory()
    for plan in itertools.product(base_widths, range(seeds), batch_sizes, EPOCHS):
        base_width, seed, batch_size, data = plan
        setting = Setting(base_width, data, batch_size, seed)
        config = config_of(setting, data_dir)
        if setting not in read_picks():
            record = setting._asdict() | measure(config)
            with CURVES.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if not curves_only:
            train_with_rates(setting, config)


def train_with_rates(setting: Setting, config: Config) -> None:
    """Train with the pick, and with fixed rates until the best one is known."""
    picked = read_picks()[setting]
    for lr in (picked, *LRS):
        accuracies = read_accuracies()
        is_needed = lr == picked or best_fixed(setting, accuracies) is None
        if is_needed and (setting, lr) not in accuracies:
            put_on_record(setting, replace(config, lr=lr))


def best_fixed(
    setting: Setting, accuracies: dict[tuple[Setting, float], float]
) -> float | None:
    """Accuracy with the best fixed rate; None while that is not known."""
    found = [accuracies[setting, lr] for lr in LRS if (setting, lr) in accuracies]
    is_known = len(found) == len(LRS) or 1.0 in found
    return max(found) if is_known else None


def read_accuracies() -> dict[tuple[Setting, float], float]:
    """Accuracy on held-out images, by setting and maximum LR."""
    columns = [*Setting._fields, "lr", "val/acc"]
    rows = read_rows(RUNS, *columns)[columns].itertuples(index=False)
    return {(Setting(*setting), lr): share for *setting, lr, share in rows}


def put_on_record(setting: Setting, config: Config) -> None:
    """Train once and add a row."""
    hardware = choose_hardware("cpu", precision=config.precision)
    started = time.perf_counter()
    row = setting._asdict() | {
        "epochs": config.max_epochs,
        "lr": config.lr,
        "val/acc": round(accuracy(config, hardware), 4),
        "seconds": round(time.perf_counter() - started, 1),
        "date": today(),
        **provenance.circumstances(hardware),
    }
    del row["command"]  # it would name a folder of this machine
    print(*(row[name] for name in (*setting._fields, "lr", "val/acc")), flush=True)
    add_row(RUNS, row)


def accuracy(config: Config, hardware: Hardware) -> float:
    """Train once, and return the accuracy on the held-out images."""
    images = load_images(config)
    module = build_module(config, images)
    trainer = pl.Trainer(
        **hardware.arguments,
        max_epochs=config.max_epochs,
        check_val_every_n_epoch=config.max_epochs,  # the last epoch's is enough
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=images)
    return trainer.callback_metrics["val/acc"].item()


def compare(
    accuracies: dict[tuple[Setting, float], float], picks: dict[Setting, float]
) -> pd.DataFrame:
    """The pick against the best fixed rate, a row a setting; accuracies in percent.

    Settings for which a run is missing are left out.
    """
    rows = []
    for setting, lr in picks.items():
        best, picked = best_fixed(setting, accuracies), accuracies.get((setting, lr))
        if best is not None and picked is not None:
            shares = {"picked": 100 * picked, "best": 100 * best}
            shares["share"] = 100 * picked / best
            rows.append(setting._asdict() | {"lr": lr} | shares)
    return pd.DataFrame(
        rows, columns=[*Setting._fields, "lr", "picked", "best", "share"]
    )


def table() -> str:
    """A row a width, kind of images and batch size; empty where nothing is measured."""
    found = compare(read_accuracies(), read_picks())
    rows = []
    for width, data, batch_size in itertools.product(WIDTHS, EPOCHS, BATCH_SIZES):
        same = found.query(
            "base_width == @width and data == @data and batch_size == @batch_size"
        )
        row = {"base width": width, "images": data, "batch size": batch_size}
        rows.append(row | summary(same))
    return f"{markdown(pd.DataFrame(rows))}\n\n{verdict(found)}"


def summary(seeds: pd.DataFrame) -> dict[str, str]:
    """Number, picks, mean accuracies, and the worst and the mean share of the best."""
    cells = {"n": str(len(seeds)), "picks": "", "with the pick": "", "best of four": ""}
    cells |= {"share: worst": "", "mean": ""}
    if seeds.empty:
        return cells
    ends = {f"{lr:.2g}": None for lr in (seeds["lr"].min(), seeds["lr"].max())}
    return cells | {
        "picks": " to ".join(ends),
        "with the pick": f"{seeds['picked'].mean():.1f}",
        "best of four": f"{seeds['best'].mean():.1f}",
        "share: worst": f"{seeds['share'].min():.1f}",
        "mean": f"{seeds['share'].mean():.1f}",
    }


def verdict(found: pd.DataFrame) -> str:
    """Where the pick reaches less than `ENOUGH` of the best rate, in two sentences."""
    lines = []
    shares = found.groupby([*Setting._fields[:3]])["share"]
    for words, of_row in (
        ("in the mean of its seeds", shares.mean()),
        ("in one seed or more", shares.min()),
    ):
        rows = [
            f"base width {width}, {data}, batch {batch_size}"
            for width, data, batch_size, share in of_row.reset_index().to_numpy()
            if share < 100 * ENOUGH
        ]
        lines.append(
            f"Rows with less than {100 * ENOUGH:.0f} % of the best of four {words}: "
            f"{'; '.join(rows) or 'none'}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run("lr_small.py", lr_small)
