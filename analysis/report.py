"""The report of a run: one HTML file that loads nothing from elsewhere."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from analysis import figures
from analysis.evaluation import Evaluation, Mistake, evaluate_images
from analysis.loading import check_same_images, load_model
from common.errors import InputError
from common.files import replacing
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet, one_cycle
from networks import build_network
from training.history import Row

TEMPLATES = Path(__file__).parent / "templates"
FILES = ("config.yaml", "metrics.json", "metrics.csv", "checkpoints/last.ckpt")
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
NOTHING, SPACE = "\N{EN DASH}", "\N{NO-BREAK SPACE}"
INK = "#010101"  # stands for the page's own text colour
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    # Blue, orange, green, red that can be seen on white and on black.
    "axes.prop_cycle": "cycler('color', ['#2f81c7', '#e07b22', '#3a9a4b', '#d6404b'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
}


class Run(NamedTuple):
    """What a finished run left behind.

    Attributes:
        path: Its folder.
        config: That of config.yaml.
        metrics: What is in metrics.json.
        rows: The rows of metrics.csv.
    """

    path: Path
    config: Config
    metrics: dict[str, Any]
    rows: list[Row]


def read_run(path: Path, data_dir: str | None = None) -> Run:
    """Read the files of a run folder.

    Args:
        path: The folder.
        data_dir: Where the images are now; None for where they were.

    Raises:
        InputError: The run is not finished, or a file is not as train.py writes it.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give that of a run, as runs/NAME")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{path} has no {', no '.join(missing)}: not a finished run; go on with it "
            f"(train.py --name {path.name} --ckpt_path last), or give another"
        )
    config = _read_config(path / "config.yaml")
    if data_dir is not None:
        config = replace(config, data_dir=data_dir)
    metrics = _read(path / "metrics.json", json.loads, METRICS)
    rows = _read(path / "metrics.csv", _parse_rows, ())
    return Run(path, config, metrics, rows)


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
        images = CIFAR10DataModule(
            run.config.data,
            run.config.data_dir,
            run.config.batch_size,
            run.config.val_size,
            run.config.seed,
        )
        images.setup()
    check_same_images(model, images, ckpt_path)
    return model, images


def evaluate_run(
    run: Run, device: torch.device, images: CIFAR10DataModule | None = None
) -> Evaluation:
    """Evaluate the network of the last epoch on all test images.

    Args:
        run: A finished run.
        device: Where to look at them.
        images: The run's data module, set up; None to read the images again.

    Raises:
        InputError: The checkpoint or the images cannot be read, or do not fit.
    """
    model, images = open_run(run, images=images)
    return evaluate_images(model.to(device), *images.test_set)


def write_report(run: Run, evaluation: Evaluation) -> Path:
    """Write `report.html` into the run's folder.

    Raises:
        InputError: The package that fills in the template is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise InputError(
            "it needs jinja2; pip install -r requirements-extras.txt"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "flag": _flag}
    environment.globals["nothing"] = NOTHING
    drawings = {
        name: svg(draw, name) for name, draw in _drawings(run, evaluation).items()
    }
    page = environment.get_template("report.html").render(
        run=run,
        evaluation=evaluation,
        parameters=_parameters(run, evaluation),
        drawings=drawings,
        lr_finder=_embedded(run.path / "lr_finder.png"),
        gallery=[(mistake, *_pictures(mistake)) for mistake in evaluation.mistakes],
    )
    path = run.path / "report.html"
    with replacing(path) as file:
        file.write(page.encode())
    return path


def lr_schedule(lr: float, steps: int) -> list[float]:
    """The learning rate of each step of a run.

    Args:
        lr: The maximum.
        steps: Length of the run.
    """
    optimizer = torch.optim.Adam([torch.zeros(1)])
    cycle = one_cycle(optimizer, lr, steps)
    rates: list[float] = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()  # or the schedule warns
        cycle.step()
    return rates


def svg(draw: Callable[[], Figure], name: str) -> str:
    """Draw a figure as an SVG element whose axes and text have the page's colour.

    Args:
        draw: Makes the figure.
        name: Tells its parts from those of other figures on the page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with figures.own_style(STYLE | {"svg.hashsalt": name}):
        draw().savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)


def percent(share: float | None, digits: int = 2) -> str:
    """A share as in "90.35 %"; a dash for none."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def duration(seconds: float) -> str:
    """Seconds as in "28 s", "27 min 19 s" or "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    text = f"{hours} h {minutes} min" if hours else text
    return text.replace(" ", SPACE)


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # as in config.yaml


def _drawings(run: Run, evaluation: Evaluation) -> dict[str, Callable[[], Figure]]:
    rows, counts, classes = run.rows, evaluation.counts, evaluation.classes
    lrs = lr_schedule(float(run.config.lr), int(rows[-1]["step"]))
    return {
        "loss": lambda: figures.curve_figure(rows, "loss"),
        "accuracy": lambda: figures.curve_figure(rows, "acc"),
        "schedule": lambda: figures.schedule_figure(lrs, len(rows)),
        "confusion": lambda: figures.confusion_figure(counts, classes),
        "per_class": lambda: figures.per_class_figure(counts, classes),
        "reliability": lambda: figures.reliability_figure(evaluation.calibration),
    }


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
        return Config(**values)
    except (InputError, TypeError) as error:
        raise InputError(
            f"{path}: {error}; give a run of this version of train.py"
        ) from None


def _parse_rows(text: str) -> list[Row]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if any(not row.get("epoch") or not row.get("step") for row in rows):
        raise ValueError("not a row an epoch")
    return [
        {name: float(value) for name, value in row.items() if value} for row in rows
    ]


def _parameters(run: Run, evaluation: Evaluation) -> int:
    with torch.device("meta"):  # counts them without making them
        net = build_network(
            run.config.net, len(evaluation.classes), run.config.base_width
        )
    return sum(parameter.numel() for parameter in net.parameters())


def _pictures(mistake: Mistake) -> tuple[str, str]:
    image = mistake.image.numpy()
    return _png(image), _png(figures.overlay(image, mistake.heat.numpy()))


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return _data_uri(file.getvalue())


def _embedded(path: Path) -> str | None:
    return _data_uri(path.read_bytes()) if path.is_file() else None


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
