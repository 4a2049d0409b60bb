"""A trained network and what it says of images."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import InputError
from components.resume import read_checkpoint
from lightning_module import LitCustomResNet

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "cifar10.ckpt"
BATCH_SIZE = 500  # images at once


def load_model(path: Path | None = None) -> LitCustomResNet:
    """The network of a checkpoint, on the CPU, ready for `logits` and `grad_cam`.

    Args:
        path: A checkpoint that train.py wrote; None for the weights that come with the
            project.

    Raises:
        InputError: It is not there, damaged, or of something else.
    """
    path = path or WEIGHTS
    saved = read_checkpoint(path, to_resume=False)
    try:
        module = LitCustomResNet(**saved["hyper_parameters"])
        module.load_state_dict(saved["state_dict"])
    except (KeyError, RuntimeError, TypeError):
        raise InputError(
            f"--ckpt_path {path}: the weights do not fit the network; give a "
            "checkpoint of this version of the project"
        ) from None
    return module.eval().requires_grad_(False)


def logits(model: LitCustomResNet, images: Tensor) -> Tensor:
    """What the network says of images.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 3, 32, 32).

    Returns:
        float32 (N, C), on the CPU. Their softmax are the probabilities of the classes
        in `model.hparams["classes"]`.
    """
    with torch.inference_mode():
        batches = [model(batch.to(model.device)) for batch in images.split(BATCH_SIZE)]
    return torch.cat(batches).float().cpu()


def confident_mistakes(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Which images are put into a wrong class, the surest first.

    Args:
        scores: float32 (N, C), as `logits` gives them.
        labels: int64 (N,), the true classes.
        count: How many at most.

    Returns:
        int64 (M,), positions of the M <= `count` images.
    """
    surest, said = scores.softmax(dim=1).max(dim=1)
    order = surest.argsort(descending=True, stable=True)
    return order[said[order] != labels[order]][:count]


def grad_cam(model: LitCustomResNet, images: Tensor, labels: Tensor) -> Tensor:
    """Where in each image the network sees a class (Grad-CAM, arXiv 1610.02391).

    The maps are those of the last convolution that has more than 3 x 3 places.

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

    hook = model.net.layer2.register_forward_hook(keep)
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
