"""`--sam_radius`: sharpness-aware minimisation (SAM, arXiv 2010.01412) near the end.

A step takes its gradient not at the weights but where the loss is worst nearby, and so
leads to a minimum that is flat. It costs a second forward and backward pass. Late in a
training it brings about as much as all along (arXiv 2410.10373).
"""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from images.loader import Batch


class SharpnessAware(Callback):
    """Takes the gradients of a training's last steps where the loss is worst nearby.

    Loss, accuracy and batch statistics stay those of the weights themselves. Each of
    several processes looks around by its own part of the batch, as in the paper.

    Put it before what reads the losses.

    Args:
        radius: How far away that is, in the Euclidean norm of all weights.
        share: Share of the steps that do so.
    """

    def __init__(self, radius: float, share: float) -> None:
        self.radius, self.share = radius, share
        self.first = 0  # step that does so
        self.there: list[Tensor] = []  # weights and statistics that were left
        self.back: list[Tensor] = []  # what they are to be again
        self.metrics: tuple[Tensor, Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Find out where the last steps begin."""
        steps = int(trainer.estimated_stepping_batches)
        self.first = int((1 - self.share) * steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the weights to where the loss of this batch is worst."""
        if trainer.global_step < self.first:
            return
        # In a context of its own, as autocast keeps its copies of weights to the end.
        with trainer.precision_plugin.train_step_context():
            loss, accuracy = pl_module.objective(*batch)
        self.metrics = loss.detach(), accuracy
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        weights = [
            weight for weight in pl_module.net.parameters() if weight.requires_grad
        ]
        gradients = torch.autograd.grad(
            loss if scaler is None else scaler.scale(loss),
            weights,
            allow_unused=True,
            materialize_grads=True,
        )
        self.there = [*weights, *pl_module.net.buffers()]
        self.back = [tensor.detach().clone() for tensor in self.there]
        climb(weights, gradients, self.radius)

    @torch.no_grad()
    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put weights and batch statistics back; the gradients are those from there."""
        for tensor, value in zip(self.there, self.back, strict=True):
            tensor.copy_(value)
        self.there, self.back = [], []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, *_: Any, **__: Any
    ) -> None:
        """Note the loss and accuracy of the weights themselves."""
        if self.metrics is not None:
            pl_module.losses[-1], pl_module.accuracies[-1] = self.metrics
            self.metrics = None


@torch.no_grad()
def climb(
    weights: list[nn.Parameter], gradients: tuple[Tensor, ...], radius: float
) -> None:
    """Move weights by a radius, up the gradients, whose scale does not matter.

    Where a gradient overflows, as those of 16-mixed now and then do, nothing moves.
    """
    factor = radius / nn.utils.get_total_norm(gradients).clamp(min=1e-12)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.add_((factor * gradient).nan_to_num(0.0))
