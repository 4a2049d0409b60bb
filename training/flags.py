"""The values that each flag of `train.py` may have."""

import math
from collections.abc import Callable
from typing import Any

from common.errors import InputError
from images.augmentation import IMAGE_SIZE
from training.lr_finder import MIN_STEPS


def _whole(low: int, high: float = math.inf) -> tuple[Callable[[Any], bool], str]:
    text = f"at least {low}" if high == math.inf else f"from {low} to {high:.0f}"
    return lambda value: low <= value <= high, f"a whole number, {text}"


def _some_batches(value: float) -> bool:
    """A number of batches (int) or a share of them (float)."""
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


BATCHES = "a whole number of batches, or a share above 0 and up to 1.0"

# flag: (whether a value is right, what a right value is)
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "devices": (
        lambda value: (
            str(value) == "-1"
            or (str(value) not in ("0", "") and not str(value).startswith("-"))
        ),
        "at least 1, a list such as 0,1, or -1 or auto for all",
    ),
    "num_nodes": _whole(1),
    "max_epochs": _whole(1),
    "batch_size": _whole(1),
    "lr": (
        lambda value: value == "auto" or (math.isfinite(value) and value > 0),
        "a finite number above 0, or auto",
    ),
    "lr_steps": _whole(MIN_STEPS),
    "weight_decay": (
        lambda value: math.isfinite(value) and value >= 0,
        "a finite number, at least 0",
    ),
    "label_smoothing": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "ema_decay": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "base_width": _whole(1, 512),  # 512 makes 420 million parameters
    "seed": _whole(0, 2**32 - 1),
    "val_size": (
        lambda value: value == "auto" or value >= 0,
        "a whole number, at least 0, or auto",
    ),
    "crop_padding": _whole(0, IMAGE_SIZE - 1),  # reflection reaches no further
    "cutout": _whole(0, IMAGE_SIZE),
    "ckpt_every_n_steps": _whole(0),
    "fast_dev_run": (lambda value: value >= 0, "true, false or a number of batches"),
    "limit_train_batches": (_some_batches, BATCHES),
    "limit_val_batches": (
        lambda value: value == 0 or _some_batches(value),
        f"{BATCHES}, or 0 for none",
    ),
    "limit_test_batches": (
        lambda value: value == 0 or _some_batches(value),
        f"{BATCHES}, or 0 for none",
    ),
}


def check_flags(flags: dict[str, Any]) -> None:
    """Check every value that no type can.

    Raises:
        InputError: A value is out of its range.
    """
    for flag, (is_right, right) in RULES.items():
        if not is_right(flags[flag]):
            raise InputError(f"--{flag} must be {right}, got {flags[flag]!r}")
    if flags["overwrite"] and flags["ckpt_path"] is not None:
        raise InputError(
            "--overwrite and --ckpt_path contradict each other; give one of them"
        )


def check_processes(flags: dict[str, Any], world_size: int, device_type: str) -> None:
    """Check what depends on the processes, before any image is read.

    Args:
        flags: All flags.
        world_size: Number of processes.
        device_type: What each of them trains on, such as "cuda".

    Raises:
        InputError: They cannot share a batch evenly, or batch statistics at all.
    """
    batch_size = flags["batch_size"]
    if batch_size % world_size:
        raise InputError(
            f"--batch_size {batch_size} cannot be shared by {world_size} processes; "
            "give a multiple of their number"
        )
    if flags["sync_batchnorm"] and device_type != "cuda":  # PyTorch has it for no other
        raise InputError(
            f"--sync_batchnorm needs NVIDIA GPUs, the device is a {device_type}; leave "
            "it out"
        )


def check_images(
    flags: dict[str, Any], images: dict[str, int], world_size: int
) -> None:
    """Check what depends on the number of images, before the training begins.

    Args:
        flags: All flags.
        images: How many there are in "train", "val" and "test".
        world_size: Number of processes.

    Raises:
        InputError: A process would have nothing to evaluate, or a share of the batches
            is less than one.
    """
    for split, count in images.items():
        if 0 < count < world_size:
            raise InputError(
                f"--devices: {count} {split} images cannot be shared by {world_size} "
                "processes; give fewer processes or more images"
            )
        full, rest = divmod(count, flags["batch_size"])
        batches = full if split == "train" or not rest else full + 1
        share = flags[f"limit_{split}_batches"]
        if isinstance(share, float) and batches and 0 < share * batches < 1:
            raise InputError(
                f"--limit_{split}_batches {share} of {batches} batches is less than "
                f"one; give at least {1 / batches:.3g}, or a whole number"
            )
