"""Changes like those of cameras: each against what it stands for."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.corruptions import jpeg_compression
from images.photo_like import (
    ROWS,
    Settings,
    _tables,
    blurred,
    compressed,
    draw_settings,
    like_photos,
    sharpened,
)
from images.synthetic import draw_shapes


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Drawn shapes, float (16, 3, 32, 32), in levels."""
    pixels: Tensor = draw_shapes(16, seed=0)[0]
    return pixels.permute(0, 3, 1, 2).float()


def test_zero_of_each_change_leaves_images_as_they_are(images: Tensor) -> None:
    for change in (blurred, sharpened, compressed):
        found = change(images, torch.zeros(1))
        torch.testing.assert_close(found, images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("softness", [0.5, 1.0])
def test_blur_is_a_triangle_with_the_edge_reflected(
    softness: float, images: Tensor
) -> None:
    side = softness / (1 + softness)  # weight of a neighbour, in that of the middle
    line = torch.tensor([side, 1, side]) / (1 + 2 * side)
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), "reflect"), kernel, groups=3)
    found = blurred(images, torch.tensor([softness]))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_sharpening_adds_what_a_blur_takes_away(images: Tensor) -> None:
    soft = blurred(images, torch.ones(1))
    found = sharpened(images, torch.tensor([1.5]))
    torch.testing.assert_close(found - images, 1.5 * (images - soft), atol=1e-3, rtol=0)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_compression_is_that_of_jpeg_files(quality: int, images: Tensor) -> None:
    found = compressed(images, torch.full((len(images),), float(quality)))
    written = 255 * jpeg_compression(quality, images / 255, torch.Generator())
    loss = (written - images).abs().mean().item()
    assert (found - written).abs().mean().item() < max(0.3 * loss, 1.2)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_light_is_coded_in_the_steps_of_jpeg_files(
    quality: int, images: Tensor
) -> None:
    """Without colour nothing but the last digits of its arithmetic differs."""
    grey = images.mean(1, keepdim=True).round().repeat(1, 3, 1, 1)
    found = compressed(grey, torch.full((len(grey),), float(quality)))
    written = 255 * jpeg_compression(quality, grey / 255, torch.Generator())
    assert (found - written).abs().mean().item() < 0.5


def test_settings_reach_from_end_to_end_in_some_of_the_images() -> None:
    drawn = draw_settings(20_000, torch.Generator().manual_seed(1))
    for values, high in (
        (drawn.softness, 1),
        (drawn.sharpening, 1.5),
        (drawn.noise, 12),
    ):
        assert values.aminmax() == pytest.approx((0, high), abs=1e-3 * high)
    assert drawn.quality[drawn.quality > 0].aminmax() == pytest.approx((30, 95))
    shares = [(values > 0).float().mean().item() for values in drawn]
    assert shares == pytest.approx([0.3, 0.3, 0.3, 0.7], abs=0.02)
    assert torch.corrcoef(torch.stack(drawn)).triu(1).abs().max() < 0.03


def test_an_image_depends_on_its_row_alone(images: Tensor) -> None:
    pixels = images.to(torch.uint8).permute(0, 2, 3, 1)
    rows = torch.tensor([0, 1, ROWS, 7] * 4)
    found = like_photos(pixels, rows)
    assert found.dtype == torch.uint8
    assert torch.equal(found[::4], pixels[::4])
    assert (found != pixels).flatten(1).any(1).tolist() == [False, True, True, True] * 4
    alone = like_photos(pixels[5:6], rows[5:6])
    assert (alone.int() - found[5:6].int()).abs().max() <= 1


def test_every_setting_changes_images() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 32, 32, 3), generator=draws).to(torch.uint8)
    chosen = torch.arange(1, 65)
    table, normals = _tables(torch.device("cpu"))
    settings = Settings(*table[chosen].unbind(1))
    x = images.permute(0, 3, 1, 2).float()
    x = sharpened(blurred(x, settings.softness), settings.sharpening)
    x = x + settings.noise.view(-1, 1, 1, 1) * normals[chosen].view_as(x)
    x = compressed(x.clamp(0, 255), settings.quality)
    expected = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(like_photos(images, chosen), expected)
