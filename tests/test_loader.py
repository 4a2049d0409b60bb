"""Loaders: every image, in the right batch, for one process or several."""

from itertools import islice

import pytest
import torch

from components.augmentation import Augmentation
from components.loader import EvalLoader, TrainLoader

CPU = torch.device("cpu")
# Image k is all of value k, so that it can be told from its pixels.
IMAGES = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
IMAGES = IMAGES.contiguous()
LABELS = torch.arange(50) * 2
PLAIN = Augmentation(crop_padding=0, flip="none", cutout=0)


def train_loader(**options: int) -> TrainLoader:
    return TrainLoader(
        IMAGES,
        LABELS,
        batch_size=12,
        augmentation=PLAIN,
        fill=torch.zeros(3, dtype=torch.uint8),
        seed=0,
        device=CPU,
        **options,
    )


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
