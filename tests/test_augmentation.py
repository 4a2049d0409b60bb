"""Augmentation pixel for pixel against a slow loop, and its draws."""

import numpy as np
import pytest
import torch

from images.augmentation import SHORT, Augmentation, Draws, augment, draw_epoch, pad

IMAGES = torch.randint(1, 256, (40, 32, 32, 3), dtype=torch.uint8)
FILL = torch.tensor([1, 2, 3], dtype=torch.uint8)


def slow_augment(image: np.ndarray, setting: Augmentation, draw: Draws) -> np.ndarray:
    """One image, one pixel at a time; `draw` holds a number in each field."""
    result = np.zeros((32, 32, 3), np.uint8)
    for y in range(32):
        for x in range(32):
            from_y = y + int(draw.top) - setting.crop_padding
            from_x = (31 - x if draw.flip else x) + int(draw.left)
            from_x -= setting.crop_padding
            if setting.padding_mode == "reflect":
                from_y, from_x = (31 - abs(31 - abs(at)) for at in (from_y, from_x))
            if 0 <= from_y < 32 and 0 <= from_x < 32:
                result[y, x] = image[from_y, from_x]
            in_rows = draw.cut_top <= y < draw.cut_top + setting.cutout
            in_columns = draw.cut_left <= x < draw.cut_left + setting.cutout
            if in_rows and in_columns:
                result[y, x] = FILL.numpy()
    return result


@pytest.mark.parametrize(
    "setting",
    [
        Augmentation(),
        Augmentation(crop_padding=0),
        Augmentation(padding_mode="reflect"),
        Augmentation(crop_padding=31, padding_mode="reflect", cutout=0),
        Augmentation(flip="none"),
        Augmentation(flip="alternate"),
        Augmentation(cutout=0),
        Augmentation(crop_padding=2, cutout=13),
        Augmentation(crop_padding=0, flip="none", cutout=0),
    ],
    ids=str,
)
def test_equals_a_slow_loop(setting: Augmentation) -> None:
    draws = draw_epoch(len(IMAGES), setting, seed=3, epoch=1)
    padded = pad(IMAGES, setting.crop_padding, setting.padding_mode)
    batch = augment(padded, draws, setting, FILL)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for position in range(len(IMAGES)):
        draw = Draws(*(values[position] for values in draws))
        expected = slow_augment(IMAGES[int(draw.image)].numpy(), setting, draw)
        assert np.array_equal(batch[position].permute(1, 2, 0).numpy(), expected)


def test_more_pixels_than_an_int32_can_number(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Augmentation(cutout=0)
    count = SHORT // 40**2 + 1
    padded = torch.tensor([7], dtype=torch.uint8).expand(count, 40, 40, 3)
    draws = draw_epoch(2, setting, seed=0, epoch=0)
    draws = draws._replace(image=torch.tensor([0, count - 1]))
    draws = draws.to(torch.device("cpu"))  # as int32, as loaders have them
    numbers: list[torch.Tensor] = []
    select = torch.Tensor.index_select

    def noted(images: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        numbers.append(index)
        return select(images, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", noted)
    augment(padded, draws, setting, FILL)
    [found] = numbers
    assert found.min() >= 0
    assert found.max() >= SHORT


def test_all_off_only_shuffles() -> None:
    setting = Augmentation(crop_padding=0, flip="none", cutout=0)
    draws = draw_epoch(len(IMAGES), setting, seed=0, epoch=0)
    batch = augment(pad(IMAGES, 0, "constant"), draws, setting, FILL)
    batch = batch.permute(0, 2, 3, 1)
    assert torch.equal(batch, IMAGES[draws.image])
    assert draws.image.sort().values.tolist() == list(range(len(IMAGES)))
    assert draws.image.tolist() != list(range(len(IMAGES)))


def test_draws_are_uniform_over_their_whole_range() -> None:
    draws = draw_epoch(40_000, Augmentation(), seed=0, epoch=0)
    for values, choices in (
        (draws.top, 9),
        (draws.left, 9),
        (draws.flip.long(), 2),
        (draws.cut_top, 25),
        (draws.cut_left, 25),
    ):
        counts = values.bincount().double()
        assert len(counts) == choices
        expected = 40_000 / choices
        # Chi-square over its degrees of freedom: 1 on average, far below 3 if uniform.
        assert ((counts - expected) ** 2 / expected).sum() / (choices - 1) < 3
    draws_of = torch.stack([draws.top, draws.left, draws.flip.long()]).double()
    correlation = torch.corrcoef(draws_of) - torch.eye(3)
    assert correlation.abs().max() < 0.03


def test_a_share_of_the_images_is_changed_like_photos_before_the_cutout() -> None:
    off = Augmentation()
    on = off._replace(photo_like=0.3)
    draws, drawn = (draw_epoch(8000, how, seed=0, epoch=0) for how in (off, on))
    assert all(map(torch.equal, draws[:-1], drawn[:-1]))  # all else stays as it was
    assert not draws.settings.any()
    assert (drawn.settings > 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert len(drawn.settings.unique()) > 2000
    draws, drawn = (
        draw_epoch(len(IMAGES), how, seed=0, epoch=0).span(0, 20) for how in (off, on)
    )
    padded = pad(IMAGES, 4, "reflect")
    plain, changed = (
        augment(padded, places, how, FILL)
        for places, how in ((draws, off), (drawn, on))
    )
    assert changed.is_contiguous(memory_format=torch.channels_last)
    differ = (changed != plain).flatten(1).any(1)
    assert torch.equal(differ, drawn.settings > 0)
    assert differ.any()
    cut = (plain == FILL.view(3, 1, 1)).all(1, keepdim=True).expand_as(plain)
    assert torch.equal(changed[cut], plain[cut])


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    def draw(seed: int, epoch: int) -> torch.Tensor:
        setting = Augmentation(photo_like=0.5)
        return torch.stack([*draw_epoch(500, setting, seed, epoch)])

    torch.manual_seed(1)
    once = draw(5, 7)
    torch.manual_seed(2)
    assert torch.equal(once, draw(5, 7))
    assert not torch.equal(once, draw(5, 8))
    assert not torch.equal(once, draw(6, 7))
    assert not torch.equal(draw(1, 2), draw(2, 1))


def test_alternate_flip_shows_both_sides_in_two_epochs() -> None:
    def flips(seed: int, epoch: int) -> torch.Tensor:
        draws = draw_epoch(1000, Augmentation(flip="alternate"), seed, epoch)
        return draws.flip[draws.image.argsort()]  # by image

    first = flips(0, 0)
    assert 450 < first.sum() < 550
    assert torch.equal(flips(0, 1), ~first)
    assert torch.equal(flips(0, 2), first)
    assert 400 < (flips(1, 0) ^ first).sum() < 600


def test_draws_of_a_known_seed_stay_what_they_are() -> None:
    draws = draw_epoch(6, Augmentation(), seed=0, epoch=0)
    assert draws.image.tolist() == [0, 4, 3, 5, 1, 2]
