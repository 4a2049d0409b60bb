"""Recipes: measured by one protocol, put on record once, and never mixed."""

import inspect
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pytorch_lightning.callbacks import Callback

from benchmarks import measure as script
from benchmarks import recipes
from benchmarks.choose_levels import choose_levels
from benchmarks.measure import measure
from benchmarks.recipes import (
    CONFIGS,
    STEPS,
    columns,
    find_steps,
    name_of,
    read_recipe,
)
from benchmarks.runs import by_kind, percent, read_runs, results_table, runs_of_configs
from common import cli
from common.errors import InputError, StoppedError
from config import Config
from datamodule import CIFAR10DataModule
from images.sources import CIFAR10_CLASSES
from lightning_module import LitCustomResNet
from machine import provenance
from record import SEED, SMALL, runs_of, write_recipe, write_runs
from train import train
from training.run_folder import RunFolder

OUTPUT = Path("out/runs.csv")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The flags of each training that a measurement starts, in order."""
    calls: list[dict[str, Any]] = []
    quietly_train = recipes.quietly_train

    def note(config: Config, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
        calls.append(asdict(config))
        return quietly_train(config, callbacks)

    monkeypatch.setattr(recipes, "quietly_train", note)
    monkeypatch.setattr(provenance, "commit", lambda: "same")
    return calls


@pytest.fixture
def files(image_folder: Path) -> dict[str, Any]:
    return {"data_dir": str(image_folder), "output": str(OUTPUT)}


def test_every_run_is_measured_by_the_protocol(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the file says of seed, split, test, TTA and place."""
    own = write_recipe(
        "small", seed=9, val_size=50, tta="none", limit_test_batches=0, name="x"
    )
    measure([own], 2, 3, **files)
    warm_up, *measured = trained
    assert (warm_up["limit_train_batches"], warm_up["limit_test_batches"]) == (3, 0)
    assert not Path(warm_up["output_dir"]).exists()
    assert [given["seed"] for given in measured] == [3, 4]
    for given in measured:
        assert (given["val_size"], given["tta"]) == (0, "flip")
        assert (given["label_smoothing"], given["limit_train_batches"]) == (0.0, 1.0)
    rows = read_runs(OUTPUT)
    for (_, row), seed in zip(rows.iterrows(), (3, 4), strict=True):
        folder = Path(f"runs/recipes/small_seed{seed}")
        kept = json.loads((folder / "metrics.json").read_text())
        assert kept["val/acc"] is None
        assert not (folder / "report.html").exists()
        assert row["seed"] == seed
        assert pd.isna(row["val/acc"])
        for column in ("test/acc", "test/acc_tta", "test/loss", "fit_seconds"):
            assert row[column] == kept[column]
        assert 0 < row["fit_seconds"] < row["seconds"]
        assert (row["recipe"], row["images"]) == ("small", name_of(image_folder))
        flags = ("max_epochs", "batch_size", "lr", "base_width", "flip", "val_size")
        assert [row[flag] for flag in flags] == ["1", "32", "0.01", "4", "random", "0"]
    shown = capsys.readouterr().out
    assert results_table(rows) in shown
    first = 100 * rows["test/acc"][0]
    assert shown.startswith(f"small_seed3: test accuracy {first:.2f} %, with flip TTA ")


