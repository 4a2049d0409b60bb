"""Figures from numbers. Each function returns a figure; the caller saves or logs it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from components.lr_finder import RangeTest, smooth

Row = dict[str, float]  # an epoch's metrics, as in metrics.csv


def lr_finder_figure(test: RangeTest) -> Figure:
    """Loss over learning rate, raw and smoothed, with the pick."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    smoothed = smooth(test.losses)
    axes.semilogx(test.lrs, test.losses, color="0.8", label="loss of a batch")
    axes.semilogx(test.lrs, smoothed, color="C0", label="smoothed")
    axes.axvspan(*test.valley, color="C0", alpha=0.1, linewidth=0, label="valley")
    axes.axvline(test.lr, color="C3", linestyle="--", label=f"max LR {test.lr:.3g}")
    # The end of the test is off the scale by design; show where the decision falls.
    low, start = np.nanmin(smoothed), smoothed[0]
    axes.set_ylim(low - 0.3 * (start - low), start + 1.0 * (start - low))
    axes.set(title="LR range test", xlabel="learning rate", ylabel="training loss")
    axes.legend(loc="lower left")
    return figure


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Loss and accuracy by epoch, training and validation."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, metric, label in zip(
        figure.subplots(1, 2), ("loss", "acc"), ("loss", "accuracy (%)"), strict=True
    ):
        scale = 100 if metric == "acc" else 1
        for split in ("train", "val"):
            values = [scale * row.get(f"{split}/{metric}", np.nan) for row in rows]
            if not np.isnan(values).all():
                axes.plot(epochs, values, marker="o", markersize=3, label=split)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Confusion matrix in percent of each true class.

    Args:
        counts: int64 (C, C), true classes down, predicted ones across.
        classes: Name of each of the C classes.
    """
    share = 100 * counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(0.6 * len(classes) + 2, 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share.cpu().numpy(), cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(classes))
    # A class may be named $like_this, which is no formula.
    axes.set_xticks(ticks, classes, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, classes, parse_math=False)
    numbered = len(classes) <= 25  # more would not be legible
    for true, row in enumerate(share.tolist() if numbered else ()):
        for predicted, value in enumerate(row):
            colour = "white" if value > 50 else "black"
            axes.text(
                predicted,
                true,
                f"{value:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize="small",
            )
    axes.set(
        title="Test images, % of each true class", xlabel="predicted", ylabel="true"
    )
    return figure
