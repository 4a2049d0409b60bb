"""The report of a run: one HTML file that loads nothing from elsewhere."""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from analysis import figures
from analysis.evaluation import Evaluation, Mistake
from analysis.html import png, svg, write_page
from analysis.loading import check_same_images, load_model
from analysis.samples import Samples, first_samples
from common.cli import without_flags
from common.errors import InputError
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet, one_cycle
from networks import build_network
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
SAMPLES = 10  # training images that are shown
PAIRS = 10  # most confused pairs that are named
EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.")
NUMBERED = 25  # classes whose confusion matrix has legible numbers
# A place on this machine, or in its network: /home/me/x, ~me/x, C:\x, //server/x.
OF_MACHINE = re.compile(r"(file:|~[^/\\]*|[A-Za-z]:)?[/\\]")
PASSWORD = re.compile(r"(?<=://)[^/@]*@")  # and the user's name before it


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
        names = [path.name for path in self.path.glob("events.out.tfevents.*")]
        times = [int(found[1]) for found in map(EVENTS.match, names) if found]
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
        raise InputError(f"{path}: {problem}; give the folder of a run, as runs/NAME")
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{path} has no {', no '.join(missing)}: not a finished run; go on with it "
            f"(train.py --name {path.name} --ckpt_path last), or give another"
        )
    config = _read_config(path / "config.yaml")
    if data_dir is not None:
        config = replace(config, data_dir=data_dir)
    metrics = _read(path / "metrics.json", _parse_metrics, METRICS)
    rows = _read(path / "metrics.csv", _parse_rows, ())
    return Run(path, config, metrics, rows, _read_range_test(path / "lr_finder.json"))


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
    check_same_images(model, images, ckpt_path)
    return model, images


def write_report(
    run: Run,
    evaluation: Evaluation,
    images: CIFAR10DataModule,
    path: Path | None = None,
    *,
    public: bool = False,
) -> Path:
    """Write the report of a run.

    Args:
        run: A finished run.
        evaluation: Of the network of its last epoch on all test images.
        images: The run's data module, set up.
        path: The HTML file; None for `report.html` in the run's folder.
        public: Whether to leave out folders of this machine, and to put a drawing in
            the place of each image.

    Raises:
        InputError: The package that fills in the template is missing.
    """
    stand_in = None
    if public:
        evaluation = hide_images(evaluation)
        stand_in = placeholder()
    drawings = {
        name: svg(draw, name) for name, draw in _drawings(run, evaluation).items()
    }
    words = shlex.split(run.metrics["command"])
    from_the_beginning = without_flags(words, "--ckpt_path")
    command = shlex.join(from_the_beginning)
    return write_page(
        path or run.path / "report.html",
        "report.html",
        run=run,
        started=run.started(),
        best=run.best_epoch(),
        evaluation=evaluation,
        sizes=images.sizes(),
        resumed=from_the_beginning != words,
        samples=_strip(first_samples(images, SAMPLES, stand_in)),
        parameters=_parameters(run, evaluation),
        drawings=drawings,
        numbered=len(evaluation.classes) <= NUMBERED,
        pairs=evaluation.confused_pairs(PAIRS),
        gallery=[(mistake, *_pictures(mistake)) for mistake in evaluation.mistakes],
        public=public,
        shown=without_folders if public else str,
        command=command_without_folders(command) if public else command,
    )


def hide_images(evaluation: Evaluation) -> Evaluation:
    """The same figures, with a drawing in the place of each image."""
    hidden = [one._replace(image=placeholder()) for one in evaluation.mistakes]
    return evaluation._replace(mistakes=hidden)


def placeholder() -> Tensor:
    """A drawing that stands for an image and says so, uint8 (32, 32, 3)."""
    drawing = Image.new("RGB", (32, 32), (130, 140, 150))
    canvas = ImageDraw.Draw(drawing)
    canvas.rectangle((0, 0, 31, 31), outline=(90, 100, 110))
    canvas.multiline_text(
        (16, 16), "not\nshown", "white", anchor="mm", align="center", font_size=10
    )
    return torch.from_numpy(np.array(drawing))


def without_folders(value: str) -> str:
    """A flag's value without the folders of this machine, and without passwords."""
    value = PASSWORD.sub("", value)
    if not OF_MACHINE.match(value) and ".." not in re.split(r"[/\\]", value):
        return value
    name = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return f"…/{name}"


