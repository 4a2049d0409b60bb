"""What TensorBoard shows of a training beside its metrics."""

import functools
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard._pytorch_graph import graph
from torchvision.utils import make_grid

from config import IMAGE_SIZE
from networks import build_network
from training.history import History

GRID_IMAGES = 64  # augmented training images


class TensorBoardDetails(Callback):
    """What the logger does not write by itself: LR per step, graph, pictures."""

    def __init__(self, logger: TensorBoardLogger, history: History) -> None:
        self.writer = logger.experiment
        self.history = history

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the network's graph; before `Guard` starts, as it takes a while."""
        known = pl_module.hparams
        if trainer.is_global_zero:
            built = (known["net"], len(known["classes"]), known["base_width"])
            self.writer.file_writer.add_graph(_traced(*built))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log a grid of augmented images."""
        if trainer.is_global_zero:
            images, _ = next(iter(trainer.train_dataloader or ()))
            grid = make_grid(images[:GRID_IMAGES].cpu(), nrow=8)
            self.writer.add_image("images/augmented", grid, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the LRs of the epoch at once: writing at each step costs time."""
        if trainer.is_global_zero:
            lrs = self.history.lrs
            for step, lr in enumerate(lrs, trainer.global_step - len(lrs)):
                self.writer.add_scalar("lr", lr, step)
            self.writer.flush()  # before the checkpoint that says it is written


@functools.cache  # torch never frees what it has traced
def _traced(name: str, num_classes: int, base_width: int) -> Any:
    """The network's graph for TensorBoard."""
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # torch.jit.trace is deprecated: https://github.com/pytorch/pytorch/issues/49823
        warnings.simplefilter("ignore", DeprecationWarning)
        net = build_network(name, num_classes, base_width).eval()
        return graph(net, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
