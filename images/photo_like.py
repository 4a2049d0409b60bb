"""Changes that make training images like photos of people's own.

In photos, objects are smaller or off the middle, light and colours differ, cameras
sharpen and add noise, and files are JPEG. Each image that is to be changed draws a row
of a fixed table of settings, so one integer says all that happens to it.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from config import IMAGE_SIZE

ROWS = 2**16  # of the table; row 0 stands for an image that stays as it is
NORMALS = 2**16
BLOCK = 8  # JPEG's side of a block, in pixels
PIXELS = 3 * IMAGE_SIZE**2
PART = 2048  # images that are changed at once, for the memory's sake
REACH = IMAGE_SIZE - 1  # pixels beyond an edge that are reflected
# Which pixel stands at each place from -REACH to IMAGE_SIZE + REACH: (94, 32).
REFLECTION = F.pad(torch.eye(IMAGE_SIZE)[None], (REACH, REACH), mode="reflect")[0].T
# Steps of JPEG's coefficients at quality 50 (ITU-T T.81, annex K).
LUMINANCE = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = torch.full((BLOCK, BLOCK), 99)
CHROMINANCE[:4, :4] = torch.tensor(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
)
TO_YCBCR = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
FROM_YCBCR = torch.linalg.inv(TO_YCBCR)


def cosine_transform(side: int) -> Tensor:
    """The discrete cosine transform of a line, (side, side), whose rows are waves."""
    ramp = torch.arange(side)
    waves = torch.cos(math.pi / side * ramp[:, None] * (ramp + 0.5))
    waves[0] *= math.sqrt(0.5)
    return waves * math.sqrt(2 / side)


COSINES = cosine_transform(BLOCK)


class Settings(NamedTuple):
    """What happens to images; every tensor has shape (B,)."""

    zoom_rows: Tensor  # pixels of the image to one of the result
    zoom_columns: Tensor
    down: Tensor  # pixels by which the window moves
    right: Tensor
    softness: Tensor  # pixels by which the kernel is wider than it must be
    sharpening: Tensor  # share of the difference from the blurred image that is added
    brightness: Tensor  # factor
    contrast: Tensor  # factor, about the image's mean
    saturation: Tensor  # factor, about grey
    warmth: Tensor  # more red and less blue, as a share
    noise: Tensor  # standard deviation, in levels
    quality: Tensor  # of JPEG; 0 for none


def draw_settings(count: int, generator: torch.Generator) -> Settings:
    """Draw settings; each kind of change is in some of them only."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def some(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).float()

    zoomed, lit, coloured = some(0.5), some(0.5), some(0.5)
    size, aspect = zoomed * uniform(-0.25, 0.45), zoomed * uniform(-0.15, 0.15)
    return Settings(
        zoom_rows=(size + aspect).exp(),
        zoom_columns=(size - aspect).exp(),
        down=zoomed * uniform(-3, 3),
        right=zoomed * uniform(-3, 3),
        softness=some(0.3) * uniform(0, 1),
        sharpening=some(0.3) * uniform(0, 1.5),
        brightness=1 + lit * uniform(-0.25, 0.25),
        contrast=1 + lit * uniform(-0.3, 0.3),
        saturation=1 + coloured * uniform(-0.5, 0.5),
        warmth=coloured * uniform(-0.08, 0.08),
        noise=some(0.3) * uniform(0, 12),
        quality=some(0.7) * uniform(30, 95).round(),
    )


def like_photos(images: Tensor, rows: Tensor) -> Tensor:
    """Change images, each as its row of the table of settings says.

    The result is the same on every device, up to what rounding does to a level, and
    TF32 on a GPU to a few.

    Args:
        images: uint8 (B, 32, 32, 3).
        rows: Row of the table for each, int (B,), from 0 to `ROWS`; 0 leaves an image
            as it is.

    Returns:
        uint8 (B, 32, 32, 3).
    """
    parts = zip(images.split(PART), rows.split(PART), strict=True)
    return torch.cat([_changed(part, its_rows) for part, its_rows in parts])


def _changed(images: Tensor, rows: Tensor) -> Tensor:
    table, normals = _tables(images.device)
    settings = Settings(*table.index_select(0, rows).unbind(1))
    noise = normals.index_select(0, rows % len(normals))
    changed = images.permute(0, 3, 1, 2).float()
    changed = sharpened(resampled(changed, settings), settings.sharpening)
    changed = recoloured(changed, settings)
    changed = changed + _each(settings.noise) * noise.view_as(changed)
    changed = compressed(changed.clamp(0, 255), settings.quality)
    levels = changed.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return torch.where(rows.view(-1, 1, 1, 1) > 0, levels, images)


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """All settings, (1 + ROWS, 12), and normal numbers, a view of (N, PIXELS)."""
    generator = torch.Generator().manual_seed(0)
    table = torch.stack(draw_settings(1 + ROWS, generator), dim=1)
    normals = torch.randn(NORMALS, generator=generator).to(device)
    return table.to(device), normals.unfold(0, PIXELS, 1)


