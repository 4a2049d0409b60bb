"""Fine-tuning: which weights are taken, and that a training begins with them."""

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from analysis.loading import WEIGHTS, load_model, read_trained
from benchmarks.studies import fine_tuning
from common.errors import InputError
from config import Config
from export import export
from images.sources import load_split
from images.synthetic import draw_shapes
from lightning_module import LitCustomResNet
from networks import build_network
from run_files import LAST, weights
from train import build_module, load_images
from training.fine_tuning import starting_weights
from training.resume import Checkpoint

Train = Callable[..., dict[str, Any]]
CONFIG = Config(base_width=4, init_from="old.ckpt")
ORIGIN = Path("runs/origin/checkpoints/last.ckpt")


def checkpoint(classes: tuple[str, ...], base_width: int = 4) -> Checkpoint:
    """A network with new weights, in the form of a checkpoint."""
    torch.manual_seed(7)
    net = build_network("custom_resnet", len(classes), base_width)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    known = {"classes": list(classes), "base_width": base_width}
    return {"hyper_parameters": known, "state_dict": state}


def summary(caplog: pytest.LogCaptureFixture) -> str:
    """The line that says what was taken."""
    [line] = [record.message for record in caplog.records if "tensors" in record.msg]
    return line


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_the_classifier_is_new_where_classes_are_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin = checkpoint(("a", "b", "c"))
    for classes in (("a", "b"), ("a", "b", "d")):
        caplog.clear()
        taken = starting_weights(origin, CONFIG, classes)
        everything = {
            name.removeprefix("net."): v for name, v in _state(origin).items()
        }
        assert everything.keys() - taken.keys() == {"fc.weight"}
        for name, value in taken.items():
            assert torch.equal(value, everything[name]), name
        assert summary(caplog) == (
            f"48 of 49 tensors from old.ckpt; new classifier of {len(classes)} classes"
        )


def test_the_classifier_follows_the_names_of_the_classes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin = checkpoint(("a", "b", "c"))
    taken = starting_weights(origin, CONFIG, ("c", "a", "b"))
    before = _state(origin)["net.fc.weight"]
    assert torch.equal(taken["fc.weight"], before[[2, 0, 1]])
    assert summary(caplog) == (
        "49 of 49 tensors from old.ckpt; kept classifier of 3 classes"
    )


def test_the_classifier_is_as_sure_as_it_was_with_another_scale() -> None:
    origin = checkpoint(("a", "b", "c"))
    origin["hyper_parameters"]["logit_scale"] = 0.5
    config = replace(CONFIG, logit_scale=0.25)
    taken = starting_weights(origin, config, ("a", "b", "c"))
    torch.testing.assert_close(taken["fc.weight"], 2 * _state(origin)["net.fc.weight"])


def test_only_what_fits_is_taken_and_something_must() -> None:
    origin = checkpoint(("a", "b"))
    state = _state(origin)
    state["net.layer1.0.weight"] = torch.zeros(1, 2)
    state["net.unknown"] = torch.zeros(3)
    taken = starting_weights(origin, CONFIG, ("a", "b"))
    assert {"layer1.0.weight", "unknown"}.isdisjoint(taken)
    assert len(taken) == 48
    with pytest.raises(InputError) as refused:
        starting_weights(checkpoint(("a", "b"), 8), CONFIG, ("a", "b"))
    assert str(refused.value) == (
        "--init_from old.ckpt: no weight in it fits --net custom_resnet --base_width "
        "4; it is of --net custom_resnet --base_width 8, give these"
    )


def _state(origin: Checkpoint) -> dict[str, Tensor]:
    state: dict[str, Tensor] = origin["state_dict"]
    return state


@pytest.fixture
def origin(quick_train: Train) -> Path:
    """A trained network of the three classes, as a checkpoint."""
    quick_train(name="origin", report=False)
    return ORIGIN


