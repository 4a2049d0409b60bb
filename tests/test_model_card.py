"""The card of the weights that come with the project."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.inference import predict_proba
from analysis.loading import WEIGHTS, load_model
from analysis.weights import read_weights
from benchmarks import model_card as script
from benchmarks.model_card import head, model_card, table
from common.errors import InputError
from images.sources import load_test
from run_files import LAST

PROJECT = Path(__file__).resolve().parent.parent
CARD = PROJECT / "weights" / "README.md"


def test_its_head_is_what_a_hub_reads() -> None:
    text = CARD.read_text(encoding="utf-8")
    assert text.startswith("---\n")
    known = yaml.safe_load(text.split("---\n")[1])
    assert known == yaml.safe_load(head().removesuffix("---"))
    measured = read_weights(WEIGHTS)["measured"]
    [result] = known["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["Accuracy"] == pytest.approx(measured["test/acc"], abs=5e-5)
    assert known["license"] == "mit"


def test_the_hub_understands_it() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(CARD).data
    assert data.license == "mit"
    [accuracy, tta] = data.eval_results
    assert (accuracy.metric_type, accuracy.dataset_name) == ("accuracy", "CIFAR-10")
    assert 0.94 < accuracy.metric_value < tta.metric_value < 0.96


def test_its_code_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", CARD.read_text(), re.DOTALL | re.M)
    (tmp_path / "block.py").write_text(code)
    monkeypatch.chdir(PROJECT)
    found = runpy.run_path(str(tmp_path / "block.py"))
    names = [found["model"].classes[label] for label in found["labels"]]
    assert capsys.readouterr().out == f"{names}\n"
    assert len(names) == 8


def test_calibration_is_measured_and_shown(
    quick_train: Callable[..., dict[str, Any]],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick_train(max_epochs=1, report=False)
    monkeypatch.setattr(script, "CALIBRATION", Path("calibration.csv"))
    assert "confidence" not in table()
    with pytest.raises(InputError, match=r"^--data_dir .*: not CIFAR-10; give its fol"):
        model_card(str(image_folder))
    monkeypatch.setattr(script, "load_model", lambda: load_model(LAST))
    model_card(str(image_folder))
    row = pd.read_csv("calibration.csv").iloc[-1]
    (images, labels), _ = load_test("folder", image_folder)
    confidence, predicted = predict_proba(
        load_model(LAST), images.permute(0, 3, 1, 2)
    ).max(dim=1)
    assert row["images"] == 30
    accuracy = (predicted == labels).double().mean().item()
    assert row["accuracy"] == pytest.approx(accuracy)
    assert row["confidence"] == pytest.approx(confidence.double().mean().item())
    assert row["ece"] >= abs(row["accuracy"] - row["confidence"]) - 1e-9
    shown = re.sub(" +", " ", table())
    assert f"mean confidence of this file | {100 * row['confidence']:.2f} % |" in shown
    assert f"calibration error of this file | {100 * row['ece']:.2f} % | 30" in shown
    other = row.to_frame().T.assign(sha256="0" * 64)  # of weights of before
    other.to_csv("calibration.csv", index=False)
    assert "confidence" not in table()
