"""`--compile`: from uint8 images to the loss as one compiled function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from config import Compile

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def compile_objective(module: Any, mode: Compile) -> None:
    """Compile what a module trains by, normalisation, network and loss, in place.

    Names in checkpoints stay, and evaluation is not compiled: it is a small part of a
    run, and its batches have other shapes.

    Args:
        module: A `LitCustomResNet`.
        mode: Of torch.compile; True is "default".
    """
    name = "default" if mode is True else str(mode)
    # One batch size a run: without `dynamic` a second run in the same process, with
    # another, would get kernels for all sizes, which are slower.
    compiled: Objective = torch.compile(module.objective, mode=name, dynamic=False)
    module.objective = replaying(compiled) if name == "reduce-overhead" else compiled


def replaying(compiled: Objective) -> Objective:
    """Keep what a function gives from being overwritten when it is called again.

    It replays CUDA graphs, so its results are always in the same memory:
    https://docs.pytorch.org/docs/2.11/torch.compiler_cudagraph_trees.html.
    """

    def replay(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return own(*compiled(images, labels))

    return replay


def own(loss: Tensor, accuracy: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and accuracy in memory of their own; only the loss has a gradient."""
    return loss.clone(), accuracy.detach().clone()
