"""The measurements: they run, and what the pages say of them is on record."""

import csv
import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from analysis.inference import ENTROPY_THRESHOLD
from benchmarks.compare import comparison
from benchmarks.lr_rules import CURVES
from benchmarks.lr_stability import lr_stability, read_tests
from benchmarks.tables import (
    README,
    add_run,
    percent,
    read_runs,
    results_table,
    runs_of_configs,
    short_names,
    with_table,
)
from benchmarks.unknown_images import (
    SCORES,
    auroc,
    held_out,
    refused,
    table,
    thin_out,
    unknown_images,
)
from common.errors import InputError
from datamodule import CIFAR10DataModule
from images import sources
from record import write_recipe
from run_files import LAST
from training.resume import read_checkpoint

RESULTS = README.parent / "benchmarks" / "results"
UNKNOWN_IMAGES = README.parent / "docs" / "unknown_images.md"


def test_readme_shows_the_runs_on_record() -> None:
    readme = README.read_text(encoding="utf-8")
    shown = runs_of_configs()
    assert 0 < len(shown) < len(read_runs())
    assert with_table(readme, results_table(shown)) == readme


def test_pages_show_the_gain_on_record() -> None:
    _, plain, flip = comparison(runs_of_configs(), "seed on", "best on").splitlines()
    accuracy = README.parent / "docs" / "accuracy.md"
    for line, pages in ((plain, (README, accuracy)), (flip, (README,))):
        [(gain, p)] = re.findall(r": \+([0-9.]+) points, p = ([^,]+),", line)
        assert float(p) < 0.01
        for page in pages:
            text = page.read_text(encoding="utf-8")
            assert f"{gain} points" in text
            assert f"(p = {p}" in text


def test_readme_says_how_far_the_picks_move() -> None:
    readme = README.read_text(encoding="utf-8")
    ratios = set()
    for tests in read_tests(CURVES).values():
        lrs = [test.lr for test in tests]
        assert len(lrs) == 5
        assert 5e-4 < min(lrs) < max(lrs) < 1e-2
        ratios.add(round(max(lrs) / min(lrs)))
    assert ratios == {2, 3}
    assert "pick rates within a factor of two to three" in " ".join(readme.split())


def test_runs_of_a_recipe_are_put_together(
    quick_train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    accuracies = []
    for seed in (0, 1):
        metrics = quick_train(seed=seed, name=f"seed{seed}", max_epochs=1)
        add_run(tmp_path / "runs" / f"seed{seed}", "quick", tmp_path / "runs.csv")
        accuracies.append(100 * metrics["test/acc"])
    runs = read_runs(tmp_path / "runs.csv")
    assert [run["seed"] for run in runs] == ["0", "1"]
    for run, accuracy in zip(runs, accuracies, strict=True):
        assert 100 * float(run["test/acc"]) == accuracy
    [row] = results_table(runs).splitlines()[2:]
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert f"| quick | {mean:.2f} ± {spread:.2f} % (" in row
    assert "| 2 |" in row


def test_the_most_accurate_comes_first_and_a_spoilt_time_is_left_out(
    tmp_path: Path,
) -> None:
    metrics: dict[str, Any] = {"val/acc": None, "seconds": 5.0, "fit_seconds": 2.5}
    metrics |= {"seed": 0, "device": "CPU", "precision": "32-true", "commit": "a1b2"}
    for recipe, accuracy, timed in (("a", 0.5, True), ("b", 0.9, False)):
        content = json.dumps(metrics | {"test/acc": accuracy})
        (tmp_path / "metrics.json").write_text(content)
        add_run(tmp_path, recipe, tmp_path / "runs.csv", timed=timed)
    assert results_table(read_runs(tmp_path / "runs.csv")).splitlines()[2:] == [
        "| b | 90.00 % |  |  | 1 |  |  | CPU, 32-true |",
        "| a | 50.00 % |  |  | 1 | 5.00 | 2.50 | CPU, 32-true |",
    ]


def test_names_are_short_where_that_leaves_them_apart() -> None:
    names = ["a, 3 epochs, lr 0.1", "a, 3 epochs, lr 0.2", "b, 3 epochs, lr 0.1", "c"]
    shown = [*names[:2], "b, 3 epochs", "c"]
    assert short_names(2 * names) == dict(zip(names, shown, strict=True))


def test_percent_of_one_several_and_none() -> None:
    assert percent([0.5]) == "50.00 %"
    assert percent([0.5, 0.6]) == "55.00 ± 7.07 % (50.00 to 60.00)"
    assert percent([]) == ""


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


def test_auroc_is_exact_and_counts_ties_half() -> None:
    known, unknown = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0])
    # Of six pairs four are right (3 > 2, 3 > 0, 2 > 0, 1 > 0) and one is a tie.
    assert auroc(known, unknown) == pytest.approx(4.5 / 6)
    drawn = torch.rand(2, 500, generator=torch.Generator().manual_seed(0))
    known, unknown = (drawn[0].sqrt() * 50).round() / 50, (drawn[1] * 50).round() / 50
    labels = torch.tensor([1, 0]).repeat_interleave(500)
    theirs = binary_auroc(torch.cat([known, unknown]), labels).item()
    assert auroc(known, unknown) == pytest.approx(theirs, abs=1e-6)
    assert refused(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor(0.3)) == 0.5


