"""The average of the weights, moved at every step without waiting for the device."""

import itertools
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn


class ExponentialAverage(WeightAveraging):
    """Lightning's averaging of weights and batch statistics, in two operations a step.

    Its own asks the device at every step how often it has been there, and handles every
    tensor by itself: https://github.com/pytorch/pytorch/issues/175085.

    Args:
        decay: Share that an average keeps of itself at a step, at most.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    @property
    def state_key(self) -> str:
        """The name in checkpoints, those of Lightning's class included."""
        return "WeightAveraging"

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Give the averages the weights' type, which 64-true has changed since."""
        if self._average_model is not None:
            self._average_model.to(next(pl_module.parameters()).dtype)
            # Listed once: to walk through the modules takes longer than to average.
            self._averages = _tensors(self._average_model.module)
            self._weights = _tensors(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Move the averages towards the new weights; whole numbers are copied."""
        step = trainer.global_step
        if self._average_model is None or step <= self._latest_update_step:
            return
        self._latest_update_step = step
        averages, weights = self._averages, self._weights
        new = 1 - kept(step - 1, self.decay)
        # What does not change, as the mean of the images, stays to the last bit.
        torch._foreach_lerp_(averages[True], weights[True], new)
        if averages[False]:  # the counters of batch norm
            torch._foreach_copy_(averages[False], weights[False])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the averages also where nothing was left to train.

        Lightning puts them into the module at the end of a training only.
        """
        self._copy_average_to_current(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Save the averages as the weights, and the weights beside them."""
        if self._average_model is not None:
            self._average_model.n_averaged.fill_(self._latest_update_step)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


def kept(step: int, decay: float) -> float:
    """Share that an average keeps of itself at a step, of which 0 is the first.

    It is less than `decay` at first, as in TensorFlow's ExponentialMovingAverage, so
    that it never reaches back to the weights that a short training began with.
    """
    return min(decay, (1 + step) / (10 + step)) if step else 0.0


def _tensors(module: nn.Module) -> dict[bool, list[Tensor]]:
    """Weights and buffers of a module, by whether they are floating point."""
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        found[tensor.is_floating_point()].append(tensor)
    return found
