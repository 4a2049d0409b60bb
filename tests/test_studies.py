"""Studies that were made once: each runs small, and its rules give known answers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.inference import Seen
from analysis.novelty import TWO
from benchmarks.rows import read_rows
from benchmarks.studies import explanations, lr_small, unknown_images
from benchmarks.studies.explanations import glue, hottest, is_on_its_side
from benchmarks.studies.lr_rules import (
    RULES,
    fastai_valley,
    lightning,
    picks_table,
    steepest_slope,
    tenth_of_minimum,
    torch_lr_finder,
    until_diverged,
)
from benchmarks.studies.lr_small import LRS, Setting, compare, summary, verdict
from benchmarks.studies.lr_stability import CURVES, lr_stability, read_tests
from benchmarks.studies.small_maps import small_maps
from benchmarks.studies.unknown_images import (
    auroc,
    held_out,
    refused,
    thin_out,
)
from common.errors import InputError
from config import Config
from datamodule import CIFAR10DataModule
from images import sources
from lightning_module import LitCustomResNet
from record import write_recipe
from run_files import LAST
from training.lr_finder import RangeTest, limit
from training.resume import read_checkpoint

Train = Callable[..., dict[str, Any]]
RATES = np.geomspace(1e-6, 1, 121)  # twenty a decade


def curve(losses: np.ndarray) -> RangeTest:
    return RangeTest(RATES.tolist(), losses.tolist(), (1e-3, 1e-2), 3e-3)


def bowl() -> RangeTest:
    """Falls fastest at 1e-4, is least at 1e-2, and does not diverge."""
    at = np.log10(RATES)
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
    picked = int(np.abs(RATES - fastai_valley(curve(losses))).argmin())
    assert 40 + 25 <= picked <= 40 + 40


def test_torch_lr_finder_takes_the_steepest_step_within_its_ends() -> None:
    losses = np.full(121, 3.0)
    losses[60:] = 1.0
    assert torch_lr_finder(curve(losses)) == pytest.approx(RATES[60], rel=0.13)
    losses[117:] = 0.0  # among the last five, which it leaves out
    assert torch_lr_finder(curve(losses)) == pytest.approx(RATES[60], rel=0.13)


def test_lightning_prefers_low_rates() -> None:
    losses = 3 - np.linspace(0, 1, 121)  # as steep everywhere, on the log scale
    assert lightning(curve(losses)) < 1e-4


def test_a_curve_ends_where_it_diverges() -> None:
    assert until_diverged(np.array([2.0, 1.0, 3.9, 4.1, 1.0]), 4) == 3
    assert until_diverged(np.array([2.0, 1.0]), 4) == 2


def test_table_has_a_row_a_rule_and_a_column_a_setting() -> None:
    head, _, *rows = picks_table().splitlines()
    assert len(rows) == len(RULES)
    titles = [title.strip() for title in head.split("|")]
    column = titles.index("seed.yaml, 128")
    [ours] = [row for row in rows if "`--lr auto`" in row]
    assert ours.split("|")[column].strip() == "0.0016 to 0.0028 (1.8)"


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
        # A fifth of the right edge lowers six of them, by a factor of 1.26 at most.
        assert now[setting] == pytest.approx(lrs, rel=0.21)


def test_hottest_pixels_are_those_and_where_it_is_even_drawn() -> None:
    heat = torch.zeros(2, 32, 32)
    heat[0, :8] = torch.rand(8, 32) + 0.5
    heat[1, 31, 31] = 1
    found = hottest(heat, 0.25, torch.Generator().manual_seed(0))
    assert found.sum(dim=(1, 2)).tolist() == [256, 256]
    assert found[0, :8].all()
    assert found[1, 31, 31]
    assert 64 < found[1, :16].sum() < 192  # not the first 255 of the others


def test_glued_images_are_two_of_different_classes() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    columns = torch.arange(32, dtype=torch.uint8)
    images = (100 * labels[:, None] + columns).to(torch.uint8)
    images = images[:, None, None].expand(-1, 3, 32, -1)
    glued, classes = glue(images, labels, seed=0)
    assert len(glued) >= 2
    assert (classes[:, 0] != classes[:, 1]).all()
    for image, (left, right) in zip(glued, classes.tolist(), strict=True):
        middle = torch.arange(8, 24)
        shown = torch.cat([100 * left + middle, 100 * right + middle])
        assert torch.equal(image[0, 0], shown.to(torch.uint8))


def test_a_map_on_the_right_side_is_told_from_one_that_is_not() -> None:
    glued, classes = torch.zeros(3, 3, 32, 32), torch.tensor([[0, 1]] * 3)

    def to_the_left(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        heat = torch.zeros(len(images), 32, 32)
        heat[..., :16] = 1
        return heat

    def right(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        heat = to_the_left(images, labels)
        return torch.where(labels[:, None, None] == 0, heat, 1 - heat)

    assert is_on_its_side(to_the_left, glued, classes).tolist() == [0.5] * 3
    assert is_on_its_side(right, glued, classes).tolist() == [1] * 3


def test_explanations_run_small(image_folder: Path, quick_train: Train) -> None:
    quick_train(max_epochs=1)
    output = Path("out/maps.csv")
    explanations.explanations(
        str(output), str(LAST), data_dir=str(image_folder), limit=6
    )
    rows = read_rows(output)
    assert len(rows) == 2 * (1 + 3 * 4)
    assert set(rows["split"]) == {"train", "test"}
    assert set(rows["n"]) == {6}
    gap = rows["kept"] - rows["hidden"]
    assert rows["gap"].tolist() == pytest.approx(gap.tolist(), abs=2e-4)
    assert len(explanations.table(output).splitlines()) == 2 + 13


def test_the_map_that_is_shown_is_the_best_on_record() -> None:
    _, _, best, *others = explanations.table().splitlines()
    assert "LayerCAM of the log-probability | `layer2`" in best
    assert len(others) == 12


def test_lr_stability_runs_small(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_recipe("small", lr_steps=40)
    lr_stability([small], "out/picks.jsonl", (16,), 2, str(image_folder))
    lines = Path("out/picks.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["seed"] for record in records] == [0, 1]
    assert all(len(record["losses"]) == 40 for record in records)
    [((recipe, batch_size), tests)] = read_tests(Path("out/picks.jsonl")).items()
    assert (recipe, batch_size, len(tests)) == ("small", 16, 2)
    lrs = [test.lr for test in tests]
    assert f"| {max(lrs) / min(lrs):.2f} |" in capsys.readouterr().out


ONLY = Setting(4, "real", 32, 0)


def test_what_is_missing_is_recorded_and_no_more(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = str(image_folder)
    for name, value in {
        "CURVES": Path("curves.jsonl"),
        "RUNS": Path("runs.csv"),
        "EPOCHS": {"real": {32: 1}},
        "HELD_OUT": {"real": 30},
    }.items():
        monkeypatch.setattr(lr_small, name, value)
    lr_small.lr_small(quick, (4,), (32,), seeds=1, curves_only=True)
    assert not lr_small.RUNS.exists()
    [curve] = map(json.loads, lr_small.CURVES.read_text().splitlines())
    assert (len(curve["lrs"]), curve["classes"]) == (100, 3)
    lr_small.lr_small(quick, (4,), (32,), seeds=1)
    assert len(lr_small.CURVES.read_text().splitlines()) == 1
    rows = read_rows(lr_small.RUNS)
    rates = rows["lr"].tolist()
    assert rates == [lr_small.read_picks()[ONLY], *LRS][: len(rates)]
    assert len(rates) == 5 or rows["val/acc"].iloc[-1] == 1
    assert rows["seed"].tolist() == [0] * len(rates)
    assert rows["val/acc"].between(0, 1).all()
    lr_small.RUNS.write_text("".join(lr_small.RUNS.read_text().splitlines(True)[:-1]))
    trained, put_on_record = [], lr_small.put_on_record

    def counted(setting: Setting, config: Config) -> None:
        trained.append((setting, config))
        put_on_record(setting, config)

    monkeypatch.setattr(lr_small, "put_on_record", counted)
    lr_small.lr_small(quick, (4,), (32,), seeds=1)
    [(setting, config)] = trained
    assert (setting, config.lr) == (ONLY, rates[-1])


def test_no_rate_is_tried_after_one_that_gets_everything_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known: dict[tuple[Setting, float], float] = {(ONLY, 0.01): 0.9}
    reached = {0.003: 0.99, 0.001: 1.0, 0.02: 0.97}
    trained = []

    def put_on_record(setting: Setting, config: Config) -> None:
        trained.append(lr := float(config.lr))
        known[setting, lr] = reached[lr]

    monkeypatch.setattr(lr_small, "put_on_record", put_on_record)
    monkeypatch.setattr(lr_small, "read_accuracies", lambda: known)
    monkeypatch.setattr(lr_small, "read_picks", lambda: {ONLY: 0.02})
    lr_small.train_with_rates(ONLY, Config())
    assert trained == [0.02, 0.003, 0.001]
    [row] = compare(known, {ONLY: 0.02}).to_dict("records")
    assert (row["picked"], row["best"]) == (97, 100)
    monkeypatch.setattr(lr_small, "read_picks", lambda: {ONLY: 0.03})
    reached[0.03] = 0.98
    lr_small.train_with_rates(ONLY, Config())
    assert trained[3:] == [0.03]
    del known[ONLY, 0.001]
    assert compare(known, {ONLY: 0.02}).empty


def test_the_pick_is_compared_with_the_best_fixed_rate_of_its_seed() -> None:
    fixed = dict(zip(LRS, (0.2, 0.3, 0.5, 0.4), strict=True))
    other = ONLY._replace(seed=1)
    accuracies = {(ONLY, lr): share for lr, share in fixed.items()}
    accuracies |= {(other, lr): share / 2 for lr, share in fixed.items()}
    accuracies |= {(ONLY, 0.007): 0.45, (other, 0.002): 0.3}
    picks = {ONLY: 0.007, other: 0.002, ONLY._replace(seed=2): 0.01}
    found = compare(accuracies, picks)
    assert found[["lr", "picked", "best"]].to_numpy().tolist() == [
        [0.007, 45.0, 50.0],
        [0.002, 30.0, 25.0],
    ]
    shown = ["2", "0.002 to 0.007", "37.5", "37.5", "90.0", "105.0"]
    assert [*summary(found).values()] == shown
    assert [*summary(found[:0]).values()] == ["0", *[""] * 5]
    assert compare(accuracies, {ONLY: 0.008}).empty  # no run with this pick


def test_where_a_pick_falls_short_is_said() -> None:
    accuracies: dict[tuple[Setting, float], float] = {}
    for width, data, picked in (
        (4, "real", [0.96]),
        (8, "real", [0.94, 0.96, 0.96]),
        (16, "shapes", [0.94, 0.94, 0.96]),
    ):
        for seed, share in enumerate(picked):
            setting = Setting(width, data, 64, seed)
            accuracies |= {(setting, lr): 1.0 for lr in LRS} | {(setting, 0.007): share}
    picks = {setting: 0.007 for setting, _ in accuracies}
    assert verdict(compare(accuracies, picks)).splitlines() == [
        "Rows with less than 95 % of the best of four in the mean of its seeds: "
        "base width 16, shapes, batch 64.",
        "Rows with less than 95 % of the best of four in one seed or more: "
        "base width 8, real, batch 64; base width 16, shapes, batch 64.",
    ]
    assert verdict(compare({}, {})).count(": none.") == 2


def test_auroc_is_exact_and_counts_ties_half() -> None:
    known, unknown = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0])
    # Of six pairs four are right (3 > 2, 3 > 0, 2 > 0, 1 > 0) and one is a tie.
    assert auroc(known, unknown) == pytest.approx(4.5 / 6)
    assert refused(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor(0.3)) == 0.5


def test_fewer_images_are_taken_evenly() -> None:
    assert thin_out(torch.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert thin_out(torch.arange(3), 4).tolist() == [0, 1, 2]
    assert len(thin_out(torch.arange(0), 4)) == 0


def test_every_score_is_higher_for_a_sure_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.tensor([[1.0, 0.9, 0.8]])
    model = LitCustomResNet("abc", (0.5,) * 3, (0.25,) * 3, 0.01, label_smoothing=0)
    even = torch.zeros(1, 3)
    logits = torch.cat([sure, unsure, even])
    seen = Seen(logits, torch.zeros(3, 256))
    monkeypatch.setattr(unknown_images, "see", lambda *_: seen)
    found = unknown_images.scores_of(model, torch.zeros(3, 32, 32, 3))
    for name, scores in found.items():
        assert scores[0] > scores[1], name
    assert found["negative entropy"][2].item() == pytest.approx(-1.0986, abs=1e-4)
    assert found["energy"][2].item() == pytest.approx(1.0986, abs=1e-4)  # log 3
    model.features = {"mean": [0.5] * 256, "variance": 16.0}  # 4 away, squared
    further = unknown_images.scores_of(model, torch.zeros(3, 32, 32, 3))
    assert further["negative novelty"].max() < -2


def test_unknown_images_runs_small(
    image_folder: Path, quick_train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Trained on red and green, it must find blue among its unknown images."""
    for part in ("train", "test"):
        for colour in ("red", "green"):
            source = image_folder / part / colour
            shutil.copytree(source, tmp_path / "two" / part / colour)
    quick_train(data_dir="two", max_epochs=1, val_size=8)
    for _ in range(2):
        unknown_images.unknown_images(
            "found.csv", str(LAST), data_dir=str(image_folder)
        )
    rows = read_rows(Path("found.csv")).to_dict("records")
    kinds = ["uniform noise", "shuffled pixels", "drawn shapes"]
    kinds.append("held-out classes: blue")
    named = [(row["score"], row["unknown"]) for row in rows]
    scores = ["maximum softmax", "maximum logit", "energy", "negative entropy"]
    scores.append("negative novelty")
    assert named == 2 * [(score, kind) for kind in kinds for score in scores]
    for row in rows:
        is_left_out = row["unknown"] == kinds[-1]
        assert row["n_validation"] == 8
        assert row["n_known"] == 20
        assert row["n_unknown"] == (10 if is_left_out else 20)
        assert row["epochs"] == 1
        assert 0 <= row["auroc"] <= 1
        assert row["known_refused"] < 0.5