@pytest.mark.slow
def test_what_is_on_record_is_not_trained_again(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure([write_recipe("small")], 1, timed=False, **files)
    measure([write_recipe("small")], 1, **files)
    assert len(trained) == 1  # nothing to time, so no warm-up
    assert "small: seed 0 on record already\n" in capsys.readouterr().out
    measure([write_recipe("small")], 2, **files)
    assert [flags.get("seed") for flags in trained[2:]] == [1]
    monkeypatch.setattr(provenance, "commit", lambda: "new")
    measure([write_recipe("small")], 1, **files)
    measure([write_recipe("small", label_smoothing=0.1)], 1, **files)
    rows = read_runs(OUTPUT)
    found = [*zip(rows["seed"], rows["commit"], rows["label_smoothing"], strict=True)]
    assert found == [
        *((0, "same", "0.0"), (1, "same", "0.0")),
        *((0, "new", "0.0"), (0, "new", "0.1")),
    ]
    assert rows["fit_seconds"].notna().tolist() == [False, True, True, True]


def test_a_run_of_code_that_is_not_committed_is_trained_again(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows whether the code is still the same."""
    monkeypatch.setattr(provenance, "commit", lambda: "same-dirty")
    for _ in range(2):
        measure([write_recipe("small")], 1, timed=False, **files)
    assert len(trained) == len(read_runs(OUTPUT)) == 2


def test_a_record_that_cannot_be_written_is_refused_before_the_work(
    trained: list[dict[str, Any]], files: dict[str, Any]
) -> None:
    OUTPUT.parent.mkdir()
    OUTPUT.with_name(f".{OUTPUT.name}.lock").mkdir()
    with pytest.raises(OSError, match=r"runs\.csv\.lock"):
        measure([write_recipe("small")], 1, **files)
    assert not trained


@pytest.fixture
def stopped(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    """The epochs in which a run trained that was stopped in its second; those after."""
    epochs: list[int] = []

    def count(module: LitCustomResNet) -> None:
        epochs.append(module.current_epoch)
        if epochs == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LitCustomResNet, "on_train_epoch_start", count, raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks/measure.py"])
    with pytest.raises(SystemExit) as end:
        measure([write_recipe("small", max_epochs=3)], 1, timed=False, **files)
    assert end.value.code == 143
    assert epochs == [0, 1]
    assert not OUTPUT.exists()
    return epochs


def test_a_stopped_run_goes_on_and_ends_as_any_other(
    stopped: list[int], files: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [write_recipe(name, max_epochs=3) for name in ("small", "other")]
    measure(own, 1, timed=False, **files)
    assert stopped == [0, 1, 2, 0, 1, 2]  # on within the second epoch
    assert "small_seed0: going on with it\n" in capsys.readouterr().out
    small, other = read_runs(OUTPUT).to_dict("records")
    for column in ("train/loss", "test/loss", "test/acc_tta", "epochs", "lr"):
        assert small[column] == other[column]
    assert small["commit"] == "same"


def test_a_stopped_run_of_other_code_begins_anew(
    stopped: list[int], files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "new")
    measure([write_recipe("small", max_epochs=3)], 1, timed=False, **files)
    assert stopped == [0, 1, 0, 1, 2]
    assert read_runs(OUTPUT)["commit"].tolist() == ["new"]


def test_a_stopped_run_does_not_go_on_with_other_flags(
    stopped: list[int], files: dict[str, Any]
) -> None:
    own = write_recipe("small", max_epochs=3, label_smoothing=0.1)
    place = Path("runs/recipes/small_seed0")
    said = rf"label_smoothing is 0.1, .* with 0.0; .* start anew, by removing {place}$"
    with pytest.raises(InputError, match=said):
        measure([own], 1, timed=False, **files)
    assert stopped == [0, 1]
    assert (place / "checkpoints/last.ckpt").exists()


def test_a_run_whose_row_could_not_be_written_is_not_trained_again(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A spreadsheet has the file open, say. Nobody waits for hours twice."""
    own = [write_recipe("small", lr="auto", lr_steps=40)]
    with monkeypatch.context() as patch:
        patch.setattr(script, "add_run", refuse_to_write)
        with pytest.raises(PermissionError):
            measure(own, 1, timed=False, **files)
    measure(own, 1, timed=False, **files)
    assert len(trained) == 1
    assert "small_seed0: finished before, now on record\n" in capsys.readouterr().out
    [row] = read_runs(OUTPUT).to_dict("records")
    kept = json.loads(Path("runs/recipes/small_seed0/metrics.json").read_text())
    assert (row["lr"], row["max_lr"]) == ("auto", kept["max_lr"])
    for column in ("train/loss", "test/acc", "test/acc_tta", "device"):
        assert row[column] == kept[column]
    assert pd.isna(row["fit_seconds"])  # other work may have run beside it

    OUTPUT.unlink()
    measure([write_recipe("small", lr=0.01)], 1, timed=False, **files)  # other flags
    assert len(trained) == 2
    OUTPUT.unlink()
    monkeypatch.setattr(recipes, "place", lambda _: {"device": "another"})
    measure([write_recipe("small", lr=0.01)], 1, timed=False, **files)
    assert len(trained) == 3


def refuse_to_write(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "open in another program", "runs.csv")


def test_a_selection_leaves_the_test_set_alone(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(LitCustomResNet, "test_step", refuse)
    monkeypatch.setattr(script, "SELECTION", tmp_path / "selection.csv")
    own = write_recipe("small", val_size=0, tta="flip")
    measure([own], 1, select=True, data_dir=str(image_folder))
    [row] = read_runs(tmp_path / "selection.csv").to_dict("records")
    assert pd.isna(row["test/acc"])
    assert pd.isna(row["test/loss"])
    assert row["val/acc"] >= 0
    assert row["val/loss"] > 0
    saved = yaml.safe_load(Path("runs/selection/small_seed0/config.yaml").read_text())
    assert saved["val_size"] == 12  # a tenth of 120


@pytest.mark.slow
def test_a_sweep_is_trained_seed_by_seed_and_goes_on_where_it_was_stopped(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files |= {"configs": [write_recipe("small", lr_steps=40)], "select": True}
    files |= {"sweep": {"lr": [0.01, "auto"], "cutout": [4, 6]}, "seeds": 2}
    plain_create, made = RunFolder.create, 0

    def create(run: RunFolder) -> None:
        nonlocal made
        made += 1
        if made == 4:
            raise StoppedError(signal.SIGTERM)
        plain_create(run)

    monkeypatch.setattr(RunFolder, "create", create)
    monkeypatch.setattr(sys, "argv", ["benchmarks/measure.py"])
    with pytest.raises(SystemExit) as end:
        measure(**files)
    assert end.value.code == 143
    said = "measure.py: stopped by SIGTERM; the same command goes on\n"
    assert said in capsys.readouterr().err
    assert len(read_runs(OUTPUT)) == 3
    measure(**files)
    points = [("0.01", "4"), ("0.01", "6"), ("auto", "4"), ("auto", "6")]
    rows = read_runs(OUTPUT)
    assert [*zip(rows["lr"], rows["cutout"], rows["seed"], strict=True)] == [
        (*point, seed) for seed in (0, 1) for point in points
    ]
    assert rows["max_lr"][:2].tolist() == [0.01, 0.01]
    assert rows["test/acc"].isna().all()
    assert rows["fit_seconds"].isna().all()
    for given in trained:
        assert (given["limit_test_batches"], given["val_size"]) == (0, "auto")
        assert not Path(given["output_dir"]).exists()
    assert not Path("runs").exists()
    assert "1 epochs, lr auto, cutout 6 |" in capsys.readouterr().out


def test_every_step_keeps_those_before_it_in_the_order_of_the_table() -> None:
    later = {"crop_padding": 2, "lr": 0.02, "label_smoothing": 0.1, "lr_steps": 50}
    files = write_recipe("plain", seed=1), write_recipe("best", seed=2, **later)
    first, last = (read_recipe(file, {}, select=True) for file in files)
    steps = find_steps("plain", first, last)
    expected: dict[str, dict[str, Any]] = {
        "plain": {},
        "label smoothing": {"label_smoothing": 0.1},
        "batch size and learning rate": {"lr": 0.02, "lr_steps": 50},
        "crop_padding": {"crop_padding": 2},
    }
    assert [name for name, _ in steps] == [*expected]
    settled: dict[str, Any] = {}
    for name, config in steps:
        settled |= expected[name]
        assert config == replace(first, **settled)


def test_the_steps_lead_from_the_first_recipe_of_the_project_to_the_last() -> None:
    own = {"max_epochs": 8}
    first, last = (
        read_recipe(str(CONFIGS / name), own, select=False)
        for name in ("seed.yaml", "best.yaml")
    )
    steps = find_steps("seed", first, last)
    assert len(steps) > 2
    assert columns(steps[-1][1]) == columns(last)
    assert {flag for flags in STEPS.values() for flag in flags} <= {*asdict(first)}


@pytest.mark.slow
def test_steps_are_measured_seed_by_seed(
    trained: list[dict[str, Any]],
    files: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [
        write_recipe("plain"),
        write_recipe("best", crop_padding=2, label_smoothing=0.1),
    ]
    measure(paths, 2, select=True, steps=True, **files)
    rows = read_runs(OUTPUT)
    names = ["plain", "label smoothing", "crop_padding"]
    assert [*zip(rows["recipe"], rows["seed"], strict=True)] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    assert [flags["crop_padding"] for flags in trained[:3]] == [4, 4, 2]
    last = percent(rows.loc[rows["recipe"] == "crop_padding", "val/acc"])
    assert f"`--crop_padding 2`      | {last}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (None, "", "bad.yaml: no such file; give"),
        ("[", "", "Problems parsing config"),
        ("lrr: 1", "", "unknown flag lrr; did you mean lr?"),
        ("lr: fast", "", "--lr must be a number or auto, got 'fast'"),
        ("lr: -1", "", "--lr must be a finite number above 0, or auto, got -1.0"),
        ("lr: 1", "--seeds 0", "--seeds must be a whole number, at least 1"),
        ("lr: 1", "--first_seed -1", "--seed must be a whole number, from 0"),
        ("lr: 1", "--data_dir nothing", "no such folder; --data cifar10"),
        ("lr: 1", "--sweep.lr []", "--sweep.lr []: give at least one value of a flag"),
        ("lr: 1", "--sweep.seed [1]", "--sweep.seed [1]: give at least one value of a"),
        ("lr: 1", "--sweep.lr [0]", "--lr must be a finite number above 0"),
        ("lr: 1", "--sweep.cutout [a]", "--cutout must be a whole number, got 'a'"),
        ("lr: 1", "--steps", "--steps needs two recipes, the first and the last, got "),
        (
            "lr: 1",
            "bad.yaml --steps",
            "--steps leads from one recipe to another; these",
        ),
        ("lr: 1", "b.yaml --steps", "the first recipe has max_epochs 24, the last 1; "),
        (
            "max_epochs: 1",
            "b.yaml --steps --output o.csv",
            "such as 'mine'; give anoth",
        ),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(
    content: str | None,
    arguments: str,
    reason: str,
    trained: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        Path("bad.yaml").write_text(
            f"accelerator: cpu\nprecision: 32-true\n{content}\n"
        )
    if content == "[":
        Path("bad.yaml").write_text(content)
    write_recipe("b")
    write_runs(Path("o.csv"), runs_of("mine", [0.9]))
    argv = ["measure.py", "bad.yaml", *arguments.split()]
    argv += [] if "--output" in argv else ["--output", str(OUTPUT)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        cli.run("measure.py", measure)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("measure.py: error: ")
    assert reason in line
    assert not OUTPUT.exists()


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_configuration_runs_and_says_what_is_on_record(
    path: Path, image_folder: Path
) -> None:
    flags = cli.parse(Config, ["--config", str(path)]) | SMALL | {"report": False}
    metrics = train(**flags | {"data_dir": str(image_folder)})
    assert metrics["epochs"] == 1
    head = " ".join(path.read_text(encoding="utf-8").replace("#", "").split())
    found = [
        f'"{kind["recipe"]}": {percent(runs["test/acc"])}, with flip TTA '
        f"{percent(runs['test/acc_tta'])}, n = {len(runs)}"
        for kind, runs in by_kind(runs_of_configs(read_runs()))
        if f'"{kind["recipe"]}": ' in head
    ]
    assert path.stem in "".join(found)
    for said in found:
        assert said in head


def test_the_best_configuration_is_what_the_last_design_chose() -> None:
    choose_levels("fourth", "fourth.yaml")
    choose_levels("fifth", "fifth.yaml", "fourth.yaml")
    chosen, best = (
        read_recipe(str(file), {}, select=True)
        for file in ("fifth.yaml", CONFIGS / "best.yaml")
    )
    assert chosen == best


def test_what_stands_alone_has_the_same_defaults_as_train() -> None:
    defaults = cli.parse(Config, [])
    for part in (CIFAR10DataModule, LitCustomResNet):
        parameters = inspect.signature(part).parameters.values()
        own = [each for each in parameters if each.default is not each.empty]
        assert own
        for parameter in own:
            assert parameter.default == defaults[parameter.name]


def test_images_are_named_by_their_folder(image_folder: Path) -> None:
    config = read_recipe(SEED, {}, select=False)
    named = {"cifar10": config, "shapes": replace(config, data="synthetic")}
    for name, given in named.items():
        assert columns(given)["images"] == name


def test_other_images_in_a_folder_of_the_same_name_have_another_name(
    image_folder: Path, tmp_path: Path
) -> None:
    same, other = tmp_path / "a" / "photos", tmp_path / "b" / "photos"
    for folder in (same, other, tmp_path / "c" / "photos"):
        shutil.copytree(image_folder, folder)
    (other / "test/red/0.png").unlink()
    config = read_recipe(SEED, {}, select=False)
    one, another, copied = (
        columns(replace(config, data_dir=tmp_path / place / "photos"))["images"]
        for place in "abc"
    )
    assert re.fullmatch("photos [0-9a-f]{6}", one)
    assert copied == one != another


def test_cifar10_is_that_wherever_it_lies(tmp_path: Path) -> None:
    for split, count in (("train", 5000), ("test", 1000)):
        for name in CIFAR10_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / split / name / f"{number}.png").touch()
    assert name_of(tmp_path) == "cifar10"
    (tmp_path / "train/cat/7.png").unlink()
    name_of.cache_clear()
    assert name_of(tmp_path).startswith(f"{tmp_path.name} ")
