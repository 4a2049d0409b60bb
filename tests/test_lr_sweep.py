"""The sweep of fixed max LRs: what is trained, and what is said about auto."""

import math
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import lr_sweep as script
from benchmarks import recipe
from benchmarks.lr_sweep import (
    AUTO,
    PAGE,
    Gap,
    Setting,
    Sweep,
    find_gap,
    find_sweeps,
    lr_sweep,
    section,
    split_name,
    standard_error,
    sweep_table,
    verdict,
    write_page,
)
from benchmarks.pictures import sweep_figure
from benchmarks.tables import README, Run, read_runs, with_table
from common import cli
from common.errors import StoppedError
from record import held_out, write_recipe, write_runs
from training.lr_finder import limit
from training.run_folder import RunFolder

OUTPUT = Path("out/sweep.csv")
# The reach of an interval in standard errors, from printed tables of the normal
# distribution: for one fixed rate, and for two.
ONE, TWO = 1.959964, 2.241403


@pytest.fixture
def quick(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of a sweep of six trainings; two fixed rates, two seeds."""
    monkeypatch.setattr(recipe, "commit_of_code", lambda: "same")
    own = write_recipe("small", lr_steps=40)
    small: dict[str, Any] = {"configs": [own], "lrs": (0.01, 0.02)}
    small |= {"batch_sizes": (32,), "seeds": 2, "output": str(OUTPUT)}
    return small | {"data_dir": str(image_folder)}


def on_record() -> list[tuple[str, str]]:
    """Rate and seed of every row on record, in order."""
    return [(split_name(row["recipe"])[2], row["seed"]) for row in read_runs(OUTPUT)]


def test_a_sweep_is_trained_seed_by_seed_and_held_out(
    quick: dict[str, Any],
    image_folder: Path,
    trained: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lr_sweep(**quick)
    rates = ("0.01", "0.02", AUTO)
    assert on_record() == [(lr, seed) for seed in "01" for lr in rates]
    assert [given["lr"] for given in trained] == [0.01, 0.02, AUTO] * 2
    for given in trained:
        assert (given["limit_test_batches"], given["val_size"]) == (0, AUTO)
        assert not Path(given["output_dir"]).exists()
    rows = read_runs(OUTPUT)
    for row in rows:
        assert (row["test/acc"], row["fit_seconds"]) == ("", "")
        assert 0 <= float(row["val/acc"]) <= 1
    assert [row["max_lr"] for row in rows[:2]] == ["0.01", "0.02"]
    assert 0 < float(rows[2]["max_lr"]) <= limit(256)
    setting = Setting(
        f"small on {image_folder.name}, 1 epochs, lr_steps 40, base_width 4",
        32,
        rows[0]["device"],
        "32-true",
    )
    assert [*find_sweeps(rows)] == [setting]
    assert sweep_table(rows) in capsys.readouterr().out
    assert not Path("runs").exists()


def test_a_stopped_sweep_goes_on_and_parts_add_up(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_create = RunFolder.create
    made = 0

    def create(run: RunFolder) -> None:
        nonlocal made
        made += 1
        if made == 2:
            raise StoppedError(signal.SIGTERM)
        plain_create(run)

    monkeypatch.setattr(RunFolder, "create", create)
    quick["seeds"] = 1
    with pytest.raises(SystemExit) as end:
        lr_sweep(**quick)
    assert end.value.code == 143
    assert on_record() == [("0.01", "0")]
    lr_sweep(**quick)
    assert on_record() == [("0.01", "0"), ("0.02", "0"), (AUTO, "0")]
    assert made == 4
    lr_sweep(**quick | {"batch_sizes": (16,), "lrs": (0.01,), "max_epochs": 2})
    assert on_record()[3:] == [("0.01", "0"), (AUTO, "0")]
    [old, new] = find_sweeps(read_runs(OUTPUT)).items()
    assert (old[0].batch_size, [*old[1]]) == (32, ["0.01", "0.02", AUTO])
    assert (new[0].batch_size, [*new[1]]) == (16, ["0.01", AUTO])
    assert "2 epochs" in new[0].recipe


def fake(name: str, accuracies: list[float], max_lr: float = 0.01) -> list[Run]:
    return held_out(name, accuracies, max_lr=str(max_lr))


def sweep(**accuracies: list[float]) -> Sweep:
    named = {lr.replace("_", "0."): found for lr, found in accuracies.items()}
    return {lr: fake(lr, found) for lr, found in named.items()}


def test_a_name_is_split_as_it_was_made() -> None:
    flags = recipe.plain_flags()
    assert split_name("lr on cifar10, 3 epochs, lr 0.01, cutout 4, batch_size 64") == (
        "lr on cifar10, 3 epochs, cutout 4",
        64,
        "0.01",
    )
    name = recipe.recipe_name("seed", flags | {"max_epochs": 3})
    assert split_name(name) == ("seed on cifar10, 3 epochs", 512, AUTO)
    for batch_size, lr in ((16, 0.00125), (512, AUTO), (128, 1e-05)):
        made = recipe.recipe_name("a", flags | {"batch_size": batch_size, "lr": lr})
        assert split_name(made) == ("a on cifar10, 24 epochs", batch_size, str(lr))


def test_only_seeds_that_all_rates_have_are_compared() -> None:
    rows = fake("a on b, 1 epochs, lr 0.02", [0.5, 0.6, 0.7])[::-1]
    rows += fake("a on b, 1 epochs, lr 0.01", [0.3, 0.4])
    rows += fake("a on b, 1 epochs", [0.7, 0.8, 0.9], 0.004)
    rows += fake("a on b, 1 epochs, lr 0.01", [0.2])  # measured again
    rows += fake("a on b, 1 epochs, lr 0.04", [])
    rows += [fake("a on b, 1 epochs, lr 0.05", [0.0])[0] | {"val/acc": ""}]
    [(setting, found)] = find_sweeps(rows).items()
    assert setting == Setting("a on b, 1 epochs", 512, "CPU", "32-true")
    accuracies = {lr: [run["val/acc"] for run in runs] for lr, runs in found.items()}
    assert [*accuracies.items()] == [
        ("0.01", ["0.2", "0.4"]),
        ("0.02", ["0.5", "0.6"]),
        (AUTO, ["0.7", "0.8"]),
    ]


def test_the_standard_error_is_the_larger_of_images_and_seeds() -> None:
    # sqrt((0.8 * 0.2 + 0.9 * 0.1) / 10_000) = sqrt(0.25 / 10_000)
    assert standard_error([0.8], [0.9], 10_000) == pytest.approx(0.005)
    # Differences -0.1 and -0.12: standard deviation sqrt(0.0002), by sqrt(2) 0.01.
    # Binomial: sqrt((0.8 * 0.2 + 0.91 * 0.09) / (2 * images)).
    pair = [0.79, 0.81], [0.89, 0.93]
    assert standard_error(*pair, 10_000) == pytest.approx(0.01)
    binomial = math.sqrt((0.16 + 0.0819) / 200)
    assert standard_error(*pair, 100) == pytest.approx(binomial)
    assert standard_error(*pair, None) == pytest.approx(0.01)
    assert standard_error([0.8], [0.9], None) == math.inf


def test_the_gap_is_to_the_best_and_its_interval_to_all() -> None:
    gap = find_gap(sweep(_01=[0.8], auto=[0.9]), 10_000)
    assert gap is not None
    assert gap.best == "0.01"
    assert gap[1:] == pytest.approx((-10, -10 - 0.5 * ONE, -10 + 0.5 * ONE))
    # The lead of 0.01 is 2 ± 0 points; that of 0.02 is 1 ± 1 and reaches further.
    found = sweep(_02=[0.50, 0.52], _01=[0.52, 0.52], auto=[0.5, 0.5])
    gap = find_gap(found, None)
    assert gap is not None
    assert gap.best == "0.01"
    assert gap[1:] == pytest.approx((2, 2, 1 + TWO))
    assert find_gap(sweep(_01=[0.8]), 10_000) is None
    assert find_gap(sweep(auto=[0.8]), 10_000) is None
    assert find_gap(sweep(_01=[], auto=[]), 10_000) is None


def test_the_verdict_takes_the_whole_interval() -> None:
    assert verdict(Gap("0.01", 0.1, -0.5, 0.2)) == "within 0.2"
    assert verdict(Gap("0.01", 0.1, -0.5, 0.21)) == "cannot be told"
    assert verdict(Gap("0.01", 0.9, 0.2, 1.6)) == "cannot be told"
    assert verdict(Gap("0.01", 0.9, 0.21, 1.6)) == "not within 0.2"
    assert verdict(None) == "cannot be told"


def record() -> list[Run]:
    """Two batch sizes on CIFAR-10, other images, and a sweep that has no auto."""
    rows = fake("b on cifar10, 3 epochs, batch_size 128, lr 0.01", [0.8])
    rows += fake("b on cifar10, 3 epochs, batch_size 128, lr 0.02", [0.7], 0.02)
    rows += fake("b on cifar10, 3 epochs, batch_size 128", [0.8], 0.0049)
    rows += fake("b on cifar10, 3 epochs, batch_size 64, lr 0.04", [0.5, 0.6], 0.04)
    rows += fake("b on cifar10, 3 epochs, batch_size 64", [0.3, 0.4], 0.006)
    rows += fake("a on mine, 3 epochs, batch_size 64, lr 0.01", [0.8])
    rows += fake("a on mine, 3 epochs, batch_size 64", [0.8], 0.003)
    return rows + fake("c on cifar10, 3 epochs, batch_size 64, lr 0.01", [0.8])


def test_the_table_says_what_was_reached_and_what_can_be_told() -> None:
    head, _, *lines = sweep_table(record()).splitlines()
    assert "| n | 0.01 | 0.02 | 0.04 | auto |" in head
    # One rate of two on 5,000 images: 2.241 sqrt(0.32 / 5,000) = 1.79 points.
    # Two seeds, 20 points apart in each: 1.960 sqrt((0.2475 + 0.2275) / 10,000) = 1.35.
    end = "CPU, 32-true |"
    b = "| b on cifar10, 3 epochs"
    unknown, wide = "0.00 (-inf to inf) | cannot be told", "0.00 (-1.79 to 1.79)"
    far = "20.00 (18.65 to 21.35) | not within 0.2"
    assert lines == [
        f"| a on mine, 3 epochs | 64 | 1 | **80.00** |  |  | 80.00 | 0.003 | {unknown} "
        f"| {end}",
        f"{b} | 64 | 2 |  |  | **55.00 ± 7.07** | 35.00 ± 7.07 | 0.006 0.006 | {far} "
        f"| {end}",
        f"{b} | 128 | 1 | **80.00** | 70.00 |  | 80.00 | 0.0049 | {wide} | cannot be "
        f"told | {end}",
        "| c on cifar10, 3 epochs | 64 | 1 | 80.00 |  |  |  |  |  | cannot be told | "
        f"{end}",
    ]


def test_the_picture_shows_every_run_and_what_auto_picked() -> None:
    figure = sweep_figure(find_sweeps(record()))
    panels = figure.axes
    titles = [axes.get_title().splitlines()[0] for axes in panels]
    assert titles == [f"{name}, 3 epochs" for name in ("a on mine", "b on cifar10")] + [
        "c on cifar10, 3 epochs"
    ]
    lines = [line.get_xydata() for line in panels[1].lines]
    assert [np.asarray(line).tolist() for line in lines] == [
        [[0.04, pytest.approx(55)]],
        [[0.01, pytest.approx(80)], [0.02, pytest.approx(70)]],
    ]
    points = [np.asarray(dots.get_offsets()) for dots in panels[1].collections]
    assert points[1] == pytest.approx(np.array([[0.006, 30], [0.006, 40]]))
    assert points[4] == pytest.approx(np.array([[0.0049, 80]]))
    legend = panels[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "batch size 64",
        "batch size 64, picks of auto",
        "batch size 128",
        "batch size 128, picks of auto",
    ]


def test_the_page_is_what_is_on_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, section(script.RUNS), "lr_sweep") == page


def test_the_readme_says_of_the_sweep_what_is_on_record() -> None:
    sweeps = find_sweeps(read_runs(script.RUNS))
    shown = [(setting.recipe.split(", ")[:2], setting.batch_size) for setting in sweeps]
    assert shown == [
        (["default on cifar10", "2 epochs"], 128),
        (["default on cifar10", "2 epochs"], 512),
        (["seed on cifar10", "2 epochs"], 128),
        (["seed on cifar10", "2 epochs"], 512),
    ]
    behind = []
    for sweep in sweeps.values():
        gap = find_gap(sweep, None)
        assert (len(sweep[AUTO]), len(sweep)) == (1, 7)
        assert gap is not None
        behind.append(gap.points)
    at_128, at_512, *with_seed = behind
    assert max(at_128, *with_seed) < 0
    said = (
        "after 2 epochs (n = 1 each), the pick led to more held-out images right than "
        "any of them with `seed.yaml` at batch 128 and at 512 and with the defaults at "
        f"128; with the defaults at 512 it was {at_512:.2f} points behind the best"
    )
    assert said in " ".join(README.read_text(encoding="utf-8").split())


def test_the_page_is_written_with_and_without_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page, runs = Path("page.md"), Path("sweep.csv")
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "RUNS", runs)
    write_page()
    without = page.read_text("utf-8")
    assert "\nA sweep of fixed rates has not been measured yet.\n" in without
    write_runs(runs, record())
    write_page()
    text = page.read_text("utf-8")
    assert text.count("not been measured") == 0
    assert sweep_table(record()) in text
    assert "](pictures/lr_sweep.svg)" in text
    runs.unlink()
    write_page()
    assert page.read_text("utf-8") == without


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["small.yaml", "--lrs", "[]"], "--lrs is an empty list; name at least one"),
        (["small.yaml", "--batch_sizes", "[]"], "--batch_sizes is an empty list"),
        (
            ["small.yaml", "--lrs", "[0.1, fast]"],
            "--lrs must be a list, each",
        ),
        (["small.yaml", "--lrs", "[0.1, 0]"], "--lr must be a finite number above 0"),
        (["small.yaml", "--lrs", "[.inf]"], "--lr must be a finite number above 0"),
        (["small.yaml", "--batch_sizes", "[0]"], "--batch_size must be a whole number"),
        (["small.yaml", "--max_epochs", "0"], "--max_epochs must be a whole number"),
        (["small.yaml", "--seeds", "0"], "--seeds must be a whole number, at least 1"),
        (["small.yaml", "--first_seed", "-1"], "--seed must be a whole number, from 0"),
        (["small.yaml", "none.yaml"], "File does not exist"),
        (
            ["small.yaml", "--data_dir", "nothing"],
            "no such folder; --data cifar10 downloads",
        ),
        (["--lrs", "[0.1]"], "configs"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(
    arguments: list[str],
    reason: str,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["lr_sweep.py", "--output", str(OUTPUT), "--data_dir", quick["data_dir"]]
    monkeypatch.setattr(sys, "argv", argv + arguments)
    with pytest.raises(SystemExit) as end:
        cli.run("lr_sweep.py", lr_sweep)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("lr_sweep.py: error: ")
    assert reason in line
    assert not OUTPUT.exists()
