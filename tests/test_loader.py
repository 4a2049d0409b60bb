"""Loaders: every image, in the right batch, for one process or several."""

import math
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from config import PaddingMode
from images import augmentation, loader
from images.augmentation import Augmentation, pad
from images.loader import Batch, EvalLoader, TrainLoader, ahead, fits
from machine import memory

CPU = torch.device("cpu")
# Image k is all of value k, so that it can be told from its pixels.
IMAGES = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
IMAGES = IMAGES.contiguous()
LABELS = torch.arange(50) * 2
PLAIN = Augmentation(crop_padding=0, flip="none", cutout=0)


def train_loader(**options: Any) -> TrainLoader:
    usual: dict[str, Any] = {"augmentation": PLAIN, "device": CPU}
    return TrainLoader(
        IMAGES,
        LABELS,
        batch_size=12,
        fill=torch.zeros(3, dtype=torch.uint8),
        seed=0,
        **usual | options,
    )


def assert_same_batches(ours: Iterator[Batch], theirs: Iterator[Batch]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our[0], their[0])
        assert torch.equal(our[1], their[1])
        assert our[0].stride() == their[0].stride()


def test_an_epoch_has_full_batches_of_different_images() -> None:
    loader = train_loader()
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    labels = torch.cat([labels for _, labels in batches])
    images = torch.cat([images for images, _ in batches])
    assert images.shape == (48, 3, 32, 32)
    assert len(labels.unique()) == 48
    assert torch.equal(images[:, 0, 0, 0] * 2, labels)


def test_iterating_twice_gives_the_same_and_another_epoch_another_order() -> None:
    loader = train_loader()
    first = torch.cat([labels for _, labels in loader])
    assert torch.equal(first, torch.cat([labels for _, labels in loader]))
    loader.sampler.set_epoch(1)
    second = torch.cat([labels for _, labels in loader])
    assert not torch.equal(first, second)
    loader.sampler.set_epoch(0)
    assert torch.equal(first, torch.cat([labels for _, labels in loader]))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_shares_of_all_processes_make_up_the_global_batch(world_size: int) -> None:
    whole = list(train_loader())
    shares = [
        list(train_loader(rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step, (images, labels) in enumerate(whole):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [7, 12, 50, 64])
def test_evaluation_sees_each_image_once(world_size: int, batch_size: int) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world_size):
        loader = EvalLoader(
            IMAGES,
            LABELS,
            batch_size=batch_size,
            device=CPU,
            rank=rank,
            world_size=world_size,
        )
        batches = list(loader)
        lengths.add(len(batches))
        assert len(batches) == len(loader)
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0] * 2, labels)
            assert 0 < len(labels) <= batch_size
            assert images.is_contiguous(memory_format=torch.channels_last)
            seen += labels.tolist()
    assert sorted(seen) == LABELS.tolist()
    assert len(lengths) == 1  # or a process would wait for ever


def test_stopping_early_leaves_no_trace() -> None:
    loader = train_loader()
    list(islice(loader, 2))
    assert torch.equal(next(iter(loader))[1], next(iter(train_loader()))[1])


