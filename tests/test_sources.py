"""The sources of images but for downloads and image folders: drawn shapes."""

from pathlib import Path

import torch

from images.sources import fetch, load
from images.synthetic import SHAPES, draw_shapes


def test_shapes_are_varied_balanced_and_repeatable() -> None:
    images, labels = draw_shapes(100, seed=1)
    assert images.shape == (100, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [10] * len(SHAPES)
    assert torch.equal(images, draw_shapes(100, seed=1)[0])
    assert not torch.equal(images, draw_shapes(100, seed=2)[0])
    spread = images.double().std(dim=0)  # of each pixel over the images
    assert spread.min() > 30


def test_shapes_of_a_known_seed_stay_what_they_are() -> None:
    """Records of runs on them would not compare otherwise."""
    images, labels = draw_shapes(20, seed=1)
    assert labels[:4].tolist() == [5, 3, 2, 1]
    known = torch.tensor(
        [
            [220, 255, 218, 205, 255, 209, 184],
            [51, 59, 26, 0, 0, 72, 63],
            [96, 62, 27, 75, 76, 46, 36],
            [163, 179, 153, 80, 92, 128, 201],
        ]
    )
    assert (images[:4, 16, ::5, 0].int() - known).abs().max() <= 1


def test_synthetic_source_has_the_documented_sizes(tmp_path: Path) -> None:
    fetch("synthetic", tmp_path / "nowhere")
    images = load("synthetic", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert images.train[0].shape == (5000, 32, 32, 3)
    assert images.test[0].shape == (1000, 32, 32, 3)
    assert images.classes == SHAPES
    train = {image.numpy().tobytes() for image in images.train[0]}
    assert not any(image.numpy().tobytes() in train for image in images.test[0])
