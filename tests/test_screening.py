"""The design: balanced, and every row what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks import screening
from benchmarks.rows import read_rows
from benchmarks.screening import (
    FACTORS,
    Training,
    best_loss,
    build_net,
    cutmix,
    design,
    jitter,
    whitening_filters,
)
from common.errors import InputError


def signs(rows: list[dict[str, Any]]) -> torch.Tensor:
    levels = [[FACTORS[name].index(row[name]) for name in FACTORS] for row in rows]
    return 2.0 * torch.tensor(levels) - 1


def test_no_factor_is_mixed_with_another_nor_with_a_pair() -> None:
    half, whole = signs(design()[:12]), signs(design())
    assert torch.equal(half.T @ half, 12 * torch.eye(11))
    assert torch.equal(half.sum(dim=0), torch.zeros(11))
    assert torch.equal(whole.T @ whole, 24 * torch.eye(11))
    pairs = whole[:, :, None] * whole[:, None, :]
    assert (torch.einsum("rf,rij->fij", whole, pairs) == 0).all()


def test_whitened_patches_are_not_correlated() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(3, 3)
    images = F.avg_pool2d(torch.randn(200, 3, 34, 34), 3, 1)
    images = torch.einsum("cd,ndhw->nchw", mixing, images)
    filters = whitening_filters(images, 60)
    assert torch.allclose(filters.flatten(1).norm(dim=1), torch.ones(60), atol=1e-5)
    assert torch.equal(filters[27:54], -filters[:27])
    answers = F.conv2d(images, filters[:27]).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(answers) - torch.eye(27)
    assert correlation.abs().max() < 1e-2


def test_a_row_starts_as_it_says() -> None:
    row = design()[0] | {"dirac": True, "residual_gain": 0.2, "norm_momentum": 0.3}
    net = build_net(row, torch.randn(20, 3, 32, 32), 64)
    maps = torch.randn(2, 64, 8, 8)
    layer: Any = net.layer1.get_submodule("0")
    assert torch.allclose(layer(maps)[:, :64], maps, atol=1e-6)
    norm: Any = net.residual3.get_submodule("1.1")
    assert norm.weight.unique().tolist() == pytest.approx([0.2])
    assert norm.momentum == 0.3
    assert sum(weight.numel() for weight in net.parameters()) == 6_573_120


def test_boxes_come_from_the_image_whose_label_is_given() -> None:
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    mixed, others, share = cutmix(images, labels, 1.0, generator)
    assert 0 < share < 1
    for image, label, other in zip(mixed, labels, others, strict=True):
        foreign = (image == other).float().mean().item()
        assert foreign == pytest.approx(1.0 if label == other else share)
    assert cutmix(images, labels, 0.0, generator)[2] == 0


def test_jitter_changes_contrast_and_brightness_within_its_bounds() -> None:
    images = torch.randn(100, 3, 32, 32)
    changed = jitter(images, 0.15, torch.Generator().manual_seed(0))
    gain = changed.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    shift = changed.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert 0.85 < gain.min() < 0.88 < 1.12 < gain.max() < 1.15
    assert -0.3 < shift.min() < -0.25 < 0.25 < shift.max() < 0.3
    assert jitter(images, 0.0, torch.Generator()) is images


def test_the_best_loss_does_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (500,))
    scores = torch.randn(500, 10) + 2 * F.one_hot(labels, 10)
    best = best_loss(scores, labels)
    assert best < F.cross_entropy(scores, labels)
    assert best_loss(scores / 4, labels) == pytest.approx(best, abs=1e-4)


def test_rows_are_trained_once_and_go_on_behind_an_epoch(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "HELD_OUT", 20)
    monkeypatch.setitem(screening.FACTORS, "batch_size", (32, 16))
    monkeypatch.setattr(screening, "LRS", {32: 0.01, 16: 0.01})
    quick: dict[str, Any] = {"epochs": 2, "base_width": 4, "data_dir": "images"}
    Path("images").symlink_to(image_folder)
    screening.screening([0, 13], "work", "whole.csv", **quick)
    train_epoch = Training.train_epoch

    def stop_in_second(training: Training) -> None:
        if training.epoch == 1:
            raise KeyboardInterrupt
        train_epoch(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_epoch", stop_in_second)
        with pytest.raises(KeyboardInterrupt):
            screening.screening([0], "parts", "parts.csv", **quick)
    screening.screening([0], "parts", "parts.csv", **quick)
    whole, [part] = read_rows(Path("whole.csv")), read_rows(Path("parts.csv"))
    assert [row["row"] for row in whole] == ["0", "13"]
    assert part == whole[0]
    assert whole[0]["val/loss"] != whole[1]["val/loss"]
    with pytest.raises(InputError, match="rows must be from 0 to 23, got 24"):
        screening.screening([24], "work", "whole.csv", **quick)
