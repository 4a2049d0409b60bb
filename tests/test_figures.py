"""Figures show the numbers they are given."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from components.figures import confusion_figure, curves_figure, lr_finder_figure
from components.lr_finder import RangeTest


def axes_of(figure: Figure) -> Any:
    """Untyped, for what matplotlib's types call optional."""
    return figure.axes


def test_curves_show_percent_by_epoch_from_one() -> None:
    rows = [
        {
            "epoch": 0,
            "train/loss": 2.0,
            "train/acc": 0.25,
            "val/loss": 1.5,
            "val/acc": 0.5,
        },
        {
            "epoch": 1,
            "train/loss": 1.0,
            "train/acc": 0.75,
            "val/loss": 1.2,
            "val/acc": 0.6,
        },
    ]
    loss, accuracy = axes_of(curves_figure(rows))
    assert [line.get_label() for line in loss.lines] == ["train", "val"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert accuracy.lines[1].get_xydata().tolist() == [[1, 50], [2, 60]]
    assert accuracy.get_ylabel() == "accuracy (%)"


def test_curves_without_validation() -> None:
    loss, _ = axes_of(
        curves_figure([{"epoch": 0, "train/loss": 2.0, "train/acc": 0.2}])
    )
    assert [line.get_label() for line in loss.lines] == ["train"]


def test_confusion_is_in_percent_of_the_true_class() -> None:
    counts = torch.tensor([[3, 1], [0, 8]])
    [axes] = axes_of(confusion_figure(counts, ["cat", "dog"]))
    assert [text.get_text() for text in axes.texts] == ["75", "25", "0", "100"]
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_a_class_that_looks_like_a_formula_is_none() -> None:
    names = [r"$\frac$", "$100"]
    figure = confusion_figure(torch.eye(2, dtype=torch.long), names)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names


def test_confusion_of_many_classes_stays_a_picture() -> None:
    figure = confusion_figure(torch.zeros(100, 100, dtype=torch.long), ["x"] * 100)
    assert max(figure.get_size_inches()) <= 16


def test_range_test_shows_its_pick_and_survives_divergence() -> None:
    lrs = np.geomspace(1e-6, 1, 60).tolist()
    losses = [*np.linspace(3, 1, 50), *[1e9] * 5, *[float("nan")] * 5]
    figure = lr_finder_figure(RangeTest(lrs, losses, (0.001, 0.1), 0.01))
    [axes] = axes_of(figure)
    assert axes.lines[2].get_xdata() == pytest.approx([0.01, 0.01])
    labels = [text.get_text() for text in axes.get_legend().texts]
    assert labels == ["loss of a batch", "smoothed", "valley", "max LR 0.01"]
    [shade] = axes.patches
    assert shade.get_extents().x0 < shade.get_extents().x1
    low, high = axes.get_ylim()
    assert low < 1 < 3 < high < 10
    figure.canvas.draw()
