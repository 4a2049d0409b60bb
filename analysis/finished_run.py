"""What a finished run left behind: its files, its network and its images."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from analysis.loading import load_model
from common.errors import InputError
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet
from training.history import Row
from training.lr_finder import RangeTest

RECORDS = ("config.yaml", "metrics.json", "metrics.csv")
FILES = (*RECORDS, "checkpoints/last.ckpt")
# What a report shows or uses. Runs of before another flag was there have its default.
FLAGS = ("data", "data_dir", "batch_size", "val_size", "seed", "lr", "base_width")
METRICS = (
    *(
        f"{split}/{name}"
        for split in ("train", "val", "test")
        for name in ("acc", "loss")
    ),
    *("max_lr", "epochs", "seconds", "images_per_second"),
    *("command", "commit", "device", "precision", "versions"),
)


class Run(NamedTuple):
    """What a finished run left behind.

    Attributes:
        path: Its folder.
        config: That of config.yaml.
        metrics: What is in metrics.json.
        rows: The rows of metrics.csv.
        test: The range test; None where there was none, or it was not kept.
    """

    path: Path
    config: Config
    metrics: dict[str, Any]
    rows: list[Row]
    test: RangeTest | None = None

    def started(self) -> datetime | None:
        """When it began, by its files for TensorBoard; None where they are gone."""
        files = self.path.glob("events.out.tfevents.*")
        times = [int(path.name.split(".")[3]) for path in files]
        return datetime.fromtimestamp(min(times), UTC) if times else None

    def used(self, split: str, size: int) -> str:
        """How many of the images of a split were used, in words."""
        limit = getattr(self.config, f"limit_{split}_batches")
        if not limit:
            return "none"
        return f"{size:,}" if str(limit) == "1.0" else f"a part of {size:,}"  # 1 is one

    def best_epoch(self) -> Row | None:
        """The row of the first epoch with the best validation accuracy, if any."""
        rows = [row for row in self.rows if "val/acc" in row]
        return max(rows, key=lambda row: row["val/acc"], default=None)


def read_run(
    path: Path, data_dir: str | None = None, files: Sequence[str] = FILES
) -> Run:
    """Read the files of a run folder.

    Args:
        path: The folder.
        data_dir: Where the images are now; None for where they were.
        files: What must be there.

    Raises:
        InputError: The run is not finished, or a file is not as train.py writes it.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "no such folder"
        raise InputError(
            f"{path}: {problem}; give the folder of a run, such as runs/NAME"
        )
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{path} has no {', no '.join(missing)}: not a finished run; resume it "
            f"(train.py --name {path.name} --ckpt_path last), or give another"
        )
    config = _read(path / "config.yaml", _parse_config)
    if data_dir is not None:
        config = replace(config, data_dir=data_dir)
    metrics = _read(path / "metrics.json", _parse_metrics)
    rows = _read(path / "metrics.csv", _parse_rows)
    test = path / "lr_finder.json"
    found = _read(test, _parse_range_test) if test.is_file() else None
    return Run(path, config, metrics, rows, found)


def open_run(
    run: Run, ckpt_path: Path | None = None, images: CIFAR10DataModule | None = None
) -> tuple[LitCustomResNet, CIFAR10DataModule]:
    """The network and the images of a run, checked against each other.

    Args:
        run: A finished run.
        ckpt_path: Checkpoint of the network; None for that of the last epoch.
        images: The run's data module, set up; None to read the images again.

    Raises:
        InputError: The checkpoint or the images cannot be read, or do not fit.
    """
    ckpt_path = ckpt_path or run.path / "checkpoints" / "last.ckpt"
    model = load_model(ckpt_path)
    if images is None:
        images = CIFAR10DataModule.from_config(run.config)
        images.setup()
    _check_same_images(model, images, ckpt_path)
    return model, images


def _check_same_images(
    model: LitCustomResNet, images: CIFAR10DataModule, path: Path
) -> None:
    """Make sure that a network was trained with images of this source.

    Args:
        model: As `load_model` gives it.
        images: The data module, set up.
        path: The network's checkpoint, for the message.

    Raises:
        InputError: Their classes, mean or standard deviation are others.
    """
    for name in ("classes", "mean", "std"):
        if list(model.hparams[name]) != list(getattr(images, name)):
            raise InputError(
                f"--data_dir {images.data_dir}: the {name} of the images are not those "
                f"that {path} was trained with; put its images there"
            )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """What is in a file of a run.

    Args:
        path: The file.
        parse: Takes its text. Raises a KeyError with the name of what is not there, an
            InputError that says what is wrong, or whatever a damaged text leads to.

    Raises:
        InputError: It is not as train.py writes it.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except InputError as error:
        problem = f": {error}"
    except KeyError as error:
        problem = f" has no {error.args[0]}"
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        problem = " is damaged"
    raise InputError(f"{path}{problem}; give a run of this version of train.py")


def _require(names: Sequence[str], content: Any) -> None:
    for name in names:
        if name not in content:
            raise KeyError(name)


def _parse_config(text: str) -> Config:
    values = yaml.safe_load(text)
    _require(FLAGS, values)
    try:
        config = Config(**values)
    except TypeError as error:  # a flag of another version
        raise InputError(str(error)) from None
    if config.lr == "auto":
        raise KeyError("rate")
    return config


def _parse_metrics(text: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(text)
    _require(METRICS, metrics)
    always = {metrics[name] for name in ("max_lr", "seconds", "epochs")}
    shares = {share for name, share in metrics.items() if "/acc" in name} - {None}
    if not all(math.isfinite(value) for value in always | shares):
        raise ValueError("not a number")
    return metrics


def _parse_range_test(text: str) -> RangeTest:
    found = json.loads(text)
    lrs, losses, (low, high), lr = (found[name] for name in RangeTest._fields)
    if not 0 < len(lrs) == len(losses) or not low <= high:
        raise ValueError("not a loss a rate")
    losses = [math.nan if loss is None else loss for loss in losses]
    return RangeTest(lrs, losses, (low, high), lr)


def _parse_rows(text: str) -> list[Row]:
    rows = [
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader(io.StringIO(text))
    ]
    for row in rows:
        if "epoch" not in row or not 1 <= row.get("step", 0) < math.inf:
            raise ValueError("not a row an epoch")
    if not rows:
        raise ValueError("no row")
    return rows
