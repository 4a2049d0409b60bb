"""The report of a run: one HTML file that loads nothing from elsewhere."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from analysis import figures
from analysis.evaluation import Evaluation, Mistake
from analysis.finished_run import Run
from analysis.html import png, svg, write_page
from analysis.samples import Samples, first_samples
from common.cli import without_flags
from datamodule import CIFAR10DataModule
from lightning_module import one_cycle
from networks import build_network

SAMPLES = 10  # training images that are shown
PAIRS = 10  # most confused pairs that are named
# A place on this machine, or in its network: /home/me/x, ~me/x, C:\x, //server/x.
OF_MACHINE = re.compile(r"(file:|~[^/\\]*|[A-Za-z]:)?[/\\]")
PASSWORD = re.compile(r"(?<=://)[^/@]*@")  # and the user's name before it


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
        numbered=len(evaluation.classes) <= figures.NUMBERED,
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
    if len(evaluation.classes) > figures.NUMBERED:
        drawings["confusion"] = lambda: figures.confusion_figure(
            counts, evaluation.classes
        )
    return drawings


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
