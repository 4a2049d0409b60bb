"""A trained network: loaded, asked, and asked where it looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.checkpoint import AtomicCheckpointIO
from components.errors import InputError
from components.inference import confident_mistakes, grad_cam, load_model, logits
from datamodule import CIFAR10DataModule
from run_files import LAST, assert_same, weights

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
    found = logits(model, images.permute(0, 3, 1, 2))
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


def test_confident_mistakes_come_surest_first() -> None:
    scores = torch.tensor([[9.0, 0], [1, 0], [3, 0], [0, 2], [5, 0]])
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert confident_mistakes(scores, labels, 9).tolist() == [4, 2, 1]
    assert confident_mistakes(scores, labels, 2).tolist() == [4, 2]


def test_grad_cam_looks_where_the_class_is(quick_train: Train) -> None:
    """Classes are colours here: half an image of each, and it must see its own."""
    quick_train(max_epochs=8, lr=0.02)
    model = load_model(LAST)
    image = torch.full((1, 3, 32, 32), 80, dtype=torch.uint8)
    image[:, 0, :, :16] += 100  # red on the left
    image[:, 2, :, 16:] += 100  # blue on the right
    classes = list(model.hparams["classes"])
    labels = torch.tensor([classes.index("red"), classes.index("blue")])
    red, blue = grad_cam(model, image.expand(2, -1, -1, -1), labels)
    assert red.shape == (32, 32)
    assert red.max() == pytest.approx(1)
    assert red.min() >= 0
    assert red[:, :12].mean() > 2 * red[:, 20:].mean()
    assert blue[:, 20:].mean() > 2 * blue[:, :12].mean()
