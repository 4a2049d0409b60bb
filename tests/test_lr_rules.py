"""Rules that pick a learning rate, on curves of which the answer is known."""

import numpy as np
import pytest

from benchmarks import lr_small
from benchmarks.lr_rules import (
    CURVES,
    RULES,
    fastai_valley,
    lightning,
    picks_table,
    steepest_slope,
    tenth_of_minimum,
    torch_lr_finder,
    until_diverged,
)
from benchmarks.lr_stability import read_tests
from training.lr_finder import RangeTest, limit

LRS = np.geomspace(1e-6, 1, 121)  # twenty a decade


def curve(losses: np.ndarray) -> RangeTest:
    return RangeTest(LRS.tolist(), losses.tolist(), (1e-3, 1e-2), 3e-3)


def bowl() -> RangeTest:
    """Falls fastest at 1e-4, is least at 1e-2, and does not diverge."""
    at = np.log10(LRS)
    return curve(3 - np.tanh(2 * (at + 4)) + np.maximum(0, at + 2) ** 2)


def test_steepest_slope_and_tenth_of_minimum() -> None:
    assert steepest_slope(bowl()) == pytest.approx(1e-4, rel=0.13)
    assert tenth_of_minimum(bowl()) == pytest.approx(1e-3, rel=0.5)


def test_steepest_slope_is_before_the_minimum() -> None:
    losses = np.array(bowl().losses)
    losses[-20:] = np.linspace(9, 4, 20)  # comes down again after it diverged
    assert steepest_slope(curve(losses)) == pytest.approx(1e-4, rel=0.13)


def test_fastai_takes_the_middle_third_of_the_longest_fall() -> None:
    # 3, then falling at the steps 40 to 99, then 3 again: with a running mean it
    # falls from 40 to about 100, and the pick is a half of it further on.
    losses = np.full(121, 3.0)
    losses[40:100] = 3 - np.linspace(0.02, 1.2, 60)
    picked = int(np.abs(LRS - fastai_valley(curve(losses))).argmin())
    assert 40 + 25 <= picked <= 40 + 40


def test_torch_lr_finder_takes_the_steepest_step_within_its_ends() -> None:
    losses = np.full(121, 3.0)
    losses[60:] = 1.0
    assert torch_lr_finder(curve(losses)) == pytest.approx(LRS[60], rel=0.13)
    losses[117:] = 0.0  # among the last five, which it leaves out
    assert torch_lr_finder(curve(losses)) == pytest.approx(LRS[60], rel=0.13)


def test_lightning_prefers_low_rates() -> None:
    losses = 3 - np.linspace(0, 1, 121)  # as steep everywhere, on the log scale
    assert lightning(curve(losses)) < 1e-4


def test_a_curve_ends_where_it_diverges() -> None:
    assert until_diverged(np.array([2.0, 1.0, 3.9, 4.1, 1.0]), 4) == 3
    assert until_diverged(np.array([2.0, 1.0]), 4) == 2


def test_table_has_a_row_a_rule_and_a_column_a_setting() -> None:
    head, _, *rows = picks_table(read_tests(CURVES)).splitlines()
    assert len(rows) == len(RULES)
    column = head.split("|").index(" seed.yaml, 128 ")
    [ours] = [row for row in rows if "`--lr auto`" in row]
    assert ours.split("|")[column] == " 0.0019 to 0.0035 (1.9) "


def test_small_networks_on_shapes_are_not_ruined() -> None:
    picks = lr_small.read_picks()
    # To the end of these two the loss falls: the middle is 0.407 and 0.135, and the
    # first leads to one image right in eight, where 0.01 leads to all.
    assert picks[lr_small.Setting(8, "shapes", 128, seed=0)] == limit(128)
    assert picks[lr_small.Setting(16, "shapes", 128, seed=0)] == limit(128)
    assert min(picks.values()) > 0.0005
    assert all(lr <= limit(setting.batch_size) for setting, lr in picks.items())


def test_picks_at_full_width_stay_where_they_were() -> None:
    before = {
        ("seed", 512): (0.0049, 0.00324, 0.00603, 0.00302, 0.00372),
        ("seed", 128): (0.00347, 0.00282, 0.00302, 0.002, 0.00186),
        ("best", 256): (0.00282, 0.00229, 0.00324, 0.002, 0.00174),
        ("best", 512): (0.00282, 0.00214, 0.00427, 0.00214, 0.00282),
        ("best", 128): (0.00214, 0.00229, 0.00302, 0.000933, 0.00141),
    }
    now = {
        setting: [test.lr for test in group]
        for setting, group in read_tests(CURVES).items()
    }
    assert now.keys() == before.keys()
    for setting, lrs in before.items():
        assert now[setting] == pytest.approx(lrs, rel=0.2)
