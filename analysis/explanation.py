"""Explanation of predictions: Grad-CAM."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_module import LitCustomResNet


def grad_cam(model: LitCustomResNet, images: Tensor, labels: Tensor) -> Tensor:
    """Heat maps of where in each image the network sees a class (arXiv 1610.02391).

    The maps are those of the network's `cam_layer`.

    Args:
        model: As `load_model` gives it.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), the class in question of each image.

    Returns:
        float32 (N, 32, 32) on the CPU, from 0 to 1 in each image; all 0 where nothing
        speaks for the class.
    """
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        # A copy: the next layers work in place.
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()

    layer: Any = model.net.cam_layer
    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            scores = model(images.to(model.device))
            chosen = scores.gather(1, labels.to(model.device)[:, None]).sum()
            [maps] = kept
            [gradients] = torch.autograd.grad(chosen, maps)
    finally:
        hook.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * maps.detach()).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear").squeeze(1)
    peak = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / peak.where(peak > 0, 1)).float().cpu()
