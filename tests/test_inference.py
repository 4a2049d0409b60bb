"""A trained network: loaded, asked, and asked where it looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.evaluation import confident_mistakes
from analysis.explanation import heat_map, layer_cam
from analysis.inference import (
    predict_logits,
    predict_proba,
    predict_views,
    to_probabilities,
)
from analysis.loading import load_model
from common.errors import InputError
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet
from run_files import LAST, assert_same, weights
from training.checkpoint import AtomicCheckpointIO

Train = Callable[..., dict[str, Any]]


def test_the_loaded_network_gives_the_reported_accuracy(
    quick_train: Train, image_folder: Path
) -> None:
    metrics = quick_train()
    model = load_model(LAST)
    assert not model.training
    assert_same(dict(model.state_dict()), weights())
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=7)
    data.setup()
    images, labels = data.test_set
    found = predict_logits(model, images.permute(0, 3, 1, 2))
    assert found.shape == (30, 3)
    hits = (found.argmax(1) == labels).float().mean().item()
    assert hits == pytest.approx(metrics["test/acc"])


def test_weights_of_another_network_are_refused(quick_train: Train) -> None:
    quick_train(max_epochs=1)
    saved = torch.load(LAST, weights_only=True)
    saved["hyper_parameters"]["base_width"] = 8
    AtomicCheckpointIO().save_checkpoint(saved, LAST)
    with pytest.raises(InputError, match="the weights do not fit the network"):
        load_model(LAST)


def test_probabilities_do_not_show_label_smoothing() -> None:
    smoothing, classes = 0.2, 5
    true = torch.tensor([[0.7, 0.2, 0.05, 0.03, 0.02], 5 * [0.2]])
    said = (1 - smoothing) * true + smoothing / classes
    torch.testing.assert_close(to_probabilities(said.log(), smoothing), true)
    torch.testing.assert_close(to_probabilities(true.log(), 0), true)


def test_what_smoothing_does_not_explain_stays_possible_and_in_its_order() -> None:
    said = torch.tensor([[0.03, 0.91, 0.02, 0.025, 0.015]])  # smoothing teaches 0.04
    found = to_probabilities(said.log(), 0.2)
    whole = 0.87 + 0.01 * (1 - 0.91)
    expected = [0.0003, 0.87, 0.0002, 0.00025, 0.00015]
    assert found[0].tolist() == pytest.approx([p / whole for p in expected])


def test_a_network_is_asked_as_it_was_trained() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    model = LitCustomResNet(
        ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3, 0.1, label_smoothing=0.3, base_width=4
    ).eval()
    said = predict_logits(model, images).softmax(1)
    probabilities = (said - 0.1) / 0.7
    assert probabilities.min() > 0
    torch.testing.assert_close(predict_proba(model, images), probabilities)


@pytest.mark.parametrize("flip", ["none", "random"])
def test_views_count_alike_and_mirrored_ones_where_the_training_had_them(
    flip: str, quick_train: Train
) -> None:
    quick_train(max_epochs=1, flip=flip, label_smoothing=0.0)
    model = load_model(LAST)
    views = torch.randint(256, (5, 2, 3, 32, 32), dtype=torch.uint8)
    logits = [predict_logits(model, views[:, number]) for number in (0, 1)]
    if flip == "random":
        logits += [predict_logits(model, views[:, k].flip(3)) for k in (0, 1)]
    expected = torch.stack(logits).mean(dim=0).softmax(1)
    torch.testing.assert_close(predict_views(model, views)[0], expected)


def test_confident_mistakes_come_most_confident_first() -> None:
    wrong = torch.tensor([0.99, 0.6, 0.8, 0.1, 0.9])
    probabilities = torch.stack([wrong, 1 - wrong], dim=1)
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert confident_mistakes(probabilities, labels, 9).tolist() == [4, 2, 1]
    assert confident_mistakes(probabilities, labels, 2).tolist() == [4, 2]


def test_layer_cam_is_what_makes_the_class_more_probable() -> None:
    """The map against the chain rule, written out for the part above the layer."""
    torch.manual_seed(0)
    module = LitCustomResNet("abc", (0.5,) * 3, (0.25,) * 3, lr=0.01, base_width=4)
    model = module.eval().requires_grad_(False)
    net: Any = module.net
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([2, 0])

    def log_probability(maps: torch.Tensor) -> torch.Tensor:
        deep = net.layer3(maps)
        logits = net.fc(net.pool(deep + net.residual3(deep)).flatten(1))
        chosen: torch.Tensor = logits.log_softmax(dim=1)[range(2), labels]
        return chosen.sum()

    x = net.layer1(net.prep((images - model.mean) / model.std))
    maps = net.layer2(x + net.residual1(x))
    gradients = torch.autograd.functional.jacobian(log_probability, maps.clone())
    evidence = (gradients.clamp_min(0) * maps).sum(dim=1)
    found = layer_cam(model, images, labels)
    torch.testing.assert_close(found, heat_map(evidence))
    assert found.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1])


def test_a_heat_map_has_a_peak_of_one_or_is_nothing() -> None:
    evidence = torch.tensor([[[-3.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.0, 0.0]]])
    some, none = heat_map(evidence, side=2)
    assert some.tolist() == [[0, 0], [0, 1]]
    assert none.tolist() == [[0, 0], [0, 0]]


def test_layer_cam_looks_where_the_class_is(quick_train: Train) -> None:
    """Classes are colours here: half an image of each, and it must see its own."""
    quick_train(max_epochs=8, lr=0.02)
    model = load_model(LAST)
    image = torch.full((1, 3, 32, 32), 80, dtype=torch.uint8)
    image[:, 0, :, :16] += 100  # red on the left
    image[:, 2, :, 16:] += 100  # blue on the right
    classes = list(model.hparams["classes"])
    labels = torch.tensor([classes.index("red"), classes.index("blue")])
    red, blue = layer_cam(model, image.expand(2, -1, -1, -1), labels)
    assert red.shape == (32, 32)
    assert red.max() == pytest.approx(1)
    assert red.min() >= 0
    assert red[:, :12].mean() > 1.2 * red[:, 20:].mean()
    assert blue[:, 20:].mean() > 2 * blue[:, :12].mean()
