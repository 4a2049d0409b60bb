"""The weights that come with the project, and how they are chosen."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.loading import WEIGHTS, load_model
from analysis.weights import read_weights
from benchmarks import ship as script
from benchmarks.ship import median_run, ship, weights_table
from benchmarks.tables import add_run, read_runs, with_table
from common.errors import InputError
from evaluate import evaluate
from record import write_runs
from run_files import LAST

RUN = LAST.parent.parent
Train = Callable[..., dict[str, Any]]
PROJECT = Path(__file__).resolve().parent.parent
PAGE = "before\n<!-- weights: begin -->\nold\n<!-- weights: end -->\nafter\n"
IMAGES = PROJECT / "data" / "cifar10"


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights go; the README is another, too."""
    Path("README.md").write_text(PAGE)
    monkeypatch.setattr(script, "README", Path("README.md").resolve())
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
        add_run(folders[-1], "mine", Path("runs.csv"))
    return folders


def test_the_median_run_is_shipped_with_what_it_reaches(
    quick_train: Train, shipped: Path, image_folder: Path
) -> None:
    folders = train_thrice(quick_train)
    ship(str(folders[2]), str(image_folder), "runs.csv")
    saved = read_weights(shipped)
    measured = saved["measured"]
    assert (measured["recipe"], measured["seed"]) == ("mine", 2)
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
    page = Path("README.md").read_text()
    assert f"| SHA-256 | `{digest}` |" in page
    assert f"| test accuracy | {100 * found['test/acc']:.2f} % |" in page
    assert "| run | mine; seed 2, the median of 3 on record |" in page
    assert page.startswith("before\n")
    content, record = shipped.read_bytes(), Path("runs.csv").read_bytes()
    add_runs(0.61, 0.59)
    ship(runs="runs.csv")
    assert shipped.read_bytes() == content
    page = Path("README.md").read_text()
    assert "| run | mine; seed 2, the median of 5 on record |" in page
    Path("runs.csv").write_bytes(record)
    add_runs(0.61, 0.62)
    with pytest.raises(InputError, match="holds seed 2 of 'mine', which is not the me"):
        ship(runs="runs.csv")
    with pytest.raises(InputError, match=r"--runs no\.csv: no such file; give that of"):
        ship(runs="no.csv")
    assert Path("README.md").read_text() == page


def add_runs(*accuracies: float) -> None:
    """More runs like the last on record, with seeds from 3."""
    last = read_runs(Path("runs.csv"))[-1]
    for seed, accuracy in enumerate(accuracies, start=3):
        changed = {"seed": str(seed), "test/acc": str(accuracy)}
        write_runs(Path("runs.csv"), [last | changed])


def test_no_run_but_the_median(quick_train: Train, shipped: Path) -> None:
    folders = train_thrice(quick_train)
    with pytest.raises(InputError, match="of the 3 runs of 'mine' is that with seed 2"):
        ship(str(folders[1]), "data", "runs.csv")
    (folders[2] / "metrics.json").write_text(
        (folders[2] / "metrics.json").read_text().replace("0.6", "0.61")
    )
    with pytest.raises(InputError, match="--run is not on record"):
        ship(str(folders[2]), "data", "runs.csv")
    with pytest.raises(InputError, match="--run nosuch: no finished run"):
        ship("nosuch", "data", "runs.csv")
    assert not shipped.exists()
    assert Path("README.md").read_text() == PAGE


def test_of_two_in_the_middle_the_lower() -> None:
    runs = [{"test/acc": value} for value in ("0.94", "0.91", "0.93", "0.92")]
    assert median_run(runs) == {"test/acc": "0.92"}


def test_the_weights_of_the_project_are_those_of_the_readme() -> None:
    page = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert with_table(page, weights_table(WEIGHTS, read_runs()), "weights") == page
    assert WEIGHTS.stat().st_size <= 14 * 2**20
    saved = read_weights(WEIGHTS)
    assert saved["hyper_parameters"]["classes"][3] == "cat"
    state = load_model(WEIGHTS).net.state_dict()
    assert sum(p.numel() for p in load_model(WEIGHTS).net.parameters()) == 6_573_120
    assert all(value.isfinite().all() for value in state.values())
    measured = saved["measured"]
    runs = [run for run in read_runs() if run["recipe"] == measured["recipe"]]
    seeds = {int(run["seed"]): 100 * float(run["test/acc"]) for run in runs}
    assert 100 * measured["test/acc"] == pytest.approx(
        seeds[measured["seed"]], abs=0.05
    )


@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs CIFAR-10 in data/cifar10")
def test_the_weights_of_the_project_reach_the_stated_accuracy() -> None:
    measured = read_weights(WEIGHTS)["measured"]
    found = evaluate(data_dir=str(IMAGES), tta="flip", accelerator="cpu")
    for name in ("test/acc", "test/acc_tta"):
        assert round(found[name], 4) == round(measured[name], 4)
