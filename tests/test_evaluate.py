"""Evaluation: the numbers of train.py's own test, from the checkpoint alone."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import evaluate
from analysis import loading
from analysis.inference import predict_logits
from analysis.loading import load_model
from datamodule import CIFAR10DataModule
from images.loader import EvalLoader
from machine import memory
from run_files import LAST
from train import train

Train = Callable[..., dict[str, Any]]
METRICS = ("test/acc", "test/acc_tta", "test/loss")


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    try:
        evaluate.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the image folder, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    quick: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "batch_size": 32}
    quick |= {"precision": "32-true", "max_epochs": 2, "lr": 0.01, "base_width": 4}
    train(data_dir=str(image_folder), output_dir=str(folder), name="run", **quick)
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_the_numbers_are_those_of_the_training(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the last bit, and whatever the checkpoint's own TTA was."""
    flags = {"data": "synthetic", "batch_size": 100, "report": False, "seed": 1}
    # A network that never saw a mirror image is points, not tenths, worse with them,
    # whatever the number of threads.
    flags |= {"flip": "none", "lr": 0.03, "max_epochs": 1, "limit_train_batches": 40}
    metrics = quick_train(**flags, tta="flip")
    assert metrics["test/acc"] != metrics["test/acc_tta"]
    capsys.readouterr()
    arguments = ["--ckpt_path", str(LAST), "--data", "synthetic", "--json"]
    arguments += ["--accelerator", "cpu", "--batch_size", "100"]
    assert run([*arguments, "--tta", "flip"], monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name] for name in METRICS] == [metrics[name] for name in METRICS]
    assert (found["precision"], found["device"]) == ("32-true", metrics["device"])
    assert run(arguments, monkeypatch) == 0
    plain = json.loads(capsys.readouterr().out)
    assert "test/acc_tta" not in plain
    assert plain["test/acc"] == metrics["test/acc"]


def test_labels_are_those_of_the_network_also_where_a_class_is_missing(
    checkpoint: Path, image_folder: Path
) -> None:
    flags: dict[str, Any] = {"accelerator": "cpu", "batch_size": 32}
    whole = evaluate.evaluate(
        str(checkpoint), split_dir=str(image_folder / "test"), **flags
    )
    shutil.copytree(image_folder / "test", "some")
    shutil.rmtree("some/blue")  # the first
    some = evaluate.evaluate(str(checkpoint), split_dir="some", **flags)
    assert some["classes"]["blue"] == {"acc": None, "images": 0}
    for name in ("green", "red"):
        assert some["classes"][name] == whole["classes"][name]


def test_averaged_weights_are_what_is_tested(
    quick_train: Train, image_folder: Path
) -> None:
    metrics = quick_train(ema_decay=0.9, max_epochs=1)
    found = evaluate.evaluate(
        str(LAST), data_dir=str(image_folder), accelerator="cpu", batch_size=32
    )
    assert found["test/loss"] == metrics["test/loss"]


def test_the_table_shows_every_class(
    checkpoint: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = CIFAR10DataModule(data_dir=str(image_folder), batch_size=1)
    images.setup()
    pixels, labels = images.test_set
    said = predict_logits(load_model(checkpoint), pixels.permute(0, 3, 1, 2)).argmax(
        dim=1
    )
    found = evaluate.evaluate(
        str(checkpoint), data_dir=str(image_folder), accelerator="cpu", tta="flip"
    )
    lines = capsys.readouterr().out.splitlines()
    for label, name in enumerate(images.classes):
        right = int((said[labels == label] == label).sum())
        assert found["classes"][name] == {"acc": right / 10, "images": 10}
        assert f"{name:<13}  {10 * right:.2f} % of 10" in lines
    accuracy, flipped = (100 * found[name] for name in METRICS[:2])
    assert lines[:4] == [
        "test images    30",
        f"accuracy       {accuracy:.2f} %",
        f"with flip TTA  {flipped:.2f} %",
        f"loss           {found['test/loss']:.4f}",
    ]


def test_the_accuracy_of_a_class_is_that_of_its_own_images() -> None:
    counts = torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    model: Any = SimpleNamespace(confusion=counts, hparams={"classes": "abc"})
    assert evaluate.class_accuracies(model) == {
        "a": {"acc": 3 / 4, "images": 4},
        "b": {"acc": 2 / 4, "images": 4},
        "c": {"acc": None, "images": 0},
    }


@pytest.mark.parametrize(("free", "on_host"), [(0.0, True), (math.inf, False)])
def test_images_that_do_not_fit_stay_in_host_memory(
    free: float,
    on_host: bool,
    checkpoint: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: list[bool] = []

    def loader(*images: Any, **flags: Any) -> EvalLoader:
        places.append(flags["on_host"])
        return EvalLoader(*images, **flags)

    monkeypatch.setattr(evaluate, "EvalLoader", loader)
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    evaluate.evaluate(str(checkpoint), data_dir=str(image_folder), accelerator="cpu")
    assert places == [on_host]


def test_the_default_weights(
    checkpoint: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"data_dir": str(image_folder), "accelerator": "cpu"}
    named = evaluate.evaluate(str(checkpoint), **flags)
    for module in (loading, evaluate):
        monkeypatch.setattr(module, "WEIGHTS", checkpoint)
    assert evaluate.evaluate(**flags) == named


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ckpt_path", "no.ckpt"), "--ckpt_path no.ckpt: no such file"),
        (("--ckpt_path", "torn.ckpt"), "torn.ckpt: damaged, or not a checkpoint"),
        ((), "so there are no default weights"),
        (
            ("--ckpt_path", "good.ckpt", "--data", "synthetic"),
            "the network knows no class 'bar', only blue, green, red; leave it out",
        ),
        # Nothing is downloaded for a network that knows other classes.
        (
            ("--ckpt_path", "good.ckpt", "--data_dir", "empty"),
            "the network knows no class 'airplane', only blue, green, red; leave",
        ),
        (("--ckpt_path", "good.ckpt", "--data_dir", "torn"), "no image"),
        (("--ckpt_path", "good.ckpt", "--split_dir", "gone"), "gone: no such folder"),
        (("--batch_size", "0"), "--batch_size must be a whole number, at least 1"),
        (("--tta", "turn"), "--tta must be none, flip or views, got 'turn'"),
        (("--precision", "16-mixed"), "--precision 16-mixed needs a GPU"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    reason: str,
    checkpoint: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(checkpoint, "good.ckpt")
    Path("torn.ckpt").write_bytes(checkpoint.read_bytes()[:-100])
    Path("empty").mkdir()
    shutil.copytree(image_folder, "torn")
    shutil.rmtree("torn/test/red")
    Path("torn/test/red").mkdir()
    monkeypatch.setattr(loading, "WEIGHTS", Path("no.ckpt"))
    capsys.readouterr()
    assert run(["--accelerator", "cpu", *arguments], monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("evaluate.py: error: ")
    assert reason in line


@pytest.mark.gpu
def test_gpu(quick_train: Train, image_folder: Path) -> None:
    metrics = quick_train(accelerator="gpu", tta="flip", max_epochs=1)
    found = evaluate.evaluate(
        str(LAST), data_dir=str(image_folder), tta="flip", batch_size=32
    )
    assert found["device"] == torch.cuda.get_device_name()
    assert [found[name] for name in METRICS] == [metrics[name] for name in METRICS]
