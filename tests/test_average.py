"""Averages of weights, as files that every program reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.loading import load_model, read_trained
from benchmarks.average import average
from common.errors import InputError
from datamodule import CIFAR10DataModule
from evaluate import evaluate
from export import export
from run_files import LAST
from training.features import SAMPLE, measure_features

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def networks(quick_train: Train) -> list[str]:
    """A network, and two that went on from it with other flags."""
    quick_train(max_epochs=1, val_size=10, logit_scale=0.5)
    export(format="safetensors", ckpt_path=str(LAST), output="start.safetensors")
    paths = ["start.safetensors"]
    for name, smoothing in (("a", 0.0), ("b", 0.3)):
        flags = {"init_from": paths[0], "logit_scale": 0.5, "max_epochs": 1}
        quick_train(name=name, label_smoothing=smoothing, val_size=10, **flags)
        paths.append(f"runs/{name}/checkpoints/last.ckpt")
    return paths


def test_every_tensor_is_the_mean_of_those_of_the_networks(
    networks: list[str], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    average(networks, "mean.safetensors", str(image_folder))
    assert capsys.readouterr().out.endswith(": average of 3 networks\n")
    mixed = load_model("mean.safetensors")
    states = [load_model(path).net.state_dict() for path in networks]
    for name, value in mixed.net.state_dict().items():
        if value.is_floating_point():
            total = sum(state[name].double() for state in states)
            torch.testing.assert_close(value.double(), total / 3)
            assert not torch.equal(states[0][name], states[1][name])
        else:
            assert torch.equal(value, states[0][name])


def test_the_rest_is_that_of_the_first_but_features_are_measured(
    networks: list[str], image_folder: Path
) -> None:
    average(networks[::-1], "mean.safetensors", str(image_folder))
    saved = read_trained(Path("mean.safetensors"))
    assert saved["config"]["label_smoothing"] == 0.3  # that of b
    assert saved["hyper_parameters"]["label_smoothing"] == 0.3
    assert saved["measured"] == {"recipe": "average of 3 networks"}
    images = CIFAR10DataModule(data_dir=str(image_folder), batch_size=8, val_size=10)
    images.setup()
    model = load_model("mean.safetensors")
    expected = measure_features(model, model.state_dict(), images.sample(SAMPLE))
    assert model.features is not None
    assert model.features["mean"] == pytest.approx(expected["mean"], rel=1e-5)
    assert evaluate("mean.safetensors", data_dir=str(image_folder))["test/acc"] > 0.3


def test_what_cannot_be_averaged_is_refused_and_nothing_is_lost(
    networks: list[str], quick_train: Train, image_folder: Path
) -> None:
    def refused(paths: list[str], output: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            average(paths, output, str(image_folder))

    refused(networks[:1], "mean.safetensors", "two networks or more, got 1")
    refused(networks, "mean.ckpt", "ends in .safetensors")
    refused([networks[0], "none.ckpt"], "mean.safetensors", "none.ckpt: no such file")
    for flags in ({"logit_scale": 1.0}, {"logit_scale": 0.5, "base_width": 5}):
        quick_train(max_epochs=1, overwrite=True, **flags)
        other = [networks[0], str(LAST)]
        refused(other, "mean.safetensors", "last.ckpt: another network, other classes")
    assert not Path("mean.safetensors").exists()
    before = Path("start.safetensors").read_bytes()
    refused(networks, "start.safetensors", "overwrite")
    assert Path("start.safetensors").read_bytes() == before