def resampled(images: Tensor, settings: Settings) -> Tensor:
    """Zoom and move images, float (B, 3, 32, 32); their edges are reflected."""
    rows = _kernels(settings.zoom_rows, settings.down, settings.softness)
    columns = _kernels(settings.zoom_columns, settings.right, settings.softness)
    return rows[:, None] @ images @ columns[:, None].mT


def _kernels(zoom: Tensor, move: Tensor, softness: Tensor) -> Tensor:
    """What each pixel of a line is made of, (B, 32, 32).

    The kernel is a triangle, as wide as the zoom asks, so that no pixel is passed over.
    """
    middle = (IMAGE_SIZE - 1) / 2
    ramp = torch.arange(IMAGE_SIZE, device=zoom.device)
    places = (ramp - middle) * zoom[:, None] + middle + move[:, None]  # (B, 32)
    source = torch.arange(-REACH, IMAGE_SIZE + REACH, device=zoom.device)
    width = zoom.clamp(min=1) + softness
    distances = (places[:, :, None] - source).abs()  # (B, 32, 94)
    weights = (1 - distances / width[:, None, None]).clamp(min=0)
    weights = weights @ _on(REFLECTION, zoom.device)
    return weights / weights.sum(2, keepdim=True)


def sharpened(images: Tensor, amount: Tensor) -> Tensor:
    """Add some of what a small blur takes away: float (B, 3, 32, 32), (B,)."""
    one = torch.ones(1, device=images.device)
    blur = _kernels(one, 0 * one, one)
    return images + _each(amount) * (images - blur @ images @ blur.mT)


def recoloured(images: Tensor, settings: Settings) -> Tensor:
    """Change light and colours of images, float (B, 3, 32, 32), in levels."""
    weights = _on(TO_YCBCR, images.device)[0].view(1, 3, 1, 1)
    grey = (images * weights).sum(1, keepdim=True)
    images = grey + _each(settings.saturation) * (images - grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    images = mean + _each(settings.contrast) * (images - mean)
    warmth = settings.warmth
    gains = torch.stack([1 + warmth, torch.ones_like(warmth), 1 - warmth], dim=1)
    return images * (gains * settings.brightness[:, None])[..., None, None]


def compressed(images: Tensor, quality: Tensor) -> Tensor:
    """What JPEG files of images hold: colour at half the size, blocks of 8x8.

    Args:
        images: float (B, 3, 32, 32), from 0 to 255.
        quality: float (B,), 1 to 100; 0 leaves an image as it is.

    Returns:
        float (B, 3, 32, 32).
    """
    planes = torch.einsum("dc,bchw->bdhw", _on(TO_YCBCR, images.device), images)
    light = _coded(planes[:, :1] - 128, LUMINANCE, quality) + 128
    colour = _coded(F.avg_pool2d(planes[:, 1:], 2).round(), CHROMINANCE, quality)
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    planes = torch.cat([light, colour], dim=1)
    restored = torch.einsum("cd,bdhw->bchw", _on(FROM_YCBCR, images.device), planes)
    return torch.where(_each(quality) > 0, restored.clamp(0, 255), images)


def _coded(planes: Tensor, steps: Tensor, quality: Tensor) -> Tensor:
    """Planes (B, C, S, S) about 0 whose cosine coefficients are whole steps."""
    blocks = planes.shape[-1] // BLOCK
    cosines = torch.block_diag(*[_on(COSINES, planes.device)] * blocks)
    percent = torch.where(
        quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality
    ).floor()
    scaled = _each(percent) * _on(steps, planes.device).repeat(blocks, blocks)
    scaled = ((scaled + 50) / 100).floor().clamp(1, 255)
    coefficients = ((cosines @ planes @ cosines.T) / scaled).round() * scaled
    restored: Tensor = cosines.T @ coefficients @ cosines
    return restored.round()


@functools.cache
def _on(constant: Tensor, device: torch.device) -> Tensor:
    """A constant on a device, where it is sent once."""
    return constant.to(device)


def _each(values: Tensor) -> Tensor:
    """A number an image, to go with (B, C, H, W)."""
    return values.view(-1, 1, 1, 1)
