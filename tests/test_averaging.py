"""The average of the weights against a slow loop."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.operations import Count
from common.errors import InputError
from config import Config
from lightning_module import LitCustomResNet
from run_files import LAST
from training.averaging import ExponentialAverage, kept


def test_the_average_reaches_back_further_as_the_training_goes_on() -> None:
    shares = [1 - kept(step, 0.9) for step in (0, 1, 10, 80, 999)]
    assert shares == pytest.approx([1, 9 / 11, 9 / 20, 0.1, 0.1])


def test_it_is_that_of_a_slow_loop_and_waits_for_nothing() -> None:
    torch.manual_seed(0)
    module = LitCustomResNet(("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.1), 0.01)
    callback = ExponentialAverage(decay=0.5)
    trainer: Any = SimpleNamespace(global_step=0)
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    expected: list[Tensor] = []
    for step in range(12):
        trainer.global_step = step + 1
        for weight in module.net.parameters():
            weight.data.add_(torch.randn_like(weight))
        module.net.get_buffer("prep.1.num_batches_tracked").add_(1)
        new = [weight.detach().clone() for weight in module.net.parameters()]
        share = min(0.5, (1 + step) / (10 + step)) if step else 0
        expected = [
            share * old + (1 - share) * weight
            for old, weight in zip(expected or new, new, strict=True)
        ]
        with Count() as count:
            callback.on_train_batch_end(trainer, module)
            callback.on_train_batch_end(trainer, module)  # of the same step: no more
        assert (count.counts.total(), count.reads) == (2, 0)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    assert checkpoint["averaging_state"]["n_averaged"] == 12
    saved = checkpoint["state_dict"]
    for (name, _), value in zip(module.net.named_parameters(), expected, strict=True):
        torch.testing.assert_close(saved[f"net.{name}"], value)
    assert saved["net.prep.1.num_batches_tracked"] == 12
    average: Any = callback._average_model
    assert torch.equal(average.module.mean, module.mean)  # to the last bit
    assert torch.equal(average.module.std, module.std)


def test_averages_are_of_the_type_of_the_weights(
    quick_train: Callable[..., dict[str, Any]],
) -> None:
    metrics = quick_train(precision="64-true", ema_decay=0.9)
    assert metrics["train/loss"] < 1.2  # log 3 is 1.1
    state = torch.load(LAST, weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert state[part]["net.fc.weight"].dtype == torch.float64


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("flag", ["ema_decay", "sam_radius"])
def test_weights_of_few_digits_take_no_small_steps(precision: Any, flag: str) -> None:
    """A bf16 number stays as it is where less than a 512th is added."""
    some: Any = {flag: 0.1}
    with pytest.raises(InputError, match=rf"--{flag} 0\.1 needs more .*16-mixed$"):
        Config(precision=precision, **some)


def test_a_network_without_counters_has_an_average() -> None:
    module: Any = nn.Linear(2, 1)
    callback = ExponentialAverage(decay=0.5)
    trainer: Any = SimpleNamespace(global_step=1)
    callback._average_model = AveragedModel(module)
    callback.on_train_start(trainer, module)
    with torch.no_grad():
        module.weight.add_(1)
    callback.on_train_batch_end(trainer, module)
    average: Any = callback._average_model.module
    assert torch.equal(average.weight, module.weight)


def test_checkpoints_call_it_as_lightning_does() -> None:
    assert ExponentialAverage(0.9).state_key == "WeightAveraging"
