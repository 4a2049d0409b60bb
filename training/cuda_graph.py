"""`--cuda_graph`: forward and backward pass as CUDA graphs, which a GPU replays.

At a small batch size a fast GPU waits for the host, which asks for one operation after
the other. A graph is captured once and asks for all of them at once. Batches are copied
into the memory of the first; loss, accuracy and gradients come out as without a graph.
Adam stays outside, as it gets another learning rate and another beta at every step.
"""

import gc
import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from common.errors import InputError, is_out_of_memory
from images.loader import Batch
from training.compiled import own

log = logging.getLogger(__name__)


class CudaGraph(Callback):
    """Captures the graphs before the first step; without them a run trains as usual.

    Attributes:
        problem: Why there are none; None where there are.
    """

    problem: str | None = None

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Capture with some batch, or say why not."""
        self.problem = obstacle(trainer)
        if self.problem is None:
            loader: Any = trainer.train_dataloader
            batch: Batch = next(iter(loader))
            # Under the autocast of every step.
            with trainer.precision_plugin.train_step_context():
                self.problem = capture(pl_module, batch)
        if self.problem is not None and trainer.is_global_zero:
            log.warning(
                f"--cuda_graph is left out, the training is as usual: {self.problem}"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the memory of the graphs back."""
        vars(pl_module).pop("objective", None)
        gc.collect()  # a graphed function and its module know each other


def obstacle(trainer: pl.Trainer) -> str | None:
    """Why a training can have no graphs; None if it can."""
    device = trainer.strategy.root_device.type
    if device != "cuda":
        return f"it needs an NVIDIA GPU, the device is a {device}"
    if trainer.world_size > 1:
        return f"it is for one process, not {trainer.world_size}"
    if trainer.precision == "16-mixed":
        return "it does not scale gradients as --precision 16-mixed does"
    return None


def capture(module: Any, batch: Batch) -> str | None:
    """Have a module replay graphs of its objective from now on.

    Args:
        module: A `LitCustomResNet` in training.
        batch: One of its batches; all that follow must be of the same shape.

    Returns:
        Why it did not work, and the module is as it was; None where it did.

    Raises:
        InputError: The network cannot be captured. What CUDA and the generator of
            random numbers have kept of the try would be felt in all that follows.
    """
    step = Objective(module)
    before = [buffer.clone() for buffer in module.buffers()]
    inputs = tuple(part.clone() for part in batch)  # those that are filled again
    # A capture that fails leaves its own stream the current one.
    stream = torch.cuda.current_stream() if batch[0].is_cuda else None
    # PyTorch's own is made once, on the GPU of the process's first capture.
    torch.cuda.graph.default_capture_stream = None
    try:
        with torch.cuda.stream(stream):
            torch.cuda.make_graphed_callables(step, inputs)
    except RuntimeError as error:
        if is_out_of_memory(error):
            torch.cuda.empty_cache()
            return "the GPU has too little memory for it"
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise InputError(
            f"--cuda_graph: this network cannot be captured ({reason}); leave it out"
        ) from None
    finally:
        # Warming up has moved the batch statistics.
        for buffer, value in zip(module.buffers(), before, strict=True):
            buffer.copy_(value)
    module.objective = lambda images, labels: own(*step(images, labels))
    return None


class Objective(nn.Module):
    """The objective of a module as a module, whose weights are to get gradients."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.objective = module, module.objective

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch."""
        found: tuple[Tensor, Tensor] = self.objective(images, labels)
        return found
