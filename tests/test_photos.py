"""The study of photos and of spoiled test images: what is done to them, and counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks import corruptions
from benchmarks.rows import read_rows
from benchmarks.studies import photos
from common.errors import InputError
from images.synthetic import draw_shapes
from run_files import LAST


@pytest.fixture
def images() -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(256, (4, 3, 32, 32), generator=draws) / 255


def spoiled(kind: str, strength: Any, images: Tensor) -> Tensor:
    function, _ = corruptions.CORRUPTIONS[kind]
    return function(strength, images, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        ("gaussian_noise", 0.0),
        ("shot_noise", 1e8),
        ("impulse_noise", 0.0),
        ("speckle_noise", 0.0),
        ("gaussian_blur", 0.01),
        ("brightness", 0.0),
        ("contrast", 1.0),
        ("saturate", (1.0, 0.0)),
        ("pixelate", 1.0),
    ],
)
def test_a_strength_of_nothing_changes_nothing(
    kind: str, nothing: Any, images: Tensor
) -> None:
    torch.testing.assert_close(
        spoiled(kind, nothing, images), images, atol=1e-3, rtol=0
    )


def test_noise_is_as_strong_as_asked(images: Tensor) -> None:
    noise = spoiled("gaussian_noise", 0.1, images) - images
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert spoiled("shot_noise", 50, grey).std().item() == pytest.approx(0.1, rel=0.05)
    speckles = spoiled("speckle_noise", 0.2, grey)
    assert speckles.std().item() == pytest.approx(0.1, rel=0.05)
    struck = spoiled("impulse_noise", 0.2, grey)
    for level in (0, 1):
        share = (struck == level).float().mean().item()
        assert share == pytest.approx(0.1, abs=0.02)


def test_colours_are_changed_as_in_hue_saturation_and_value() -> None:
    red = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
    assert spoiled("brightness", 0.2, red).flatten().tolist() == pytest.approx(
        [1.0, 0.5, 0.25]
    )
    grey = spoiled("saturate", (0.0, 0.0), red)
    assert grey.flatten().tolist() == pytest.approx([0.8] * 3)
    full = spoiled("saturate", (2.0, 0.0), red)
    assert full.flatten().tolist() == pytest.approx([0.8, 0.8 / 3, 0.0], abs=1e-6)


def test_colours_without_a_hue_are_those_of_hue_saturation_and_value() -> None:
    colours = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1], [0.1, 0.7, 0.3]])
    images = colours.T.view(1, 3, 2, 2)
    for kind, strength, channel in (("brightness", 0.3, 2), ("saturate", (2, 0.1), 1)):
        hsv = rgb_to_hsv(colours.numpy())
        gain, more = strength if isinstance(strength, tuple) else (1, strength)
        hsv[:, channel] = (gain * hsv[:, channel] + more).clip(0, 1)
        found = spoiled(kind, strength, images).view(3, 4).T
        np.testing.assert_allclose(found, hsv_to_rgb(hsv), atol=1e-6)


def test_detail_is_lost(images: Tensor) -> None:
    rough = images.std()
    assert spoiled("gaussian_blur", 1.0, images).std() < rough / 2
    assert spoiled("pixelate", 0.5, images).unfold(3, 2, 2).std(-1).max() < 1e-6
    levels = images.amin(1, keepdim=True).expand_as(images)
    assert spoiled("contrast", 0.15, levels).std() < 0.3 * levels.std()
    found = spoiled("jpeg_compression", 40, images)
    assert 0.01 < (found - images).abs().mean() < 0.3


def test_blur_and_pixels_are_those_of_scipy_and_pillow(images: Tensor) -> None:
    expected = gaussian_filter(images, (0, 0, 0.8, 0.8), mode="nearest", truncate=4)
    found = spoiled("gaussian_blur", 0.8, images)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=0)
    # From 32 to 30 and back: two pixels are dropped, the others stay.
    ramp = (torch.arange(32) / 255).expand(1, 3, 32, 32)
    left = (255 * spoiled("pixelate", 0.95, ramp))[0, 0, 0].round().tolist()
    assert left[:7] == [*range(7)]
    assert left[-6:] == [*range(26, 32)]
    assert len(set(left)) == 30


def test_contrast_is_about_the_mean_colour(images: Tensor) -> None:
    means = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(spoiled("contrast", 0.0, images), means)


def test_levels_are_the_nearest() -> None:
    shares = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0])
    assert corruptions.to_levels(shares).tolist() == [0, 0, 1, 255, 255]


def test_all_kinds_have_five_strengths() -> None:
    assert len(corruptions.spoilings()) == 2 + 5 * len(corruptions.CORRUPTIONS)


@pytest.mark.parametrize("kind", [*corruptions.CORRUPTIONS])
def test_the_severer_the_more_is_changed(kind: str) -> None:
    images = draw_shapes(16, seed=0)[0].permute(0, 3, 1, 2) / 255
    ways = corruptions.spoilings()
    changes = [
        (ways[kind, severity](images, torch.Generator().manual_seed(0)) - images)
        .abs()
        .mean()
        .item()
        for severity in range(1, 6)
    ]
    if kind == "saturate":  # first less and less of it, then more and more
        assert changes[0] < changes[1]
        changes = changes[2:]
    assert changes == sorted(changes)


def test_jpeg_of_quality_75_is_that(images: Tensor) -> None:
    found = corruptions.spoilings()[corruptions.JPEG_75, 0](images, torch.Generator())
    assert torch.equal(found, spoiled("jpeg_compression", 75, images))


@pytest.fixture
def collection(tmp_path: Path, image_folder: Path) -> Path:
    """Wide photos of the three classes, and of noise."""
    rng = np.random.default_rng(0)
    for source in sorted((image_folder / "test").rglob("*.png")):
        target = tmp_path / "photos" / "known" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(source))
        wide = np.pad(pixels, ((0, 0), (8, 8), (0, 0)), mode="reflect")
        Image.fromarray(wide).save(target)
    (tmp_path / "photos" / "unknown").mkdir()
    for number in range(4):
        noise = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / "unknown" / f"{number}.png")
    return tmp_path / "photos"


def test_a_part_of_the_test_images_is_of_all_classes(
    image_folder: Path, quick_train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_train(max_epochs=1, report=False)
    seen: list[list[int]] = []

    def spoiled_rows(
        model: Any, images: Tensor, labels: Tensor, kinds: Any
    ) -> list[Any]:
        assert len(images) == len(labels)
        seen.append(labels.bincount().tolist())
        return []

    monkeypatch.setattr(photos, "spoiled_rows", spoiled_rows)
    monkeypatch.setattr(photos, "table", lambda _: "")
    for limit in (6, 7, None):
        photos.photos("x.csv", None, str(image_folder), str(LAST), limit)
    assert seen == [[2, 2, 2], [2, 2, 2], [10, 10, 10]]


def test_photos_and_test_images_are_put_on_record(
    collection: Path,
    image_folder: Path,
    quick_train: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick_train(max_epochs=8, report=False)
    capsys.readouterr()
    asked: dict[str, Any] = {"ckpt_path": str(LAST), "data_dir": str(image_folder)}
    photos.photos("rows.csv", photos=str(collection), **asked)
    rows = read_rows(Path("rows.csv"), "kind", "acc")
    assert len(rows) == len(photos.READINGS) + len(corruptions.spoilings())
    of_photos = rows[rows["images"] == "photos"].set_index("kind")
    assert (of_photos["n"] == 30).all()
    assert (of_photos["n_unknown"] == 4).all()
    assert of_photos["acc"]["cut"] > 0.9
    assert of_photos["acc"]["cut"] == pytest.approx(of_photos["acc_classes"]["cut"])
    plain = rows[rows["kind"] == corruptions.PLAIN].iloc[0]
    assert plain["n"] == 30
    assert plain["acc"] > 0.9
    shown = capsys.readouterr().out
    assert "| squeezed, mirrored" in shown
    assert f"{100 * plain['acc']:.2f}" in shown
    lines = [[cell.strip() for cell in line.split("|")] for line in shown.split("\n")]
    [header] = [cells for cells in lines if "test images" in cells]
    assert header[2:5] == ["n", "run/last", "run/last, with flip TTA"]
    [contrast] = [cells for cells in lines if "contrast" in cells]
    found = rows[rows["kind"] == "contrast"]
    assert len(found) == 5
    assert contrast[3:5] == [f"{100 * found[c].mean():.2f}" for c in ("acc", "acc_tta")]
    other = rows.assign(weights="other")
    pd.concat([other, rows]).to_csv("both.csv", index=False)
    both = photos.table(Path("both.csv"))
    assert both.count("| other ") == 2  # predict.py's reading, and a column
    assert both.count("| run/last ") == len(photos.READINGS) + 1
    photos.photos("some.csv", **asked, kinds=["contrast"])
    some = read_rows(Path("some.csv"), "kind")
    assert some["acc"].tolist() == found["acc"].tolist()
    with pytest.raises(InputError, match="--kinds: 'fog' is none; give some of as"):
        photos.photos("some.csv", **asked, kinds=["fog"])
    (collection / "known" / "green").rename(collection / "known" / "shoe")
    with pytest.raises(InputError, match="the classes shoe, which the network"):
        photos.photos("other.csv", photos=str(collection), **asked)
    assert not Path("other.csv").exists()


def test_held_out_images_are_those_of_the_run(
    image_folder: Path, quick_train: Callable[..., Any]
) -> None:
    found = quick_train(max_epochs=2, val_size=40, seed=3, report=False)
    asked: dict[str, Any] = {"data_dir": str(image_folder), "held_out": True}
    photos.photos("x.csv", **asked, ckpt_path=str(LAST), kinds=[corruptions.PLAIN])
    [row] = read_rows(Path("x.csv"), "kind").to_dict("records")
    assert (row["images"], row["n"]) == ("held-out", 40)
    assert row["acc"] == pytest.approx(found["val/acc"])
    assert 0 < row["acc"] < 1
    photos.photos("x.csv", **asked, ckpt_path=str(LAST), kinds=["contrast"])
    lines = photos.table(Path("x.csv")).splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[-3:]]
    assert "Held-out images:" in lines
    shown = [f"{100 * row[name]:.2f}" for name in ("acc", "acc_tta")]
    kinds = ("as they are", "contrast")
    columns = [f"{kind}{tta}" for kind in kinds for tta in ("", ", with flip TTA")]
    assert cells[0][1:7] == ["weights", "n", *columns]
    assert cells[2][1:5] == ["run/last", "40", *shown]
    with pytest.raises(InputError, match="--held_out: no images were held out"):
        photos.photos("x.csv", **asked)
