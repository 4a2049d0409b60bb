"""Where the features of training images lie, for `analysis/novelty.py` to compare."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.func import functional_call

from lightning_module import Features, LitCustomResNet
from networks import collected_features
from training.guard import steps_in_epoch

SAMPLE = 500  # images that are enough


class FeaturesInCheckpoint(Callback):
    """Stores in the checkpoint of every epoch where features of training images lie.

    Args:
        pixels: Some of the training images, uint8 (N, 32, 32, 3).
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self._known: tuple[int, Features] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Add them as the weights that are saved see them, averages included."""
        step = trainer.global_step
        if steps_in_epoch(trainer):  # a checkpoint to go on from, and no more
            return
        if self._known is None or self._known[0] != step:
            state = checkpoint["state_dict"]
            self._known = step, measure_features(pl_module, state, self.pixels)
        checkpoint["features"] = self._known[1]


def measure_features(
    module: LitCustomResNet, state: dict[str, Any], pixels: Tensor
) -> Features:
    """Mean and variance of the features of images.

    Args:
        module: Its mode stays what it is.
        state: The weights to use, on its device.
        pixels: uint8 (N, 32, 32, 3).
    """
    images = pixels.to(module.device).permute(0, 3, 1, 2)
    was_training = module.training
    module.eval()
    with torch.no_grad(), collected_features(module.net) as found:
        functional_call(module, state, (images,))
    module.train(was_training)
    [features] = found
    mean = features.mean(dim=0)
    variance = (features - mean).square().sum(dim=1).mean()
    return {"mean": mean.tolist(), "variance": float(variance)}
