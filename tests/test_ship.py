"""The weights that come with the project, and how they are chosen."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.finished_run import read_run
from analysis.loading import WEIGHTS, load_model
from analysis.weights import read_weights
from benchmarks import ship as script
from benchmarks.recipes import name_of
from benchmarks.runs import add_run, read_runs
from benchmarks.ship import (
    ROBUST,
    median_run,
    runs_like,
    runs_of_weights,
    ship,
    weights_table,
)
from common.errors import InputError
from evaluate import evaluate
from record import runs_of, together, write_runs
from run_files import LAST

RUN = LAST.parent.parent
Train = Callable[..., dict[str, Any]]
PROJECT = Path(__file__).resolve().parent.parent
IMAGES = PROJECT / "data" / "cifar10"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights go."""
    monkeypatch.setattr(script, "WEIGHTS", Path("weights/w.safetensors").resolve())
    return Path("weights/w.safetensors").resolve()


def train_thrice(quick_train: Train) -> list[Path]:
    """Runs on record with the accuracies 0.5, 0.7 and 0.6; only those are made up."""
    folders = []
    for seed, accuracy in enumerate((0.5, 0.7, 0.6)):
        quick_train(max_epochs=1, seed=seed, overwrite=True)
        folders.append(Path(f"kept{seed}"))
        shutil.copytree(RUN, folders[-1])
        metrics = json.loads((RUN / "metrics.json").read_text())
        (folders[-1] / "metrics.json").write_text(
            json.dumps(metrics | {"test/acc": accuracy})
        )
        config = read_run(RUN).config
        add_run(folders[-1], "mine", config, Path("runs.csv"))
    return folders


def test_the_median_run_is_shipped_with_what_it_reaches(
    quick_train: Train, shipped: Path, image_folder: Path
) -> None:
    folders = train_thrice(quick_train)
    ship(str(folders[2]), str(image_folder), "runs.csv")
    saved = read_weights(shipped)
    measured = saved["measured"]
    recipe = f"mine on {name_of(image_folder)}, 1 epochs"
    assert (measured["recipe"], measured["seed"]) == (recipe, 2)
    found = evaluate(str(shipped), data_dir=str(image_folder), tta="flip")
    for name in ("test/acc", "test/acc_tta", "test/loss"):
        assert measured[name] == found[name]
    assert measured["test/acc"] != 0.6  # what the file reaches, not the record
    assert saved["config"]["seed"] == 2
    trained = load_model(folders[2] / "checkpoints" / "last.ckpt")
    for name, value in load_model(shipped).net.named_parameters():
        before = trained.net.get_parameter(name)
        rounded = before.half().float() if value.ndim > 1 else before
        assert torch.equal(value, rounded), name
    digest = hashlib.sha256(shipped.read_bytes()).hexdigest()
    table = weights_table(read_runs(Path("runs.csv")))
    assert f"`{digest}`" in table
    assert f"{100 * found['test/acc']:.2f} %" in table
    assert f"| {recipe}; seed 2, the median of 3 on record" in table
    record = Path("runs.csv").read_bytes()
    add_runs(0.61, 0.59)
    table = weights_table(read_runs(Path("runs.csv")))
    assert "; seed 2, the median of 5 on record" in table
    Path("runs.csv").write_bytes(record)
    add_runs(0.61, 0.62)
    with pytest.raises(
        InputError, match=r"holds seed 2 of 'mine on .*, which is not th"
    ):
        weights_table(read_runs(Path("runs.csv")))
    with pytest.raises(InputError, match=r"--runs no\.csv: no such file; give that of"):
        ship(str(folders[2]), runs="no.csv")


def add_runs(*accuracies: float) -> None:
    """More runs like the last on record, with seeds from 3."""
    last = read_runs(Path("runs.csv")).tail(1)
    for seed, accuracy in enumerate(accuracies, start=3):
        changed = {"seed": seed, "test/acc": accuracy}
        write_runs(Path("runs.csv"), last.assign(**changed))