def test_a_resumed_epoch_begins_in_its_middle() -> None:
    whole, resumed = train_loader(), train_loader()
    resumed.resume_at(epoch=1, batch=2)
    for epoch, first in ((0, 0), (1, 2), (2, 0)):
        whole.set_epoch(epoch)
        resumed.set_epoch(epoch)
        for ours, theirs in zip(resumed, list(whole)[first:], strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


def test_a_batch_smaller_than_the_processes_is_joined_to_another() -> None:
    shares = [
        list(
            EvalLoader(
                IMAGES[:3],
                LABELS[:3],
                batch_size=2,
                device=CPU,
                rank=rank,
                world_size=2,
            )
        )
        for rank in range(2)
    ]
    assert [[len(labels) for _, labels in share] for share in shares] == [[2], [1]]


def test_images_may_take_half_of_a_device() -> None:
    assert fits(5, free=10)
    assert not fits(6, free=10)
    assert fits(10**15, memory.free_memory(CPU))


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_of_host_memory_are_the_same(rank: int) -> None:
    options: dict[str, Any] = {"augmentation": Augmentation(), "rank": rank}
    resident = train_loader(world_size=2, **options)
    on_host = train_loader(world_size=2, on_host=True, **options)
    for resumed in (resident, on_host):
        resumed.resume_at(epoch=1, batch=2)
    for epoch in (0, 1, 2):
        resident.set_epoch(epoch)
        on_host.set_epoch(epoch)
        assert_same_batches(iter(on_host), iter(resident))


def test_evaluation_from_host_memory_is_the_same() -> None:
    resident, on_host = (
        EvalLoader(IMAGES, LABELS, batch_size=12, device=CPU, on_host=on_host)
        for on_host in (False, True)
    )
    assert_same_batches(iter(on_host), iter(resident))


def test_the_next_batch_is_made_while_one_is_used() -> None:
    made = [threading.Event() for _ in range(3)]

    def batches() -> Iterator[Batch]:
        for event in made:
            event.set()
            yield IMAGES, LABELS

    before = threading.active_count()
    coming = ahead(batches())
    next(coming)
    assert made[1].wait(timeout=10)
    assert not made[2].is_set()
    assert len(list(coming)) == 2
    assert threading.active_count() == before


def test_no_thread_outlives_an_epoch_that_is_broken_off() -> None:
    before = threading.active_count()
    batches = iter(train_loader(on_host=True))
    next(batches)
    assert threading.active_count() == before + 1
    del batches
    assert threading.active_count() == before


def test_what_goes_wrong_in_the_thread_is_raised() -> None:
    def batches() -> Iterator[Batch]:
        yield IMAGES, LABELS
        raise MemoryError("no room")

    coming = ahead(batches())
    next(coming)
    with pytest.raises(MemoryError, match="no room"):
        next(coming)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_the_border_is_the_same_part_by_part(
    mode: PaddingMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PART", 7)
    images = train_loader(augmentation=Augmentation(3, mode)).images
    assert torch.equal(images, pad(IMAGES, 3, mode))


@pytest.mark.parametrize("pixels", [2**31, 0])  # numbered in int32, in int64
@pytest.mark.parametrize(("block", "most"), [(1, 99), (2, 99), (16, 25), (16, 5)])
def test_blocks_of_any_size_give_the_same_batches(
    block: int, most: int, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"augmentation": Augmentation(flip="alternate")}
    expected = [train_loader(rank=rank, world_size=2, **options) for rank in (0, 1)]
    batches = [list(loader) for loader in expected]
    monkeypatch.setattr(loader, "BLOCK", block)
    monkeypatch.setattr(loader, "BLOCK_IMAGES", most)
    monkeypatch.setattr(augmentation, "SHORT", pixels)
    for rank in (0, 1):
        blocks = train_loader(rank=rank, world_size=2, **options)
        assert_same_batches(iter(blocks), iter(batches[rank]))
        blocks.resume_at(epoch=0, batch=3)
        assert_same_batches(iter(blocks), iter(batches[rank][3:]))


def test_an_operation_makes_batches_as_long_as_there_is_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    real = augmentation.augment

    def note(images: Any, draws: Any, *others: Any) -> Any:
        made.append(len(draws.image))
        return real(images, draws, *others)

    monkeypatch.setattr(loader, "augment", note)
    for options, sizes in (({}, [48]), ({"on_host": True}, [12] * 4)):
        made.clear()
        list(train_loader(**options))
        assert made == sizes
    monkeypatch.setattr(loader, "BLOCK_IMAGES", 30)
    made.clear()
    list(train_loader())
    assert made == [24, 24]


@pytest.mark.gpu
def test_host_memory_feeds_a_gpu_the_same_batches() -> None:
    options: dict[str, Any] = {"augmentation": Augmentation()}
    options["device"] = device = torch.device("cuda", 0)
    resident = train_loader(**options)
    on_host = train_loader(on_host=True, **options)
    assert on_host.images.device == CPU
    for images, _ in on_host:
        assert images.device == device
    assert_same_batches(iter(on_host), iter(resident))
    evaluation = EvalLoader(IMAGES, LABELS, batch_size=12, device=device, on_host=True)
    seen = torch.cat([images for images, _ in evaluation])
    assert seen.device == device
    assert torch.equal(seen.permute(0, 2, 3, 1).cpu(), IMAGES)


@pytest.mark.gpu
def test_free_memory_of_a_gpu_counts_what_pytorch_does_not_use() -> None:
    device = torch.device("cuda", 0)
    before = memory.free_memory(device)
    assert 0 < before < math.inf
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - memory.free_memory(device) == pytest.approx(2**28, rel=0.1)
    del held  # PyTorch keeps it for the next one
    assert memory.free_memory(device) == pytest.approx(before, rel=0.01)
