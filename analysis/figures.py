"""Figures from numbers. Each function returns a figure; the caller saves or logs it."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from analysis.evaluation import Calibration, Mistake
from config import IMAGE_SIZE
from training.history import Row
from training.lr_finder import RangeTest, smooth

SMALL = (4.8, 3.2)  # inches: legible on a phone
ENLARGED = 8  # times, in the pictures of where the network looks
NUMBERED = 25  # classes whose confusion matrix has legible numbers
LONGEST_NAME = 24  # letters of a class name in a figure
# From transparent to blue, so that it goes with a light and with a dark page.
SHADES = LinearSegmentedColormap.from_list("shades", ["#2f81c700", "#2f81c7"])
DASHES = ("-", "--", ":", "-.")  # of the first ten runs, the next ten, and so on


# Fonts with the letters of East Asia, one of which most systems have.
MORE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
)


@contextlib.contextmanager
def own_style(settings: dict[Any, Any] | None = None) -> Iterator[None]:
    """Draw and save figures with matplotlib's defaults, whatever the user has set.

    A matplotlibrc may ask for LaTeX, which may not be there. Names of classes that no
    font here can write are boxes in pictures, and letters in a page. Usable as a
    decorator.

    Args:
        settings: What is to be otherwise than by default; None for more fonts only.
    """
    if settings is None:
        here = [name for name in MORE_FONTS if name in font_manager.get_font_names()]
        settings = {"font.family": ["DejaVu Sans", *here]}
    with (
        matplotlib.style.context(["default", settings]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def rendered(figure: Figure, dpi: int = 100) -> NDArray[np.uint8]:
    """A figure as loggers take it: uint8 (H, W, 3)."""
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def lr_finder_figure(test: RangeTest, size: tuple[float, float] = (6.4, 4)) -> Figure:
    """Loss over learning rate, raw and smoothed, with the pick.

    Args:
        test: The range test.
        size: In inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    smoothed = smooth(test.losses)
    axes.semilogx(test.lrs, test.losses, color="0.6", label="loss of a batch")
    axes.semilogx(test.lrs, smoothed, color="C0", label="smoothed")
    axes.axvspan(*test.valley, color="C0", alpha=0.1, linewidth=0, label="valley")
    axes.axvline(test.lr, color="C3", linestyle="--", label=f"max LR {test.lr:.3g}")
    # The end of the test is off the scale by design; show where the decision falls.
    in_valley = [
        loss
        for lr, loss in zip(test.lrs, smoothed, strict=False)
        if test.valley[0] <= lr <= test.valley[1]
    ]
    low = np.nanmin(smoothed)
    top = max(loss for loss in (low, smoothed[0], *in_valley) if np.isfinite(loss))
    height = top - low or 1.0
    axes.set_ylim(low - 0.3 * height, top + height)
    axes.set(title="LR range test", xlabel="learning rate", ylabel="training loss")
    axes.legend(loc="lower left")
    return figure


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Loss and accuracy by epoch, training and validation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        _draw_curves(axes, rows, metric)
    return figure


def curve_figure(rows: Sequence[Row], metric: str) -> Figure:
    """One of the two: "loss" or "acc"."""
    figure = Figure(figsize=SMALL, layout="constrained")
    _draw_curves(figure.subplots(), rows, metric)
    return figure


def _draw_curves(axes: Any, rows: Sequence[Row], metric: str) -> None:
    scale = 100 if metric == "acc" else 1
    epochs = [row["epoch"] + 1 for row in rows]
    for split in ("train", "val"):
        values = [scale * row.get(f"{split}/{metric}", np.nan) for row in rows]
        if not np.isnan(values).all():
            axes.plot(epochs, values, marker="o", markersize=3, label=split)
    _label_epochs(axes, metric)
    axes.legend()


def _label_epochs(axes: Any, metric: str) -> None:
    is_accuracy = metric.endswith("acc")
    axes.set(xlabel="epoch", ylabel="accuracy (%)" if is_accuracy else "loss")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)