def test_no_run_but_the_median(quick_train: Train, shipped: Path) -> None:
    folders = train_thrice(quick_train)
    with pytest.raises(
        InputError, match=r"of the 3 runs of 'mine on .* is that with seed"
    ):
        ship(str(folders[1]), "data", "runs.csv")
    (folders[2] / "metrics.json").write_text(
        (folders[2] / "metrics.json").read_text().replace("0.6", "0.61")
    )
    with pytest.raises(InputError, match="--run is not on record"):
        ship(str(folders[2]), "data", "runs.csv")
    with pytest.raises(InputError, match="--run nosuch: no finished run"):
        ship("nosuch", "data", "runs.csv")
    assert not shipped.exists()


def test_of_two_in_the_middle_the_lower() -> None:
    assert median_run(runs_of("a", [0.94, 0.91, 0.93, 0.92]))["test/acc"] == 0.92


def test_robust_weights_are_tested_as_they_are_written(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    shipped: Path,
    image_folder: Path,
) -> None:
    target = shipped.parent / "robust" / "robust.safetensors"
    monkeypatch.setattr(script, "ROBUST", target)
    quick_train(max_epochs=1)
    ship(robust=str(LAST), data_dir=str(image_folder))
    measured = read_weights(target)["measured"]
    assert measured["recipe"] == "last"
    found = evaluate(str(target), data_dir=str(image_folder), tta="flip")
    for name in ("test/acc", "test/acc_tta", "test/loss"):
        assert measured[name] == found[name]
    weights = load_model(target).net.state_dict().values()
    assert all(torch.equal(w, w.half().float()) for w in weights if w.ndim > 1)


@pytest.mark.parametrize("given", [{}, {"run": "a", "robust": "b"}])
def test_either_a_run_or_robust_weights_are_shipped(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="give --run or --robust"):
        ship(**given)


def test_robust_weights_that_are_not_there_are_named_with_their_flag() -> None:
    with pytest.raises(InputError, match=r"--robust none\.ckpt: no such file"):
        ship(robust="none.ckpt")


@pytest.mark.parametrize("name", ["seed", "test/acc", "test/loss", "train/loss"])
def test_a_run_is_known_by_all_of_its_figures(name: str) -> None:
    runs = runs_of("a", [0.94, 0.91]).assign(**{"test/loss": 0.2, "train/loss": 0.1})
    metrics = {str(key): value for key, value in runs.iloc[1].items()}
    assert len(runs_like(metrics, runs)) == 2
    with pytest.raises(InputError, match="--run is not on record"):
        runs_like(metrics | {name: metrics[name] + 7}, runs)


def test_weights_are_of_runs_with_their_rate_and_of_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = {"measured": {"seed": 1, "recipe": "a"}, "config": {"lr": 0.01}}
    monkeypatch.setattr(script, "read_weights", lambda _: saved)
    few = runs_of("a", [0.6, 0.4], device="GPU", lr="0.01")
    many = runs_of("a", [0.1, 0.5, 0.9], lr="auto")
    for runs in (together(few, many), together(many, few)):
        assert len(runs_of_weights(runs)) == 3
    with pytest.raises(InputError, match="which is not the median"):
        runs_of_weights(many.assign(lr="0.02"))


def test_the_weights_of_the_project_are_those_of_the_readme() -> None:
    assert WEIGHTS.stat().st_size <= 14 * 2**20
    saved = read_weights(WEIGHTS)
    assert saved["hyper_parameters"]["classes"][3] == "cat"
    state = load_model(WEIGHTS).net.state_dict()
    assert sum(p.numel() for p in load_model(WEIGHTS).net.parameters()) == 6_573_120
    assert all(value.isfinite().all() for value in state.values())
    measured = saved["measured"]
    runs = runs_of_weights(read_runs())
    [recorded] = runs[runs["seed"] == measured["seed"]]["test/acc"]
    assert measured["test/acc"] == pytest.approx(recorded, abs=0.0005)


@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs CIFAR-10 in data/cifar10")
@pytest.mark.parametrize("weights", [WEIGHTS, ROBUST], ids=lambda path: path.stem)
def test_the_weights_of_the_project_reach_the_stated_accuracy(weights: Path) -> None:
    measured = read_weights(weights)["measured"]
    found = evaluate(str(weights), data_dir=str(IMAGES), tta="flip", accelerator="cpu")
    for name in ("test/acc", "test/acc_tta"):
        assert round(found[name], 4) == round(measured[name], 4)
