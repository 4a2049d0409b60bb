"""Ten classes of drawn shapes: a data set for demos and tests, without a download."""

import math

import torch
from torch import Tensor

from config import IMAGE_SIZE

SHAPES = (
    "bar",
    "circle",
    "crescent",
    "cross",
    "diamond",
    "ring",
    "square",
    "star",
    "stripes",
    "triangle",
)


def _distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """How far points (u, v) lie outside a shape of about unit size; inside, below 0."""
    radius = torch.hypot(u, v)
    match shape:
        case "bar":
            return torch.maximum(u.abs() - 1.0, v.abs() - 0.35)
        case "circle":
            return radius - 0.9
        case "crescent":
            return torch.maximum(radius - 1.0, 0.85 - torch.hypot(u - 0.5, v))
        case "cross":
            upright = torch.maximum(u.abs() - 0.28, v.abs() - 1.0)
            return torch.minimum(upright, torch.maximum(v.abs() - 0.28, u.abs() - 1.0))
        case "diamond":
            return u.abs() + v.abs() - 1.05
        case "ring":
            return (radius - 0.75).abs() - 0.22
        case "square":
            return torch.maximum(u.abs(), v.abs()) - 0.8
        case "star":
            return radius - 0.65 - 0.35 * torch.cos(5 * torch.atan2(v, u))
        case "stripes":
            return torch.maximum(u.abs() - 0.9, (v.abs() - 0.6).abs() - 0.22)
        case _:  # triangle
            slopes = 0.866 * u.abs() - 0.5 * v - 0.5
            return torch.maximum(slopes, v - 0.6)


def draw_shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw shapes of varied colour, place, size and tilt on shaded, noisy grounds.

    Args:
        count: Number of images; the classes share them as evenly as possible.
        seed: The same seed draws the same images.

    Returns:
        Images, uint8 (count, 32, 32, 3), and labels, int64 (count,), in random order.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.arange(count) % len(SHAPES)
    labels = labels[torch.randperm(count, generator=generator)]
    axis = torch.linspace(-1, 1, IMAGE_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (32, 32) each
    size = uniform(0.45, 0.75, 1, 1)
    dx = (x - uniform(-0.25, 0.25, 1, 1)) / size
    dy = (y - uniform(-0.25, 0.25, 1, 1)) / size
    tilt = uniform(-math.pi / 12, math.pi / 12, 1, 1)
    u = dx * tilt.cos() + dy * tilt.sin()
    v = dy * tilt.cos() - dx * tilt.sin()
    outside = torch.empty_like(u)
    for label, shape in enumerate(SHAPES):
        chosen = labels == label
        outside[chosen] = _distance(shape, u[chosen], v[chosen])
    edge = 8.0 * size  # a soft edge, about one pixel wide
    cover = torch.sigmoid(-outside * edge * 2)[..., None]  # (count, 32, 32, 1)

    slope = uniform(-0.15, 0.15, 1, 1, 3) * x[..., None]
    slope = slope + uniform(-0.15, 0.15, 1, 1, 3) * y[..., None]
    ground = uniform(0.2, 0.8, 1, 1, 3) + slope
    contrast = uniform(0.25, 0.6, 1, 1, 3) * uniform(-1, 1, 1, 1, 1).sign()
    noise = 0.04 * torch.randn(ground.shape, generator=generator)
    pixels = ground + cover * contrast + noise
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8), labels