def test_range_test_and_training_begin_with_the_weights(
    origin: Path, quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {name: value for name, value in weights(origin).items() if value.ndim > 1}
    begun = []
    with monkeypatch.context() as patch:

        def begin(module: LitCustomResNet) -> None:
            found = module.state_dict()
            begun.append(all(torch.equal(found[k], v) for k, v in trained.items()))

        patch.setattr(LitCustomResNet, "on_fit_start", begin)
        metrics = quick_train(init_from=str(origin), lr="auto", lr_steps=40)
    assert begun == [True, True]  # the throw-away module, and the run's
    scratch = quick_train(name="scratch", lr=metrics["max_lr"])
    assert metrics["train/loss"] < scratch["train/loss"]
    config = Path("runs/run/config.yaml").read_text()
    assert f"init_from: {origin.absolute()}" in config  # from any folder


def test_a_run_on_own_classes_keeps_all_but_the_classifier(
    origin: Path, quick_train: Train, image_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    for split in ("train", "test"):
        (other / split / "red").rename(other / split / "rose")
    export(format="safetensors", ckpt_path=str(origin))
    file = origin.with_suffix(".safetensors")
    flags = {"data_dir": str(other), "init_from": str(file), "lr": 1e-9}
    quick_train(**flags, max_epochs=1, weight_decay=0.0)
    before, after = weights(origin), weights()
    torch.testing.assert_close(after["net.prep.0.weight"], before["net.prep.0.weight"])
    assert not torch.allclose(after["net.fc.weight"], before["net.fc.weight"], 0.1)
    export(format="safetensors", ckpt_path=str(LAST))
    known = read_trained(LAST.with_suffix(".safetensors"))["config"]
    assert known["init_from"] == file.name  # and not where it was


def test_a_run_goes_on_as_it_began(origin: Path, quick_train: Train) -> None:
    begun = quick_train(
        init_from=str(origin), ckpt_path="last"
    )  # as a job that requeues
    Path(origin).rename("gone.ckpt")  # it is not needed any more
    for path in (origin, origin.absolute(), f"./{origin}"):
        again = quick_train(init_from=str(path), ckpt_path="last")
        assert again["test/acc"] == begun["test/acc"]
    for flags in ({}, {"init_from": "gone.ckpt"}):
        with pytest.raises(InputError, match=r"--init_from is .* taken once, at its"):
            quick_train(**flags, ckpt_path="last")
    with pytest.raises(
        InputError, match=r"--init_from is gone\.ckpt, but .* with None"
    ):
        quick_train(name="n", init_from="gone.ckpt", ckpt_path="gone.ckpt")


@pytest.mark.parametrize("kind", ["missing", "text", "foreign"])
def test_a_bad_file_is_one_line_and_nothing_is_written(
    kind: str, quick_train: Train
) -> None:
    path = Path("w.safetensors" if kind == "foreign" else "w.ckpt")
    if kind == "text":
        path.write_text("no weights")
    if kind == "foreign":
        save_file({"a": torch.ones(2)}, path)
    with pytest.raises(InputError, match=rf"^--init_from {path}: ") as refused:
        quick_train(init_from=str(path))
    assert "\n" not in str(refused.value)
    assert not Path("runs").exists()


def test_the_weights_of_the_project_fit_the_default_network(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(
        data_dir=image_folder, batch_size=32, init_from=str(WEIGHTS), lr=1.0
    )
    images = load_images(config)
    taken = starting_weights(read_trained(WEIGHTS), config, images.classes)
    assert summary(caplog).endswith("new classifier of 3 classes")
    module = build_module(config, images, taken)
    shipped = load_model().net.state_dict()
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, shipped[name]) == (name != "fc.weight"), name
    scratch = build_module(replace(config, init_from=None), images)
    classifier = scratch.net.state_dict()["fc.weight"]
    assert torch.equal(module.net.state_dict()["fc.weight"], classifier)


@pytest.mark.slow
def test_fine_tuning_runs_small(
    quick_train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_train(max_epochs=1, report=False)
    small = {"batch_size": 10, "max_epochs": 1, "base_width": 4}
    starts = {"from scratch": None, "fine-tuned": str(Path(LAST).absolute())}
    for name, value in (
        *(("RUNS", Path("runs.csv")), ("FLAGS", small), ("STARTS", starts)),
        *(("LRS", (0.01,)), ("TEST_IMAGES", 20)),
    ):
        monkeypatch.setattr(fine_tuning, name, value)
    fine_tuning.fine_tuning(seeds=1, per_class=2)
    rows = pd.read_csv("runs.csv")
    assert rows["start"].tolist() == [*starts]
    assert ((20 * rows["test/acc"]).round(4) % 1 == 0).all()
    fine_tuning.fine_tuning(seeds=1, per_class=2)  # they are done
    assert len(pd.read_csv("runs.csv")) == 2
    fine_tuning.fine_tuning(seeds=2, per_class=2)
    assert pd.read_csv("runs.csv")["seed"].tolist() == [0, 0, 1, 1]
    accuracies = pd.read_csv("runs.csv")["test/acc"]
    table = re.sub(" +", " ", fine_tuning.table()).splitlines()
    means = [f"{50 * (accuracies[k] + accuracies[k + 2]):.2f} ±" for k in (0, 1)]
    assert table[-1].startswith(f"| 2 a class | 0.01 | {means[0]} ")
    assert f"| {means[1]} " in table[-1]
    assert table[-1].endswith("| 2 |")


def test_the_folder_of_shapes_holds_what_was_drawn(tmp_path: Path) -> None:
    fine_tuning.write_folder(tmp_path, per_class=2, seed=3)
    images, labels = load_split(tmp_path / "train")[0]
    drawn, kinds = draw_shapes(20, fine_tuning.TRAIN_SEED + 3)
    assert labels.bincount().tolist() == [2] * 10
    shown = {image.numpy().tobytes() for image in images[labels == 4]}
    assert shown == {image.numpy().tobytes() for image in drawn[kinds == 4]}
    assert len(load_split(tmp_path / "test")[0][1]) == 1000
