"""The data module: split, statistics, and who is augmented."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from common.errors import InputError
from datamodule import CIFAR10DataModule, channel_statistics, stratified_split
from images.loader import EvalLoader
from machine import memory
from run_files import assert_same, weights

LABELS = torch.arange(1000) % 10


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=32)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("val_size", [0, 1, 10, 100, 137, 999])
def test_split_is_disjoint_complete_and_stratified(val_size: int) -> None:
    train, val = stratified_split(LABELS, val_size, seed=0)
    assert len(val) == val_size
    assert sorted(train.tolist() + val.tolist()) == list(range(1000))
    counts = LABELS[val].bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_split_keeps_the_shares_of_unequal_classes() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    _, val = stratified_split(labels, 50, seed=0)
    assert labels[val].bincount().tolist() == [30, 15, 5]


def test_split_leaves_an_image_of_every_class() -> None:
    labels = torch.tensor([0] * 5 + [1] + [2] * 94)
    for val_size in (50, 95, 97):
        train, val = stratified_split(labels, val_size, seed=0)
        assert len(val) == val_size
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(100))
        assert labels[train].bincount(minlength=3).min() >= 1


def test_a_class_with_one_image_to_train_on_is_named(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(image_folder, tmp_path / "own")
    for path in [*(tmp_path / "own/train/red").iterdir()][1:]:
        path.unlink()
    data = CIFAR10DataModule(data_dir="own", batch_size=8, val_size=60)
    data.setup()
    assert "class 'red' has one image to train on, of 1 in all; " in caplog.text
    assert "class 'blue'" not in caplog.text


@pytest.mark.parametrize(("asked", "count"), [("auto", 30), (30, 30), (0, 0)])
def test_val_folder_is_the_validation_set(
    asked: Any, count: int, image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "own")
    shutil.copytree(image_folder / "test", tmp_path / "own/val")
    data = CIFAR10DataModule(data_dir="own", batch_size=32, val_size=asked)
    data.setup()
    assert data.sizes() == {"train": 120, "val": count, "test": 30}
    assert data.val_size == count
    assert torch.equal(data.val_set[0], data.test_set[0][:count])


def test_val_folder_of_another_size_than_asked(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "own")
    shutil.copytree(image_folder / "test", tmp_path / "own/val")
    data = CIFAR10DataModule(data_dir="own", batch_size=32, val_size=12)
    with pytest.raises(InputError, match=r"--val_size 12: .*val has 30 images, and"):
        data.setup()


def test_fingerprint_is_of_training_and_validation_images(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "own")
    shutil.copytree(image_folder / "test", tmp_path / "own/val")
    found = []
    for changed in (None, "test", "val", "train"):
        if changed:
            path = min((tmp_path / "own" / changed).rglob("*.png"))
            Image.new("RGB", (32, 32), "white").save(path)
        data = CIFAR10DataModule(data_dir="own", batch_size=32)
        data.setup()
        found.append(data.fingerprint)
    assert found[0] == found[1]
    assert len({*found[1:]}) == 3


def test_split_stays_what_it_was() -> None:
    """Or accuracies on held-out images could not be compared with those on record."""
    assert stratified_split(LABELS, 10, seed=4)[1].tolist() == [
        *(175, 229, 267, 311, 392, 524, 708, 830, 853, 986)
    ]


def test_split_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    once = stratified_split(LABELS, 100, seed=4)[1]
    torch.manual_seed(2)
    assert torch.equal(once, stratified_split(LABELS, 100, seed=4)[1])
    assert not torch.equal(once, stratified_split(LABELS, 100, seed=5)[1])


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 200, (50, 32, 32, 3), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.double().div(255).flatten(0, 2)
    assert mean == pytest.approx(pixels.mean(0).tolist(), abs=5e-5)
    assert std == pytest.approx(pixels.std(0, correction=0).tolist(), abs=5e-5)


def test_statistics_of_one_colour_do_not_divide_by_zero() -> None:
    images = torch.full((4, 32, 32, 3), 7, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((7 / 255,) * 3, abs=5e-5)
    assert min(std) > 0


def test_sizes_and_classes(data: CIFAR10DataModule) -> None:
    assert data.classes == ("blue", "green", "red")
    assert data.val_size == 12  # a tenth of 120
    assert str(data) == "108 training, 12 validation and 30 test images of 3 classes"
    assert data.sizes() == {"train": 108, "val": 12, "test": 30}
    for split, batches in {"train": 3, "val": 1, "test": 1}.items():
        assert len(getattr(data, f"{split}_dataloader")()) == batches
    data.setup()  # a second time changes nothing
    assert len(data.train_set[0]) == 108


def gathered(loader: object) -> Tensor:
    assert isinstance(loader, EvalLoader)
    return torch.cat([images for images, _ in loader]).permute(0, 2, 3, 1)


def test_only_training_images_are_augmented(data: CIFAR10DataModule) -> None:
    assert torch.equal(gathered(data.val_dataloader()), data.val_set[0])
    assert torch.equal(gathered(data.test_dataloader()), data.test_set[0])
    originals = {image.numpy().tobytes() for image in data.train_set[0]}
    for images, _ in data.train_dataloader():
        for image in images.permute(0, 2, 3, 1):
            assert image.contiguous().numpy().tobytes() not in originals


def test_training_never_sees_the_held_out_images(image_folder: Path) -> None:
    data = CIFAR10DataModule(
        data_dir=str(image_folder),
        batch_size=27,
        crop_padding=0,
        flip="none",
        cutout=0,
    )
    data.setup()
    held_out = {image.numpy().tobytes() for image in data.val_set[0]}
    batches = torch.cat([images for images, _ in data.train_dataloader()])
    seen = {image.permute(1, 2, 0).numpy().tobytes() for image in batches}
    assert seen == {image.numpy().tobytes() for image in data.train_set[0]}
    assert not seen & held_out


def test_nothing_held_out(image_folder: Path) -> None:
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=60, val_size=0)
    data.setup()
    assert len(data.train_set[0]) == 120
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("batch_size", "val_size", "message"),
    [
        (
            32,
            118,
            "--val_size 118 leaves too few of 120 images for 3 classes; give",
        ),
        (109, 12, "--batch_size 109 is more than the 108 training images, 12 held out"),
    ],
)
def test_impossible_sizes(
    image_folder: Path, batch_size: int, val_size: int, message: str
) -> None:
    data = CIFAR10DataModule(
        data_dir=str(image_folder), batch_size=batch_size, val_size=val_size
    )
    with pytest.raises(InputError, match=message):
        data.setup()


def test_statistics_count_every_image_of_many() -> None:
    images = torch.zeros(25_000, 1, 1, 3, dtype=torch.uint8)
    images[15_000:] = 255
    assert channel_statistics(images)[0] == (0.4, 0.4, 0.4)


def test_range_test_and_training_share_images_but_not_the_epoch(
    data: CIFAR10DataModule,
) -> None:
    first, second = data.train_dataloader(), data.train_dataloader()
    first.set_epoch(3)
    first.resume_at(3, 1)
    assert second.images is first.images
    assert (second.epoch, second.resumed) == (0, (0, 0))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "datamodule"]


@pytest.mark.parametrize("missing", [0, 1])  # bytes
def test_images_that_do_not_fit_stay_in_host_memory(
    missing: int,
    data: CIFAR10DataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    needed = 3 * (108 * 40 * 40 + 42 * 32 * 32)  # with a border of 4 for training
    monkeypatch.setattr(memory, "free_memory", lambda _: 2 * needed - missing)
    data.trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False
    )
    with caplog.at_level(logging.INFO, "datamodule"):
        first, second = data.train_dataloader(), data.train_dataloader()
        data.val_dataloader()
        data.test_dataloader()
    assert first.on_host == second.on_host == bool(missing)
    assert len(told(caplog)) == missing  # once for all


def test_the_line_about_host_memory(
    data: CIFAR10DataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pixel = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)  # in the place of them all
    data.train_set = pixel.expand(10**6, 32, 32, 3), torch.zeros(10**6)
    monkeypatch.setattr(memory, "free_memory", lambda _: 8 * 2**30)
    with caplog.at_level(logging.INFO, "datamodule"):
        assert data.stays_on_host(torch.device("cuda", 1))
    assert told(caplog) == [
        "images stay in host memory: 4.5 GiB needed, 8.0 GiB free on cuda:1, half of "
        "it for the network"
    ]


def test_a_run_from_host_memory_ends_with_the_same_weights(
    quick_train: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quick_train(lr="auto", lr_steps=40)
    monkeypatch.setattr(memory, "free_memory", lambda _: 0)
    with caplog.at_level(logging.INFO, "datamodule"):
        quick_train(lr="auto", lr_steps=40, name="host")
    assert len(told(caplog)) == 1
    assert_same(weights(Path("runs/host/checkpoints/last.ckpt")), weights())


@pytest.mark.slow
def test_statistics_of_cifar10_are_the_known_constants(
    real_cifar10: CIFAR10DataModule,
) -> None:
    assert real_cifar10.mean == (0.4914, 0.4822, 0.4465)
    assert real_cifar10.std == (0.2470, 0.2435, 0.2616)
    assert len(real_cifar10.train_set[0]) == 45_000


def test_the_seed_decides_split_and_order(image_folder: Path) -> None:
    split, order = set[bytes](), set[bytes]()
    for seed in (0, 1):
        for val_size in (0, 12):
            data = CIFAR10DataModule(
                data_dir=str(image_folder), batch_size=32, seed=seed, val_size=val_size
            )
            data.setup()
            loader = data.train_dataloader()
            seen = data.val_set[0] if val_size else next(iter(loader))[0]
            (split if val_size else order).add(seen.numpy().tobytes())
    assert len(split) == len(order) == 2


def test_statistics_are_those_of_held_out_images_too(image_folder: Path) -> None:
    found = []
    for val_size in (0, 60):
        data = CIFAR10DataModule(
            data_dir=str(image_folder), batch_size=32, val_size=val_size
        )
        data.setup()
        found.append((data.mean, data.std))
    assert found[0] == found[1]


def test_a_batch_may_be_all_images_and_the_largest_val_size_is_allowed(
    image_folder: Path,
) -> None:
    CIFAR10DataModule(data_dir=str(image_folder), batch_size=108).setup()
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=3, val_size=117)
    data.setup()
    assert data.sizes()["train"] == 3
