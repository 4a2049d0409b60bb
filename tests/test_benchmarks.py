"""The measurements: they run, and what the README says of them is on record."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lr_stability import lr_stability, picks
from benchmarks.tables import (
    README,
    add_run,
    percent,
    read_runs,
    results_table,
    with_table,
)

RESULTS = README.parent / "benchmarks" / "results"


def test_readme_shows_the_runs_on_record() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, results_table(read_runs())) == readme


def test_readme_shows_the_measured_stability() -> None:
    readme = README.read_text(encoding="utf-8")
    measured = RESULTS / "2026-11-22_lr_stability_cpu.jsonl"
    for batch_size, lrs in picks(measured).items():
        assert len(lrs) == 5
        cells = f"| {batch_size} | {' '.join(f'{lr:.2g}' for lr in lrs)} |"
        assert f"{cells} {max(lrs) / min(lrs):.2f} |" in readme
        assert max(lrs) / min(lrs) < 3
        assert 1e-3 < min(lrs) < max(lrs) < 3e-2


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


def test_percent_of_one_several_and_none() -> None:
    assert percent(["0.5"]) == "50.00 %"
    assert percent(["0.5", "0.6"]) == "55.00 ± 7.07 % (50.00 to 60.00)"
    assert percent([""]) == ""


def test_lr_stability_runs_small(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lr_stability(
        "out/picks.jsonl",
        data_dir=str(image_folder),
        batch_sizes=(32,),
        seeds=2,
        lr_steps=40,
        accelerator="cpu",
        base_width=4,
    )
    lines = Path("out/picks.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["seed"] for record in records] == [0, 1]
    assert all(len(record["losses"]) == 40 for record in records)
    [lrs] = picks(Path("out/picks.jsonl")).values()
    assert len(lrs) == 2
    assert f"{max(lrs) / min(lrs):.2f} |" in capsys.readouterr().out
