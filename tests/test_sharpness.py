"""Sharpness-aware steps against the definition, and where a run takes them."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from operator import mul
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_module import LitCustomResNet
from run_files import LAST, assert_same, rows
from training.sharpness import SharpnessAware, climb

Train = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_gradients_are_those_where_the_loss_is_worst_nearby(
    scale: float | None,
) -> None:
    """Also where the loss is scaled, as with 16-mixed."""
    colour, radius = (0.5, 0.4, 0.3), 0.3
    module = LitCustomResNet(
        ("a", "b"), colour, colour, 0.01, label_smoothing=0.0, base_width=4
    )
    module.net.register_parameter("unused", nn.Parameter(torch.ones(2)))
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])

    here = copy.deepcopy(module)
    loss = F.cross_entropy(here(images), labels)
    loss.backward()
    there = copy.deepcopy(module)
    gradients = {name: p.grad for name, p in here.net.named_parameters()}
    found = [grad.flatten() for grad in gradients.values() if grad is not None]
    norm = torch.cat(found).norm()
    for name, weight in there.net.named_parameters():
        gradient = gradients[name]
        if gradient is not None:
            weight.data.add_(radius * gradient / norm)
    F.cross_entropy(there(images), labels).backward()

    trainer: Any = SimpleNamespace(
        estimated_stepping_batches=1,
        global_step=0,
        precision_plugin=SimpleNamespace(train_step_context=nullcontext),
    )
    if scale is not None:
        trainer.precision_plugin.scaler = SimpleNamespace(scale=partial(mul, scale))
    callback = SharpnessAware(radius, share=1.0)
    callback.on_train_start(trainer)
    callback.on_train_batch_start(trainer, module, (images, labels), 0)
    module.training_step((images, labels), 0).backward()
    callback.on_after_backward(trainer, module)
    callback.on_train_batch_end(trainer, module)

    assert_same(module.state_dict(), here.state_dict())  # weights and statistics
    assert [value.item() for value in module.losses] == [loss.item()]
    for ours, theirs in zip(
        module.net.parameters(), there.net.parameters(), strict=True
    ):
        if theirs.grad is None:
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_step_is_as_long_as_the_radius_whatever_the_scale_of_the_gradients() -> None:
    for scale in (1.0, 1e4):
        pair = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
        climb(pair, (scale * torch.tensor([3.0, 0.0]), scale * torch.tensor([4.0])), 5)
        torch.testing.assert_close(pair[0].data, torch.tensor([4.0, 1.0]))
        torch.testing.assert_close(pair[1].data, torch.tensor([5.0]))


@pytest.mark.parametrize("gradient", [0.0, torch.inf, torch.nan])
def test_weights_stay_finite_whatever_the_gradients(gradient: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    climb([weight], (torch.tensor([gradient, 0.0]),), 0.1)
    assert weight.tolist() == [1, 1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_only_the_last_steps_are_sharpness_aware(
    quick_train: Train, precision: str
) -> None:
    """One of six: all up to it is as without, its own loss included."""
    quick_train(precision=precision)
    plain, before = rows(), torch.load(LAST, weights_only=True)
    sharp = {"sam_radius": 0.5, "sam_share": 1 / 6}
    quick_train(precision=precision, overwrite=True, **sharp)
    for name in ("train/loss", "train/acc"):
        assert [row[name] for row in rows()] == [row[name] for row in plain]
    assert rows()[0] == plain[0]
    after = torch.load(LAST, weights_only=True)
    for name, value in before["state_dict"].items():
        if not name.endswith(("weight", "bias")):  # batch statistics
            assert torch.equal(after["state_dict"][name], value)
    # The last gradient is another, by more than rounding: autocast might have gone on
    # with its copies of the weights.
    for ours, theirs in zip(means(after), means(before), strict=True):
        assert (ours - theirs).norm() > 0.01 * theirs.norm()


def means(checkpoint: dict[str, Any]) -> list[Tensor]:
    """Adam's means of the gradients."""
    state = checkpoint["optimizer_states"][0]["state"]
    return [state[number]["exp_avg"] for number in sorted(state)]


def test_a_trial_tries_it(quick_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    monkeypatch.setattr("training.sharpness.climb", lambda *a: steps.append(a[2]))
    quick_train(fast_dev_run=True, sam_radius=0.2)
    assert steps == [0.2]
