"""Recipes: the flags of a file, what of them is on record, and how one is trained.

All that knows flags of train.py by name is here. What the protocol decides overrules
the file: each run has a seed of its own, trains on all training images or, to select,
on those that are not held out, and the network of its last epoch is tested once.
"""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import Callback

from analysis import finished_run
from common import cli
from common.errors import InputError, StoppedError
from common.files import expanded, replacing
from config import MARKS, Config
from datamodule import DEFAULT_VAL_SIZE
from images.class_folders import SPLITS, is_image_folder
from images.files import list_files
from images.sources import CIFAR10_CLASSES
from machine import provenance
from machine.hardware import choose_hardware
from train import FAST_DEV_LR, train_with

CONFIGS = provenance.PROJECT / "configs"
WARM_UP_STEPS = 3
# What the protocol decides, and what is on record otherwise or says where, not what.
PROTOCOL: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "overwrite": True,
    "ckpt_path": None,
    "report": False,
    "logger": "tensorboard",
    "show_layers": False,
    "fast_dev_run": False,
    "limit_val_batches": 1.0,
}
MEASURING = {"val_size": 0, "limit_test_batches": 1.0, "tta": "flip"}
SELECTING = {"val_size": "auto", "limit_test_batches": 0, "tta": "none"}
OTHERWISE = (
    *("accelerator", "precision", "seed", "data", "data_dir", "download_url"),
    *("output_dir", "name", "ckpt_every_n_steps", "limit_test_batches", "tta"),
)
# What runs had that are older than the flag, where that is no longer the default.
BEFORE = {"whiten": "False", "dirac": "False"}
# The flags that make a recipe: columns of every record of runs.
FLAGS = tuple(flag for flag in MARKS if flag not in (*PROTOCOL, *OTHERWISE))
# Flags that change together on the way from one recipe to another, in this order. Any
# other flag that differs is a step of its own, after these.
STEPS = {
    "label smoothing": ("label_smoothing",),
    "weight decay": ("weight_decay",),
    "flip": ("flip",),
    "border of the crop": ("padding_mode",),
    "cutout": ("cutout",),
    "batch size and learning rate": ("batch_size", "lr", "lr_steps", "lr_finder"),
    "whitening start": ("whiten",),
    "Dirac start": ("dirac",),
    # Last, for how far an average reaches back, in epochs, hangs on the batch size.
    "averaged weights": ("ema_decay",),
}
SHARED = ("accelerator", "precision", "data", "data_dir", "max_epochs")


def read_recipe(file: str | None, own: dict[str, Any], *, select: bool) -> Config:
    """All flags of train.py but the seed and the name, the protocol's applied.

    Args:
        file: YAML file of flags; None for the defaults.
        own: Flags that overrule those of the file where they are not None.
        select: Hold out training images, and leave the test set alone.

    Raises:
        InputError: A value is out of its range.
    """
    arguments = [
        f"--{flag}={value}" for flag, value in own.items() if value is not None
    ]
    if file is not None:
        arguments = ["--config", file, *arguments]
    flags = cli.parse(Config, arguments, Path(sys.argv[0]).name)
    config = Config(**flags | PROTOCOL | (SELECTING if select else MEASURING))
    kind = "selection" if select else "recipes"
    return replace(config, output_dir=Path(config.output_dir) / kind)


def write_recipe(file: str, recipe: str, changes: dict[str, Any], said: str) -> None:
    """Write a recipe that differs from another in some flags.

    Args:
        file: YAML file to write.
        recipe: That of the other one.
        changes: The flags in which it differs.
        said: What speaks for it, as its first line says.
    """
    given = yaml.safe_load(Path(recipe).read_text("utf-8")) or {}
    target = expanded(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, "w") as opened:
        opened.write(f"# Chosen from {said}.\n\n")
        yaml.safe_dump(given | changes, opened, sort_keys=False)


def read_run(folder: Path) -> Config:
    """The flags of a finished run, with "auto" where a range test found the rate."""
    run = finished_run.read_run(folder)
    return run.config if run.test is None else replace(run.config, lr="auto")


def columns(config: Config) -> dict[str, str]:
    """Images and flags of a recipe, as in the rows on record."""
    folder = Path(config.data_dir).resolve()
    images = name_of(folder) if is_image_folder(folder) else "cifar10"
    images = "shapes" if config.data == "synthetic" else images
    flags = {flag: str(getattr(config, flag)) for flag in FLAGS}
    if images == "cifar10" and config.val_size == DEFAULT_VAL_SIZE:
        flags["val_size"] = "auto"  # a run knows only what that was settled to
    return {"images": images, **flags}


@functools.cache
def name_of(folder: Path) -> str:
    """What to call the images of a folder: others of the same name get another one."""
    files = [
        (os.path.relpath(file, folder).replace(os.sep, "/"), os.path.getsize(file))
        for split in SPLITS
        if (folder / split).is_dir()
        for file in list_files(folder / split)
    ]
    whole = [
        f"{split}/{name}" for split in ("train", "test") for name in CIFAR10_CLASSES
    ]
    counts = Counter(name.rpartition("/")[0] for name, _ in files)
    if counts == {name: 5000 if name.startswith("train") else 1000 for name in whole}:
        return "cifar10"
    digest = hashlib.sha256(repr(files).encode(errors="replace")).hexdigest()
    return f"{folder.name} {digest[:6]}"


def find_steps(name: str, first: Config, last: Config) -> list[tuple[str, Config]]:
    """The recipes on the way from one to another, both included, named by their steps.

    Args:
        name: Of the first.
        first: Its flags.
        last: Those of the last.

    Raises:
        InputError: There is no way, or the steps would not be measured alike.
    """
    before, after = asdict(first), asdict(last)
    for flag in SHARED:
        if before[flag] != after[flag]:
            raise InputError(
                f"the first recipe has {flag} {before[flag]}, the last {after[flag]}; "
                "give both the same, for the steps are measured alike"
            )
    differing = [flag for flag in FLAGS if before[flag] != after[flag]]
    if not differing:
        raise InputError("--steps leads from one recipe to another; these are the same")
    grouped = {flag for flags in STEPS.values() for flag in flags}
    groups = STEPS | {flag: (flag,) for flag in differing if flag not in grouped}
    steps = [(name, first)]
    for step, flags in groups.items():
        changes = {flag: after[flag] for flag in flags if flag in differing}
        if changes:
            steps.append((step, replace(steps[-1][1], **changes)))
    return steps


def place(config: Config) -> dict[str, str]:
    """Device and precision of a recipe here, as in the rows on record."""
    hardware = choose_hardware(config.accelerator, precision=config.precision)
    found = provenance.circumstances(hardware)
    return {column: found[column] for column in ("device", "precision")}


def warm_up(config: Config) -> None:
    """Train a few steps that leave nothing behind and are not timed."""
    # TensorBoard's writer may still be at work in it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        few = replace(
            config,
            max_epochs=1,
            limit_train_batches=WARM_UP_STEPS,
            limit_test_batches=0,
            lr=FAST_DEV_LR if config.lr == "auto" else config.lr,
            output_dir=folder,
            name="warm_up",
        )
        quietly_train(few)


def quietly_train(config: Config, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train, and leave standard output to others: what is printed is progress."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return train_with(config, callbacks)
    except StoppedError as stop:
        message = f"stopped by {stop.name}; the same command goes on"
        cli.end_together(Path(sys.argv[0]).name, message, stop.exit_code)
