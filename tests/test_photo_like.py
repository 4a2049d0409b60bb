"""Changes like those of photos: each against what it stands for."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from benchmarks.corruptions import jpeg_compression
from images.photo_like import (
    ROWS,
    Settings,
    _tables,
    compressed,
    draw_settings,
    like_photos,
    recoloured,
    resampled,
    sharpened,
)
from images.synthetic import draw_shapes

NEUTRAL = Settings(
    *(torch.ones(1), torch.ones(1), *torch.zeros(4, 1)),
    *torch.ones(3, 1),
    *torch.zeros(3, 1),
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Drawn shapes, float (16, 3, 32, 32), in levels."""
    pixels: Tensor = draw_shapes(16, seed=0)[0]
    return pixels.permute(0, 3, 1, 2).float()


def test_neutral_settings_change_nothing(images: Tensor) -> None:
    for found in (
        resampled(images, NEUTRAL),
        sharpened(images, NEUTRAL.sharpening),
        recoloured(images, NEUTRAL),
        compressed(images, NEUTRAL.quality),
    ):
        torch.testing.assert_close(found, images, atol=1e-3, rtol=0)


def test_an_image_is_moved_and_its_edge_reflected(images: Tensor) -> None:
    moved = NEUTRAL._replace(down=torch.tensor([3.0]), right=torch.tensor([-2.0]))
    found = resampled(images, moved)
    torch.testing.assert_close(found[:, :, :29, 2:], images[:, :, 3:, :30])
    torch.testing.assert_close(found[:, :, 29:, 2:], images[:, :, 28:31, :30].flip(2))


def test_zooming_out_is_what_torchvision_calls_resizing(images: Tensor) -> None:
    half = NEUTRAL._replace(
        zoom_rows=torch.tensor([2.0]), zoom_columns=torch.tensor([2.0])
    )
    found = resampled(images, half)[:, :, 8:24, 8:24]
    resized = transforms.resize(images, [16, 16], antialias=True)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], resized[:, :, 1:-1, 1:-1])


def test_zooming_in_is_what_torchvision_calls_resizing(images: Tensor) -> None:
    double = NEUTRAL._replace(
        zoom_rows=torch.tensor([0.5]), zoom_columns=torch.tensor([0.5])
    )
    found = resampled(images, double)
    resized = transforms.resize(images[:, :, 8:24, 8:24], [32, 32])
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], resized[:, :, 1:-1, 1:-1])


def test_softness_blurs_and_sharpening_takes_it_back(images: Tensor) -> None:
    soft = resampled(images, NEUTRAL._replace(softness=torch.ones(1)))
    kernel = torch.tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = torch.nn.functional.conv2d(images, kernel, groups=3)
    torch.testing.assert_close(soft[:, :, 1:-1, 1:-1], blurred, atol=1e-3, rtol=0)
    sharp = sharpened(images, torch.tensor([1.5]))
    torch.testing.assert_close(sharp - images, 1.5 * (images - soft), atol=1e-3, rtol=0)


def test_light_and_colours() -> None:
    image = torch.tensor([100.0, 50.0, 20.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 1)
    image[:, :, 1] = 0

    def colours(**changes: float) -> list[float]:
        values = {name: torch.tensor([value]) for name, value in changes.items()}
        return recoloured(image, NEUTRAL._replace(**values))[0, :, 0, 0].tolist()

    grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 20
    assert colours(brightness=1.2) == pytest.approx([120, 60, 24])
    assert colours(saturation=0.0) == pytest.approx([grey] * 3, rel=1e-4)
    assert colours(warmth=0.1) == pytest.approx([110, 50, 18])
    expected = [grey / 2 + 0.5 * (value - grey / 2) for value in (100, 50, 20)]
    assert colours(contrast=0.5) == pytest.approx(expected, rel=1e-4)


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


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("softness", 0, 1),
        ("sharpening", 0, 1.5),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.5, 1.5),
        ("warmth", -0.08, 0.08),
        ("noise", 0, 12),
    ],
)
def test_a_setting_reaches_from_end_to_end(name: str, low: float, high: float) -> None:
    drawn = draw_settings(20_000, torch.Generator().manual_seed(1))
    found = getattr(drawn, name).aminmax()
    assert found == pytest.approx((low, high), abs=1e-3 * (high - low))


def test_settings_are_as_far_apart_as_they_say() -> None:
    drawn = draw_settings(20_000, torch.Generator().manual_seed(1))
    assert drawn.brightness.aminmax() == pytest.approx((0.75, 1.25), abs=1e-3)
    size = drawn.zoom_rows.log() + drawn.zoom_columns.log()
    aspect = drawn.zoom_rows.log() - drawn.zoom_columns.log()
    assert size.aminmax() == pytest.approx((2 * -0.25, 2 * 0.45), abs=2e-3)
    assert aspect.aminmax() == pytest.approx((2 * -0.15, 2 * 0.15), abs=2e-3)
    for moved in (drawn.down, drawn.right):
        assert moved.aminmax() == pytest.approx((-3, 3), abs=5e-3)
    assert drawn.quality[drawn.quality > 0].aminmax() == pytest.approx((30, 95))
    shares = [(values > 0).float().mean().item() for values in drawn]
    names = ("softness", "sharpening", "noise", "quality")
    found = [shares[Settings._fields.index(name)] for name in names]
    assert found == pytest.approx([0.3, 0.3, 0.3, 0.7], abs=0.02)
    for values, neutral in ((drawn.down, 0), (drawn.contrast, 1), (drawn.warmth, 0)):
        assert (values == neutral).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(torch.stack(drawn)[2:]).triu(1).abs().max() < 0.03


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
    x = sharpened(resampled(x, settings), settings.sharpening)
    x = recoloured(x, settings)
    x = x + settings.noise.view(-1, 1, 1, 1) * normals[chosen].view_as(x)
    x = compressed(x.clamp(0, 255), settings.quality)
    expected = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(like_photos(images, chosen), expected)
