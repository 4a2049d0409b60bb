"""Recipes: measured by one protocol, put on record once, and compared honestly."""

import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import recipe as script
from benchmarks import tables
from benchmarks.recipe import commit_of_code, recipe, recipe_name
from benchmarks.tables import (
    Run,
    by_kind,
    percent,
    read_runs,
    results_table,
    values,
)
from common import cli
from common.errors import InputError, StoppedError
from config import Config
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet
from machine import provenance
from record import SMALL, runs_of, write_recipe
from train import train
from training.run_folder import RunFolder

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
OUTPUT = Path("out/runs.csv")


def test_every_run_is_measured_by_the_protocol(
    trained: list[dict[str, Any]],
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the file says of seed, split, test, TTA and place."""
    own = write_recipe(
        "small", seed=9, val_size=50, tta="none", limit_test_batches=0, name="x"
    )
    recipe([own], 2, 3, data_dir=str(image_folder), output=str(OUTPUT))
    warm_up, *measured = trained
    assert (warm_up["limit_train_batches"], warm_up["limit_test_batches"]) == (3, 0)
    assert not Path(warm_up["output_dir"]).exists()
    assert [flags["seed"] for flags in measured] == [3, 4]
    for flags in measured:
        assert (flags["val_size"], flags["tta"]) == (0, "flip")
        assert (flags["label_smoothing"], flags["limit_train_batches"]) == (0.0, 1.0)
    rows = read_runs(OUTPUT)
    for row, seed in zip(rows, ("3", "4"), strict=True):
        folder = Path(f"runs/recipes/small_seed{seed}")
        kept = json.loads((folder / "metrics.json").read_text())
        assert kept["val/acc"] is None
        assert not (folder / "report.html").exists()
        assert (row["seed"], row["val/acc"]) == (seed, "")
        for column in ("test/acc", "test/acc_tta", "test/loss", "fit_seconds"):
            assert float(row[column]) == kept[column]
        assert 0 < float(row["fit_seconds"]) < float(row["seconds"])
        images = f"small on {image_folder.name}, 1 epochs"
        assert row["recipe"] == f"{images}, batch_size 32, lr 0.01, base_width 4"
    shown = capsys.readouterr().out
    assert results_table(rows) in shown
    first = 100 * float(rows[0]["test/acc"])
    assert shown.startswith(f"seed 3: test accuracy {first:.2f} %, with flip TTA ")


def test_what_is_on_record_is_not_trained_again(
    trained: list[dict[str, Any]],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files: dict[str, Any] = {"data_dir": str(image_folder), "output": str(OUTPUT)}
    monkeypatch.setattr(script, "commit_of_code", lambda: "old")
    recipe([write_recipe("small")], 1, timed=False, **files)
    recipe([write_recipe("small")], 1, **files)
    assert len(trained) == 1  # nothing to time, so no warm-up
    assert "seed 0 on record already\n" in capsys.readouterr().out
    recipe([write_recipe("small")], 2, **files)
    assert [flags.get("seed") for flags in trained[2:]] == [1]
    monkeypatch.setattr(script, "commit_of_code", lambda: "new")
    recipe([write_recipe("small")], 1, **files)
    recipe([write_recipe("small", label_smoothing=0.1)], 1, **files)
    rows = read_runs(OUTPUT)
    found = [(row["seed"], row["commit"]) for row in rows]
    assert found == [("0", "old"), ("1", "old"), ("0", "new"), ("0", "new")]
    assert rows[3]["recipe"].endswith("lr 0.01, label_smoothing 0.1, base_width 4")
    assert [bool(row["fit_seconds"]) for row in rows] == [False, True, True, True]


def test_a_selection_leaves_the_test_set_alone(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(LitCustomResNet, "test_step", refuse)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    own = write_recipe("small", val_size=0, tta="flip")
    recipe([own], 1, select=True, data_dir=str(image_folder))
    [row] = read_runs(tmp_path / "selection.csv")
    assert (row["test/acc"], row["test/loss"]) == ("", "")
    assert float(row["val/acc"]) >= 0
    assert float(row["val/loss"]) > 0
    saved = yaml.safe_load(Path("runs/selection/small_seed0/config.yaml").read_text())
    assert saved["val_size"] == 12  # a tenth of 120


def test_a_signal_keeps_the_runs_before(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain_create = RunFolder.create

    def create(run: RunFolder) -> None:
        if run.path.name == "small_seed1":
            raise StoppedError(signal.SIGTERM)
        plain_create(run)

    monkeypatch.setattr(RunFolder, "create", create)
    monkeypatch.setattr(sys, "argv", ["benchmarks/recipe.py"])
    with pytest.raises(SystemExit) as end:
        recipe(
            [write_recipe("small")], 3, data_dir=str(image_folder), output=str(OUTPUT)
        )
    assert end.value.code == 143
    assert [row["seed"] for row in read_runs(OUTPUT)] == ["0"]
    said = "recipe.py: stopped by SIGTERM; the same command goes on with this run anew"
    assert said in capsys.readouterr().err


def test_a_name_says_what_a_recipe_is() -> None:
    flags = script.plain_flags()
    assert recipe_name("best", flags) == "best on cifar10, 24 epochs"
    others = {"data": "synthetic", "seed": 3, "ema_decay": 0.99, "flip": "alternate"}
    named = recipe_name("fast", flags | others | {"max_epochs": 9})
    assert named == "fast on shapes, 9 epochs, ema_decay 0.99, flip alternate"


def test_results_and_pages_do_not_make_a_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *names, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    files = ("benchmarks/results/runs.csv", "README.md", "train.py")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in files:
        (tmp_path / name).touch()
    git("init")
    git("add", *files)
    git("commit", "-m", "all")
    for module in (script, provenance):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    clean = provenance.commit()
    assert commit_of_code() == clean
    for name in files[:2]:
        (tmp_path / name).write_text("more")
    assert provenance.commit() == f"{clean}-dirty"
    assert commit_of_code() == clean
    (tmp_path / files[2]).write_text("more")
    assert commit_of_code() == f"{clean}-dirty"


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (None, (), "File does not exist"),
        ("[", (), "Problems parsing config"),
        ("lrr: 1", (), "'lrr' is not accepted"),
        ("lr: fast", (), "--lr must be a number or 'auto', got 'fast'"),
        ("lr: -1", (), "--lr must be a finite number above 0, or auto, got -1.0"),
        ("lr: 1", ("--seeds", "0"), "--seeds must be a whole number, at least 1"),
        ("lr: 1", ("--first_seed", "-1"), "--seed must be a whole number, from 0"),
        ("lr: 1", ("--data_dir", "nothing"), "no such folder; --data cifar10"),
    ],
)
def test_bad_input_is_one_line(
    content: str | None,
    arguments: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        Path("bad.yaml").write_text(content)
    argv = ["recipe.py", "--config", "bad.yaml", "--output", str(OUTPUT), *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(script, "commit_of_code", lambda: "clean")
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recipe.py: error: ")
    assert reason in line
    assert not OUTPUT.exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_runs_and_says_what_is_on_record(
    path: Path, image_folder: Path
) -> None:
    flags = cli.parse(Config, ["--config", str(path)]) | SMALL | {"report": False}
    metrics = train(**flags | {"data_dir": str(image_folder)})
    assert metrics["epochs"] == 1
    head = path.read_text().split("\n\n")[0]
    said = " ".join(line.lstrip("# ") for line in head.splitlines())
    named = re.findall(r'"([^"]+)":', said)
    assert named
    for name in named:
        assert any(
            f'"{name}": {numbers(runs)}' in said and ", ".join(place) in said
            for (recipe, *place), runs in by_kind(read_runs()).items()
            if recipe == name
        )


def numbers(runs: list[Run]) -> str:
    """Accuracies as in the first lines of a configuration."""
    flip = percent(values(runs, "test/acc_tta"))
    plain = percent(values(runs, "test/acc"))
    return f"{plain}{f', with flip TTA {flip}' if flip else ''}, n = {len(runs)}"


def test_the_best_configuration_is_the_default_but_for_rate_and_average() -> None:
    [best] = [path for path in CONFIGS if path.stem == "best"]
    flags, defaults = cli.parse(Config, ["--config", str(best)]), cli.parse(Config, [])
    changed = {flag for flag, value in flags.items() if value != defaults[flag]}
    assert changed == {"lr", "ema_decay"}


def test_what_stands_alone_has_the_same_defaults_as_train() -> None:
    defaults = cli.parse(Config, [])
    for part in (CIFAR10DataModule, LitCustomResNet):
        parameters = inspect.signature(part).parameters.values()
        own = [each for each in parameters if each.default is not each.empty]
        assert own
        for parameter in own:
            assert parameter.default == defaults[parameter.name]


def test_the_newest_run_of_a_seed_counts_and_devices_are_not_mixed() -> None:
    runs = (
        runs_of("a", [0.1, 0.5])
        + runs_of("a", [0.7])
        + runs_of("a", [0.9], device="GPU")
    )
    assert [line.split(" | ") for line in results_table(runs).splitlines()[2:]] == [
        ["| a", "90.00 %", "", "", "1", "", "", "GPU, 32-true |"],
        ["| a", percent([0.7, 0.5]), "", "", "2", "", "", "CPU, 32-true |"],
    ]


def test_a_run_that_is_not_there_is_not_added() -> None:
    with pytest.raises(InputError, match=r"--add \.: no metrics\.json in it"):
        tables.tables(add=".")