def schedule_figure(lrs: Sequence[float], epochs: int) -> Figure:
    """Learning rate over the training.

    Args:
        lrs: That of each step.
        epochs: Length of the training.
    """
    figure = Figure(figsize=SMALL, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(lrs)) * epochs / len(lrs), lrs)
    axes.set(xlabel="epochs done", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Confusion matrix in percent of each true class.

    Args:
        counts: int64 (C, C), true classes down, predicted ones across.
        classes: Name of each of the C classes.
    """
    counts = counts.cpu()  # a Mac's GPU has no float64
    share = 100 * counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(0.6 * len(classes) + 2, 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        share.numpy(), cmap=SHADES, vmin=0, vmax=100, interpolation="none"
    )
    ticks, names = _ticks(classes, most=60)
    # A class may be named $like_this, which is no formula.
    axes.set_xticks(ticks, names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    numbered = len(classes) <= NUMBERED
    if not numbered:
        figure.colorbar(image, ax=axes, shrink=0.7)
    for true, row in enumerate(share.tolist() if numbered else ()):
        for predicted, value in enumerate(row):
            axes.text(
                predicted,
                true,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize="small",
            )
    axes.set(
        title="Test images, % of each true class", xlabel="predicted", ylabel="true"
    )
    return figure


def per_class_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Accuracy on the images of each class.

    Args:
        counts: int64 (C, C), true classes down, predicted ones across.
        classes: Name of each of the C classes.
    """
    total = counts.sum(dim=1)
    accuracy = (100 * counts.diag() / total.clamp_min(1)).tolist()
    height = min(0.26 * len(classes) + 0.9, 40)
    figure = Figure(figsize=(SMALL[0], height), layout="constrained")
    axes = figure.subplots()
    places = range(len(classes))
    bars = axes.barh(places, accuracy, height=0.7)
    labels = [
        f"{value:.1f}" if count else "no image"
        for value, count in zip(accuracy, total.tolist(), strict=True)
    ]
    axes.bar_label(bars, labels, padding=3, fontsize="small")
    axes.set_yticks(*_ticks(classes, most=150), parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), xlabel="accuracy (%)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def reliability_figure(calibration: Calibration) -> Figure:
    """Accuracy over confidence in equal-width bins, and the share of images in each."""
    figure = Figure(figsize=(SMALL[0], 4.4), layout="constrained")
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)}
    )
    bins = len(calibration.counts)
    edges = 100 * np.arange(bins) / bins
    box: dict[str, Any] = {"width": 100 / bins, "align": "edge", "edgecolor": "C0"}
    above.bar(edges, 100 * calibration.accuracy.numpy(), alpha=0.6, **box)
    above.plot((0, 100), (0, 100), color="C3", linestyle="--", label="perfect")
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
    above.set_title(f"ECE {100 * calibration.ece:.2f} % ({bins} equal-width bins)")
    above.legend(loc="upper left")
    share = 100 * calibration.counts / calibration.counts.sum()
    below.bar(edges, share.numpy(), alpha=0.6, **box)
    below.set(xlabel="confidence (%)", ylabel="images (%)")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def samples_figure(images: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Images with the names of their classes.

    Args:
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,).
        classes: Name of each of the C classes.
    """
    gap, columns = 10, 8
    grid = make_grid(images.permute(0, 3, 1, 2), columns, gap, pad_value=255)
    _, height, width = grid.shape
    figure = Figure(figsize=(10, 10 * height / width), layout="constrained")
    axes = figure.subplots()  # one: to lay out one for each image takes a second
    axes.imshow(grid.permute(1, 2, 0).numpy())
    axes.set_axis_off()
    for place, label in enumerate(labels.tolist()):
        row, column = divmod(place, columns)
        left, top = (gap + number * (IMAGE_SIZE + gap) for number in (column, row))
        middle, name = left + IMAGE_SIZE / 2, _short(classes[label], longest=14)
        axes.text(middle, top - 1.5, name, ha="center", parse_math=False)
    return figure


def comparison_figure(runs: dict[str, list[Row]], metric: str) -> Figure:
    """A metric of several runs by epoch, a line a run.

    Args:
        runs: The rows of each, by its name.
        metric: Such as "val/acc"; runs without it have no line.
    """
    figure = Figure(figsize=SMALL, layout="constrained")
    axes = figure.subplots()
    scale = 100 if metric.endswith("acc") else 1
    for number, rows in enumerate(runs.values()):
        done = [row for row in rows if metric in row]
        values = [scale * row[metric] for row in done]
        epochs, colour = [row["epoch"] + 1 for row in done], f"C{number}"
        dash = DASHES[number // 10 % len(DASHES)]
        axes.plot(epochs, values, dash, color=colour, marker="o", markersize=3)
    _label_epochs(axes, metric)
    return figure


def mistakes_figure(mistakes: Sequence[Mistake]) -> Figure:
    """Wrongly classified images, each with its LayerCAM overlay to the right."""
    columns = 4
    rows = max(-(-len(mistakes) // columns), 1)
    figure = Figure(figsize=(10, 1.75 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, mistakes, strict=False):
        image = mistake.image.numpy()
        axes.imshow(np.hstack([image, overlay(image, mistake.heat.numpy())]))
        text = f"{_short(mistake.predicted)} {100 * mistake.probability:.1f} %"
        axes.set_title(
            f"{text}\ntrue: {_short(mistake.true)}", fontsize="small", parse_math=False
        )
    if not mistakes:
        figure.text(0.5, 0.5, "no image is put into a wrong class", ha="center")
    return figure


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image under a heat map: the hotter, the less is seen of the image.

    Args:
        image: uint8 (H, W, 3).
        heat: float32 (H, W), from 0 to 1.

    Returns:
        uint8 (H, W, 3).
    """
    colours = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    opacity = 0.7 * heat[..., None]
    mixed = (1 - opacity) * image + opacity * colours
    return np.asarray(mixed.round(), np.uint8)


def explanation(image: Tensor, heat: Tensor) -> Image.Image:
    """An image as the network sees it, beside where it looks, both enlarged.

    Args:
        image: uint8 (3, H, W).
        heat: float32 (H, W), from 0 to 1.
    """
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.hstack([pixels, overlay(pixels, heat.numpy())]))
    size = (ENLARGED * picture.width, ENLARGED * picture.height)
    return picture.resize(size, Image.Resampling.NEAREST)


def _ticks(classes: Sequence[str], most: int) -> tuple[range, list[str]]:
    """Where along an axis of all classes names stand: as many as are legible."""
    places = range(0, len(classes), -(-len(classes) // most))
    return places, [_short(classes[place]) for place in places]


def _short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name without its middle, as many begin alike, and some end alike."""
    half = longest // 2
    is_long = len(name) > longest
    return f"{name[: longest - half - 1]}…{name[-half:]}" if is_long else name
