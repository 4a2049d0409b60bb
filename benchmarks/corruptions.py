"""Test images, spoiled a little: kinds and severities of CIFAR-10-C.

Those of its kinds (Hendrycks & Dietterich, arXiv 1903.12261) that need nothing but
arithmetic. Each takes its strength, images float (N, 3, 32, 32) from 0 to 1, and what
to draw with, and gives images that may go beyond 0 and 1.
"""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from config import IMAGE_SIZE
from images.image_folder import SIZE

BOX = Image.Resampling.BOX
Spoil = Callable[[Tensor, torch.Generator], Tensor]


def gaussian_noise(strength: float, images: Tensor, draws: torch.Generator) -> Tensor:
    """Noise of one standard deviation on every pixel."""
    return images + strength * torch.randn(images.shape, generator=draws)


def shot_noise(photons: float, images: Tensor, draws: torch.Generator) -> Tensor:
    """As many photons as a Poisson distribution gives, of so many in white."""
    counted: Tensor = torch.poisson(images * photons, generator=draws)
    return counted / photons


def impulse_noise(share: float, images: Tensor, draws: torch.Generator) -> Tensor:
    """So many values black or white."""
    dice = torch.rand(images.shape, generator=draws)
    return images.where(dice >= share, (dice < share / 2).to(images.dtype))


def speckle_noise(strength: float, images: Tensor, draws: torch.Generator) -> Tensor:
    """Noise that grows with the brightness."""
    return images + strength * images * torch.randn(images.shape, generator=draws)


def gaussian_blur(sigma: float, images: Tensor, _: torch.Generator) -> Tensor:
    """Blurred, to four standard deviations; the border goes on beyond the image."""
    reach = max(1, int(4 * sigma + 0.5))
    side = 2 * reach + 1
    wide = F.pad(images, [reach] * 4, mode="replicate")
    blurred: Tensor = transforms.gaussian_blur(wide, [side, side], [sigma])
    return blurred[..., reach:-reach, reach:-reach]


def contrast(share: float, images: Tensor, _: torch.Generator) -> Tensor:
    """Nearer to the mean colour of the image."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return (images - means) * share + means


def brightness(more: float, images: Tensor, _: torch.Generator) -> Tensor:
    """More of the value of hue, saturation and value."""
    value = images.amax(1, keepdim=True)
    wanted = (value + more).clamp(max=1)
    return torch.where(value > 0, images * wanted / value, wanted)


def saturate(change: tuple[float, float], images: Tensor, _: torch.Generator) -> Tensor:
    """A multiple of the saturation, and something on top."""
    value = images.amax(1, keepdim=True)
    spread = value - images
    widest = spread.amax(1, keepdim=True)
    saturation = torch.where(value > 0, widest / value, 0)
    wanted = (change[0] * saturation + change[1]).clamp(max=1)
    red = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)  # what grey is, having no hue
    return value * (1 - wanted * torch.where(widest > 0, spread / widest, red))


def pixelate(share: float, images: Tensor, _: torch.Generator) -> Tensor:
    """Fewer pixels, with Pillow's box filter both ways."""
    side = int(share * IMAGE_SIZE)
    return each(images, lambda image: image.resize((side, side), BOX).resize(SIZE, BOX))


def jpeg_compression(quality: int, images: Tensor, _: torch.Generator) -> Tensor:
    """Written as a JPEG file and read again."""
    return each(images, partial(through_jpeg, quality))


def through_jpeg(quality: int, image: Image.Image) -> Image.Image:
    """What Pillow makes of an image in a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def each(images: Tensor, spoil: Callable[[Image.Image], Image.Image]) -> Tensor:
    """What a function of Pillow's makes of each image."""
    found = (spoil(transforms.to_pil_image(image)) for image in to_levels(images))
    return torch.stack([transforms.pil_to_tensor(image) for image in found]) / 255


# Each kind with its five strengths.
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
PLAIN, JPEG_75 = "as they are", "JPEG, quality 75"


def spoilings() -> dict[tuple[str, int], Spoil]:
    """All ways to spoil test images, by kind and severity from 1 to 5."""
    found: dict[tuple[str, int], Spoil] = {
        (PLAIN, 0): lambda images, _: images,
        (JPEG_75, 0): partial(jpeg_compression, 75),
    }
    for kind, (function, strengths) in CORRUPTIONS.items():
        for severity, strength in enumerate(strengths, 1):
            found[kind, severity] = partial(function, strength)
    return found


def to_levels(images: Tensor) -> Tensor:
    """From 0 to 1 -> uint8."""
    return (255 * images.clamp(0, 1)).round().to(torch.uint8)