def test_thresholds_come_from_the_images_that_were_held_out(
    image_folder: Path, quick_train: Callable[..., dict[str, Any]]
) -> None:
    quick_train(max_epochs=1, val_size=9, seed=5)
    checkpoint = read_checkpoint(LAST)
    data = CIFAR10DataModule(
        data_dir=str(image_folder), batch_size=8, val_size=9, seed=5
    )
    data.setup()
    images = sources.load("folder", image_folder)
    found = held_out(checkpoint, images.train[0], images.train[1])
    assert torch.equal(found, data.val_set[0])
    others = 255 - images.train[0]
    with pytest.raises(InputError, match="give those it was trained with"):
        held_out(checkpoint, others, images.train[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_threshold_of_the_warning_is_the_measured_one(smoothing: float) -> None:
    rows = read_rows(unknown_images.RECORD)
    rows = rows[(rows["score"] == "negative entropy") & (rows["epochs"] == 24)]
    rows = rows[rows["label_smoothing"] == smoothing]
    [threshold] = rows["threshold"].unique()
    [warned] = rows["warned_validation"].unique()
    if smoothing:
        assert -threshold > TWO
        assert warned > 0.1
    else:
        assert -threshold == pytest.approx(TWO, abs=0.05)
        assert warned == pytest.approx(0.05, abs=0.01)


def test_small_maps_are_timed_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom_resnet.SMALL_MAP", 0)  # and back at the end
    with pytest.raises(InputError, match="must be at least 1"):
        small_maps("maps.csv", batch_size=2, repeats=0)
    file = tmp_path / "maps.csv"
    small_maps(str(file), batch_size=2, repeats=2)
    few, more = read_rows(file).to_dict("records")
    assert few["convolution"] == "512 to 512, 3x3"
    assert more["convolution"] == "256 to 512, 7x7"
    for row in (few, more):
        middle, low, high = map(float, re.findall(r"\d+\.\d+", row["ratio"]))
        assert 0 < low <= middle <= high