def test_fewer_images_are_taken_evenly() -> None:
    assert thin_out(torch.arange(10), 4).tolist() == [0, 2, 5, 7]
    assert thin_out(torch.arange(3), 4).tolist() == [0, 1, 2]
    assert len(thin_out(torch.arange(0), 4)) == 0


def test_every_score_is_higher_for_a_sure_network() -> None:
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.tensor([[1.0, 0.9, 0.8]])
    for name, score in SCORES.items():
        assert score(sure, sure.softmax(1)) > score(unsure, unsure.softmax(1)), name
    even = SCORES["negative entropy"](torch.zeros(1, 8), torch.full((1, 8), 1 / 8))
    assert even.item() == pytest.approx(-2.0794, abs=1e-4)  # log 8


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
        unknown_images("found.csv", str(LAST), data_dir=str(image_folder))
    with Path("found.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = ["uniform noise", "shuffled pixels", "drawn shapes"]
    kinds.append("held-out classes: blue")
    named = [(row["score"], row["unknown"]) for row in rows]
    assert named == 2 * [(score, kind) for kind in kinds for score in SCORES]
    for row in rows:
        held_out = row["unknown"] == kinds[-1]
        assert row["n_validation"] == "8"
        assert row["n_known"] == "20"
        assert row["n_unknown"] == ("10" if held_out else "20")
        assert row["epochs"] == "1"
        assert 0 <= float(row["auroc"]) <= 1
        assert float(row["known_refused"]) < 0.5


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


def measured_scores() -> list[dict[str, str]]:
    with (RESULTS / "2026-11-22_unknown_images_cpu.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_measured_scores_are_as_shown() -> None:
    assert table(measured_scores()) in UNKNOWN_IMAGES.read_text(encoding="utf-8")


@pytest.mark.parametrize(("smoothing", "sign"), [("0.0", ";"), ("0.2", ":")])
def test_the_threshold_of_the_warning_is_the_measured_one(
    smoothing: str, sign: str
) -> None:
    [thresholds] = {
        (row["threshold"], row["warned_validation"], row["warned_known"])
        for row in measured_scores()
        if (row["score"], row["epochs"]) == ("negative entropy", "24")
        and row["label_smoothing"] == smoothing
    }
    threshold, warned, warned_of_test = map(float, thresholds)
    page = " ".join(UNKNOWN_IMAGES.read_text(encoding="utf-8").split())
    assert (
        f"({-threshold:.2f}){sign} {100 * warned:.1f} % of them are marked, and "
        f"{100 * warned_of_test:.1f} % of the test images" in page
    )
    if smoothing == "0.0":
        assert -threshold == pytest.approx(ENTROPY_THRESHOLD, abs=0.05)
        assert warned == pytest.approx(0.05, abs=0.01)
    else:
        assert -threshold > ENTROPY_THRESHOLD
        assert warned > 0.1
