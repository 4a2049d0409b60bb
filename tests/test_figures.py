"""Figures show the numbers they are given."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from analysis.evaluation import Mistake, calibrate
from analysis.figures import (
    comparison_figure,
    confusion_figure,
    curve_figure,
    curves_figure,
    lr_finder_figure,
    mistakes_figure,
    overlay,
    own_style,
    per_class_figure,
    reliability_figure,
    rendered,
    samples_figure,
    schedule_figure,
)
from training.lr_finder import RangeTest, smooth


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


def test_one_curve_is_that_of_the_pair() -> None:
    rows = [{"epoch": 0, "train/acc": 0.25, "val/acc": 0.5}]
    [axes] = axes_of(curve_figure(rows, "acc"))
    assert [line.get_ydata().tolist() for line in axes.lines] == [[25], [50]]


def test_comparison_has_a_line_a_run_that_has_the_metric() -> None:
    runs = {
        "a": [{"epoch": 0, "val/acc": 0.25}, {"epoch": 1, "val/acc": 0.5}],
        "b": [{"epoch": 0, "train/acc": 0.75}],
    }
    [axes] = axes_of(comparison_figure(runs, "val/acc"))
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[1, 25], [2, 50]]
    assert first.get_marker() == "o"  # or a run of one epoch would not be seen
    assert second.get_xydata().tolist() == []
    assert [first.get_color(), second.get_color()] == ["C0", "C1"]


def test_one_epoch_is_one_tick() -> None:
    [axes] = axes_of(curve_figure([{"epoch": 0, "val/acc": 0.25}], "acc"))
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_samples_have_the_names_of_their_classes() -> None:
    images = torch.randint(256, (9, 32, 32, 3), dtype=torch.uint8)
    figure = samples_figure(images, torch.arange(9) % 2, ["$cat", "dog"])
    [axes] = axes_of(figure)
    assert [text.get_text() for text in axes.texts[:2]] == ["$cat", "dog"]
    grid = axes.images[0].get_array()
    # The ninth is the first of the second row.
    assert np.array_equal(grid[52:84, 10:42], images[8])
    x, y = axes.texts[8].get_position()
    assert 10 < x < 42
    assert 42 < y < 52


def test_schedule_is_over_epochs() -> None:
    [axes] = axes_of(schedule_figure([0.1, 0.4, 0.2, 0.0], epochs=2))
    assert axes.lines[0].get_xydata().tolist() == [
        *([0, 0.1], [0.5, 0.4], [1, 0.2], [1.5, 0])
    ]


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


def test_accuracy_of_each_class_is_in_percent() -> None:
    counts = torch.tensor([[3, 1, 0], [0, 8, 0], [0, 0, 0]])
    [axes] = axes_of(per_class_figure(counts, ["cat", "$dog", "x" * 29 + "7"]))
    assert [bar.get_width() for bar in axes.patches] == [75, 100, 0]
    assert [text.get_text() for text in axes.texts] == ["75.0", "100.0", "no image"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat", "$dog", f"{'x' * 11}\N{HORIZONTAL ELLIPSIS}{'x' * 11}7"]


def test_reliability_shows_accuracy_over_confidence() -> None:
    confidence = torch.tensor([0.4, 0.6, 0.9, 1.0])
    correct = torch.tensor([False, True, True, False])
    figure = reliability_figure(calibrate(confidence, correct, bins=2))
    above, below = axes_of(figure)
    assert [(bar.get_x(), bar.get_width()) for bar in above.patches] == [
        *((0, 50), (50, 50))
    ]
    heights = [bar.get_height() for bar in above.patches]
    assert heights == pytest.approx([0, 200 / 3])
    assert [bar.get_height() for bar in below.patches] == [25, 75]
    assert above.get_title() == "ECE 22.50 % (2 equal-width bins)"


def test_mistakes_show_image_and_overlay() -> None:
    image = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    mistake = Mistake(image, torch.zeros(32, 32), "$cat", 0.987, "dog")
    figure = mistakes_figure([mistake] * 5)
    shown = [axes for axes in axes_of(figure) if axes.images]
    assert len(shown) == 5
    assert shown[0].get_title() == "$cat 98.7 %\ntrue: dog"
    pixels = shown[0].images[0].get_array()
    assert np.array_equal(pixels, np.hstack([image, image]))  # nothing speaks for it


def test_where_nothing_is_wrong_the_figure_says_so() -> None:
    figure = mistakes_figure([])
    assert [text.get_text() for text in figure.texts] == [
        "no image is put into a wrong class"
    ]
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    mistake = Mistake(image, torch.zeros(32, 32), "cat", 0.9, "dog")
    assert mistakes_figure([mistake]).texts == []


def test_overlay_hides_the_image_where_it_is_hot() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    mixed = overlay(image, np.array([[0, 1]], np.float32))
    assert mixed[0, 0].tolist() == [100, 100, 100]
    hottest = 0.7 * np.array([252, 255, 164]) + 0.3 * 100  # the end of "inferno"
    assert mixed[0, 1].tolist() == pytest.approx(hottest.tolist(), abs=1)


def test_confusion_of_many_classes_stays_a_picture() -> None:
    classes = [f"class {number}" for number in range(200)]
    counts = torch.zeros(200, 200, dtype=torch.long)
    figure = confusion_figure(counts, classes)
    assert max(figure.get_size_inches()) <= 16
    axes, scale = axes_of(figure)
    assert scale.get_ylim() == (0, 100)
    for axis in (axes.xaxis, axes.yaxis):  # as many names as can be read
        assert axis.get_ticklocs().tolist() == list(range(0, 200, 4))
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert shown == classes[::4]
    [axes] = axes_of(per_class_figure(counts, classes))
    assert axes.get_yticks().tolist() == list(range(0, 200, 2))


def test_names_that_no_font_has_are_no_warning(recwarn: Any) -> None:
    with own_style():
        figure = confusion_figure(torch.eye(2, dtype=torch.long), ["猫", "\U0001f63a"])
        assert rendered(figure).shape[2] == 3
    assert not recwarn.list


def test_range_test_shows_its_pick_and_survives_divergence() -> None:
    lrs = np.geomspace(1e-6, 1, 60).tolist()
    losses = [*np.linspace(3, 1, 50), *[1e9] * 5, *[float("nan")] * 5]
    figure = lr_finder_figure(RangeTest(lrs, losses, (0.001, 0.03), 0.01))
    [axes] = axes_of(figure)
    assert axes.lines[2].get_xdata() == pytest.approx([0.01, 0.01])
    labels = [text.get_text() for text in axes.get_legend().texts]
    assert labels == ["loss of a batch", "smoothed", "valley", "max LR 0.01"]
    [shade] = axes.patches
    assert shade.get_extents().x0 < shade.get_extents().x1
    low, high = axes.get_ylim()
    assert low < 1 < 3 < high < 10
    figure.canvas.draw()


@pytest.mark.parametrize("losses", [[0.6, 0.61, 0.62, 0.9], [0.5] * 4])
def test_range_test_of_a_trained_network_shows_the_end_of_the_valley(
    losses: list[float],
) -> None:
    """Where the loss begins at its lowest, or does not move at all."""
    lrs = [1e-4, 1e-3, 1e-2, 1e-1]
    figure = lr_finder_figure(RangeTest(lrs, losses, (1e-4, 1e-2), 1e-3))
    [axes] = axes_of(figure)
    low, high = axes.get_ylim()
    inside = smooth(losses)[:3]
    assert low < min(inside)
    assert high > max(inside)
