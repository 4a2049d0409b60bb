"""Explanation of predictions: where in an image the network sees a class."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_module import LitCustomResNet

Score = Callable[[Tensor], Tensor]  # of logits, float (N, C) each
LOG_PROBABILITY: Score = nn.LogSoftmax(dim=1)


def layer_cam(model: LitCustomResNet, images: Tensor, labels: Tensor) -> Tensor:
    """Heat maps of where in each image the network sees a class.

    LayerCAM (Jiang et al., IEEE TIP 2021) of the log-probability: each place of each
    channel of the network's `cam_layer` counts as far as more of it would make the
    class more probable. benchmarks/studies/explanations.py has chosen method and layer.

    Args:
        model: As `load_model` gives it.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), the class in question of each image.

    Returns:
        float32 (N, 32, 32) on the CPU, from 0 to 1 in each image; all 0 where nothing
        speaks for the class.
    """
    layer: Any = model.net.cam_layer
    maps, gradients = maps_and_gradients(model, layer, images, labels)
    return heat_map((F.relu(gradients) * maps).sum(dim=1))


def maps_and_gradients(
    model: LitCustomResNet,
    layer: nn.Module,
    images: Tensor,
    labels: Tensor,
    score: Score = LOG_PROBABILITY,
) -> tuple[Tensor, Tensor]:
    """A layer's output, and the gradient of each image's score by it.

    Args:
        model: As `load_model` gives it.
        layer: One of its network's.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), the class whose score it is.
        score: Of logits, a score of each class.

    Returns:
        float (N, K, H, W) each, on the model's device.
    """
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        # A copy: the next layers work in place.
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()

    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            scores = score(model(images.to(model.device)))
            chosen = scores.gather(1, labels.to(model.device)[:, None]).sum()
            [maps] = kept
            [gradients] = torch.autograd.grad(chosen, maps)
    finally:
        hook.remove()
    return maps.detach(), gradients


def heat_map(evidence: Tensor, side: int = 32) -> Tensor:
    """What speaks for a class, in the size of an image and with a peak of 1.

    Args:
        evidence: float (N, H, W); what is below 0 speaks against it.
        side: Of an image, in pixels.

    Returns:
        float32 (N, side, side) on the CPU, from 0 to 1; 0 where there is no peak.
    """
    heat = F.relu(evidence)[:, None]
    heat = F.interpolate(heat, (side, side), mode="bilinear").squeeze(1)
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.where(peak > 0, 1)).float().cpu()