def command_without_folders(command: str) -> str:
    """A command with flags as `without_folders` gives them."""
    words = []
    for word in shlex.split(command):
        _, flag, value = re.split(r"^(--[\w.]+=|)", word, maxsplit=1)
        hidden = without_folders(value)
        start = "…/" if hidden.startswith("…/") else ""
        words.append(flag + start + shlex.quote(hidden.removeprefix("…/")))
    return " ".join(words)


def lr_schedule(lr: float, steps: int) -> tuple[list[float], list[float]]:
    """The learning rate and Adam's first beta at each step of a run.

    Args:
        lr: The maximum.
        steps: Length of the run.
    """
    optimizer = torch.optim.Adam([torch.zeros(1)])
    cycle = one_cycle(optimizer, lr, steps)
    lrs: list[float] = []
    betas: list[float] = []
    for _ in range(steps):
        [group] = optimizer.param_groups
        lrs.append(group["lr"])
        betas.append(group["betas"][0])
        optimizer.step()  # or the schedule warns
        cycle.step()
    return lrs, betas


def _drawings(run: Run, evaluation: Evaluation) -> dict[str, Callable[[], Figure]]:
    rows, counts, test = run.rows, evaluation.counts, run.test
    lrs, _ = lr_schedule(float(run.config.lr), int(rows[-1]["step"]))
    drawings: dict[str, Callable[[], Figure]] = {
        "loss": lambda: figures.curve_figure(rows, "loss"),
        "accuracy": lambda: figures.curve_figure(rows, "acc"),
        "schedule": lambda: figures.schedule_figure(lrs, len(rows)),
        "reliability": lambda: figures.reliability_figure(evaluation.calibration),
    }
    if test is not None:
        drawings["lr_finder"] = lambda: figures.lr_finder_figure(test, figures.SMALL)
    if len(evaluation.classes) > NUMBERED:
        drawings["confusion"] = lambda: figures.confusion_figure(
            counts, evaluation.classes
        )
    return drawings


def _read(path: Path, parse: Callable[[str], Any], keys: Sequence[str]) -> Any:
    try:
        content = parse(path.read_text(encoding="utf-8"))
        lacking = [key for key in keys if key not in content]
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        content, lacking = None, []
    if not content or lacking:
        reason = f"has no {lacking[0]}" if lacking else "is damaged"
        raise InputError(f"{path} {reason}; give a run of this version of train.py")
    return content


def _read_config(path: Path) -> Config:
    values = _read(path, yaml.safe_load, FLAGS)
    try:
        config = Config(**values)
    except (InputError, TypeError) as error:
        raise InputError(
            f"{path}: {error}; give a run of this version of train.py"
        ) from None
    if config.lr == "auto":
        raise InputError(f"{path} has no rate; give a run of this version of train.py")
    return config


def _read_range_test(path: Path) -> RangeTest | None:
    if not path.is_file():
        return None
    found = _read(path, _parse_range_test, RangeTest._fields)
    losses = [np.nan if loss is None else loss for loss in found["losses"]]
    return RangeTest(found["lrs"], losses, tuple(found["valley"]), found["lr"])


def _parse_metrics(text: str) -> Any:
    metrics = json.loads(text)
    if isinstance(metrics, dict):
        always = {metrics.get(name, 0) for name in ("max_lr", "seconds", "epochs")}
        shares = {share for name, share in metrics.items() if "/acc" in name} - {None}
        if not all(math.isfinite(value) for value in always | shares):
            raise ValueError("not a number")
    return metrics


def _parse_range_test(text: str) -> Any:
    found = dict(json.loads(text))
    if {*RangeTest._fields} <= {*found}:
        low, high = found["valley"]
        if not 0 < len(found["lrs"]) == len(found["losses"]) or not low <= high:
            raise ValueError("not a loss a rate")
    return found


def _parse_rows(text: str) -> list[Row]:
    rows = [
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader(io.StringIO(text))
    ]
    for row in rows:
        if "epoch" not in row or not 1 <= row.get("step", 0) < math.inf:
            raise ValueError("not a row an epoch")
    return rows


def _parameters(run: Run, evaluation: Evaluation) -> int:
    with torch.device("meta"):  # counts them without making them
        net = build_network(
            run.config.net, len(evaluation.classes), run.config.base_width
        )
    return sum(parameter.numel() for parameter in net.parameters())


def _pictures(mistake: Mistake) -> tuple[str, str]:
    image = mistake.image.numpy()
    return png(image), png(figures.overlay(image, mistake.heat.numpy()))


def _strip(samples: Samples) -> list[tuple[str, str]]:
    """Each sample as it is, and as the training sees it."""
    both = zip(samples.originals, samples.augmented, strict=True)
    return [(png(image.numpy()), png(seen.numpy())) for image, seen in both]
