"""Augmentation: drawn for each image, applied to a whole batch.

What happens to an image is a pure function of (seed, epoch, position): the draws of a
whole epoch come from one generator on the CPU, so they are the same on every device, in
every process, and after a resume.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import IMAGE_SIZE, Flip, PaddingMode
from images.photo_like import ROWS, like_photos

SHORT = 2**31  # pixels that an int32 can number


class Augmentation(NamedTuple):
    """Which augmentations are on; zero or "none" switches one off.

    Attributes:
        crop_padding: Pixels of border from which a 32x32 window is cut.
        padding_mode: What the border shows: black, or the image mirrored at its edge.
        flip: Mirror left and right with probability one half, drawn anew in every
            epoch, or drawn once and turned over from epoch to epoch, so that two epochs
            show both sides of every image (Jordan, arXiv 2404.00498).
        cutout: Side, in pixels, of the square that is painted in the mean colour
            (DeVries & Taylor, arXiv 1708.04552; here it always lies wholly inside).
        photo_like: Share of the images that are changed like photos, before that.
    """

    crop_padding: int = 4
    padding_mode: PaddingMode = "reflect"
    flip: Flip = "alternate"
    cutout: int = 8
    photo_like: float = 0.0


class Draws(NamedTuple):
    """An epoch's image order and augmentation; every tensor has shape (N,)."""

    image: Tensor  # which image stands at this position
    top: Tensor  # crop window, in the padded image
    left: Tensor
    flip: Tensor  # bool
    cut_top: Tensor  # cutout square, in the cropped image
    cut_left: Tensor
    settings: Tensor  # row of the table of `photo_like`; 0 for no change

    def share(self, batch_size: int, rank: int, world_size: int) -> "Draws":
        """What one process takes of every whole batch, batch after batch."""
        whole = len(self.image) // batch_size * batch_size
        parts = (
            values[:whole].view(-1, world_size, batch_size // world_size)
            for values in self
        )
        return Draws(*(part[:, rank].flatten() for part in parts))

    def span(self, start: int, stop: int) -> "Draws":
        """The draws of the positions from `start` up to `stop`."""
        return Draws(*(values[start:stop] for values in self))

    def to(self, device: torch.device) -> "Draws":
        """The same draws, as int32, on another device: sent as one tensor."""
        packed = torch.stack([values.int() for values in self])
        draws = Draws(*packed.to(device))
        return draws._replace(flip=draws.flip.bool())


def draw_epoch(count: int, augmentation: Augmentation, seed: int, epoch: int) -> Draws:
    """Draw the order and the augmentation of `count` images for one epoch."""
    generator = _generator(seed, epoch)

    def integers(upper: int) -> Tensor:  # uniform over 0..upper, both included
        return torch.randint(upper + 1, (count,), generator=generator)

    draws = Draws(
        image=torch.randperm(count, generator=generator),
        top=integers(2 * augmentation.crop_padding),
        left=integers(2 * augmentation.crop_padding),
        flip=integers(int(augmentation.flip == "random")).bool(),
        cut_top=integers(IMAGE_SIZE - augmentation.cutout),
        cut_left=integers(IMAGE_SIZE - augmentation.cutout),
        settings=torch.zeros(count, dtype=torch.int64),
    )
    if augmentation.photo_like:
        changed = torch.rand(count, generator=generator) < augmentation.photo_like
        draws = draws._replace(settings=changed * (1 + integers(ROWS - 1)))
    if augmentation.flip != "alternate":
        return draws
    first = torch.randint(2, (count,), generator=_generator(seed)).bool()
    return draws._replace(flip=first[draws.image] ^ bool(epoch % 2))


def _generator(*entropy: int) -> torch.Generator:
    [seed] = np.random.SeedSequence(entropy).generate_state(1)
    return torch.Generator().manual_seed(int(seed))


def pad(images: Tensor, padding: int, mode: PaddingMode) -> Tensor:
    """Add a border: (N, 32, 32, 3) -> (N, 32 + 2 padding, 32 + 2 padding, 3).

    Reflection does not repeat the edge, so it reaches 31 pixels at most.
    """
    if mode == "constant":
        return F.pad(images, (0, 0, padding, padding, padding, padding))
    place = _reflected(-padding, IMAGE_SIZE + padding, images.device)
    return images[:, place][:, :, place]


def shift(images: Tensor, pixels: int) -> Tensor:
    """Move images (B, 3, 32, 32) along their diagonal; their edges are reflected."""
    place = _reflected(pixels, IMAGE_SIZE + pixels, images.device)
    return images[:, :, place][..., place]


def _reflected(start: int, stop: int, device: torch.device) -> Tensor:
    """Rows of an image from `start` up to `stop`, those beyond its edges reflected."""
    last = IMAGE_SIZE - 1
    place = torch.arange(start, stop, device=device)
    return last - (last - place.abs()).abs()


def augment(
    padded: Tensor, draws: Draws, augmentation: Augmentation, fill: Tensor
) -> Tensor:
    """Gather, crop, flip, change and cut out images, without waiting for the device.

    Args:
        padded: All images, uint8 (N, S, S, 3), as `pad` returns them.
        draws: The B positions that are wanted, on the same device.
        augmentation: What they were drawn for.
        fill: Colour of the square, uint8 (3,).

    Returns:
        uint8 (B, 3, 32, 32) in channels_last memory order.
    """
    side = padded.shape[1]
    # The number of every pixel of the batch takes more memory than the batch.
    short = padded.numel() // 3 <= SHORT
    dtype = torch.int32 if short else torch.int64
    ramp = torch.arange(IMAGE_SIZE, dtype=dtype, device=padded.device)
    mirrored = torch.where(draws.flip[:, None], IMAGE_SIZE - 1 - ramp, ramp)
    rows = draws.image[:, None] * side + draws.top[:, None] + ramp  # (B, 32)
    columns = draws.left[:, None] + mirrored  # (B, 32)
    pixels = (rows[:, :, None] * side + columns[:, None, :]).flatten()
    batch = padded.view(-1, 3).index_select(0, pixels)
    batch = batch.view(-1, IMAGE_SIZE, IMAGE_SIZE, 3)
    if augmentation.photo_like:
        batch = like_photos(batch, draws.settings)
    if cutout := augmentation.cutout:
        row = ramp - draws.cut_top[:, None]
        column = ramp - draws.cut_left[:, None]
        in_rows = (row >= 0) & (row < cutout)
        in_columns = (column >= 0) & (column < cutout)
        square = in_rows[:, :, None] & in_columns[:, None, :]  # (B, 32, 32)
        batch = torch.where(square[..., None], fill, batch)
    return batch.permute(0, 3, 1, 2)
