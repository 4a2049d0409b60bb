"""What `weights/README.md` says of the weights that come with the project.

    python benchmarks/model_card.py

measures their calibration and puts it on record; `tables.py` writes the head of the
page, which model hubs read, and its table, from the weights' own metadata and what is
on record.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import yaml

from analysis.evaluation import calibrate
from analysis.inference import predict_proba
from analysis.loading import WEIGHTS, load_model
from analysis.weights import read_weights
from benchmarks import ship
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from benchmarks.runs import percent, read_runs
from common import cli
from common.errors import InputError
from common.files import expanded
from images.sources import fetch, load_test
from machine import provenance

CALIBRATION = RESULTS / "calibration.csv"
DATASET = "uoft-cs/cifar10"  # its name on the Hugging Face Hub


def model_card(data_dir: str = "data") -> None:
    """Put the calibration of the weights on record.

    Args:
        data_dir: Folder of CIFAR-10.

    Raises:
        InputError: The images are not CIFAR-10's.
    """
    source = fetch("auto", expanded(data_dir))
    (pixels, labels), classes = load_test(source, expanded(data_dir))
    model = load_model()
    if list(classes) != list(model.hparams["classes"]):
        raise InputError(f"--data_dir {data_dir}: not CIFAR-10; give its folder")
    probabilities = predict_proba(model, pixels.permute(0, 3, 1, 2))
    confidence, predicted = probabilities.max(dim=1)
    correct = predicted == labels
    row = {
        "sha256": digest(),
        "images": len(labels),
        "accuracy": correct.double().mean().item(),
        "confidence": confidence.double().mean().item(),
        "ece": calibrate(confidence, correct).ece,
        "date": today(),
        "commit": provenance.commit(),
    }
    add_row(CALIBRATION, row)
    print({name: row[name] for name in ("images", "accuracy", "confidence", "ece")})


def digest() -> str:
    """SHA-256 of the file of weights."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


def head() -> str:
    """The page's head in YAML, up to its end."""
    measured = read_weights(WEIGHTS)["measured"]
    shares = {"Accuracy": "test/acc", "Accuracy with flip TTA": "test/acc_tta"}
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "CIFAR-10", "type": DATASET, "split": "test"},
        "metrics": [
            {"type": "accuracy", "name": name, "value": round(measured[share], 4)}
            for name, share in shares.items()
        ],
    }
    content = {
        "license": "mit",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", "pytorch-lightning", "resnet"],
        "datasets": [DATASET],
        "metrics": ["accuracy"],
        "model-index": [{"name": "custom_resnet", "results": [result]}],
    }
    return f"{yaml.safe_dump(content, sort_keys=False)}---"


def table() -> str:
    """What the weights reach, and what the recipe does in several runs.

    Raises:
        InputError: The weights are not those of the median run on record.
    """
    measured = read_weights(WEIGHTS)["measured"]
    same = ship.runs_of_weights(read_runs())
    of_many = f"{len(same)} runs"
    cells = {
        "accuracy of this file": (f"{100 * measured['test/acc']:.2f} %", "1 run"),
        "with flip TTA": (f"{100 * measured['test/acc_tta']:.2f} %", "1 run"),
        "accuracy of the recipe": (percent(same["test/acc"]), of_many),
        "its accuracy with flip TTA": (percent(same["test/acc_tta"]), of_many),
    } | _calibration()
    rows = [(name, *values) for name, values in cells.items()]
    return markdown(pd.DataFrame(rows, columns=["on the test images", "", "n"]))


def robust_table() -> str:
    """What the weights for spoiled images are, and reach."""
    return ship.file_table(ship.ROBUST)


def _calibration() -> dict[str, tuple[str, str]]:
    """Mean confidence and calibration error, where they are on record."""
    rows = read_rows(CALIBRATION, "sha256", text=["sha256"])
    own = rows[rows["sha256"] == digest()].to_dict("records")
    if not own:
        return {}
    last = own[-1]
    shown = (f"{100 * last[name]:.2f} %" for name in ("confidence", "ece"))
    names = ("mean confidence of this file", "expected calibration error of this file")
    images = f"{last['images']} images"
    return {name: (value, images) for name, value in zip(names, shown, strict=True)}


if __name__ == "__main__":
    cli.run("model_card.py", model_card)
