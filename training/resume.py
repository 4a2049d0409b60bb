"""Resuming a run: which checkpoint, whether it is whole, and whether it fits."""

import io
import logging
import os
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from common.errors import InputError, is_out_of_memory
from common.files import unsealed
from config import LIMITS, MARKS, PATHS, SHAPING, Config

log = logging.getLogger(__name__)

Checkpoint = dict[str, Any]

WEIGHTS_SUFFIX = ".safetensors"  # of files from which no run goes on


def read_checkpoint(
    path: Path, flag: str = "ckpt_path", *, to_resume: bool = True
) -> Checkpoint:
    """Read a checkpoint of this project; nothing in it is ever run.

    Args:
        path: The file.
        flag: The flag that named it, for messages.
        to_resume: Whether it must hold all that a run needs to go on, or the network
            only.

    Raises:
        InputError: It is not there, damaged, or of something else.
    """
    if not path.is_file():
        raise InputError(f"--{flag} {path}: no such file; give a checkpoint or 'last'")
    if path.suffix == WEIGHTS_SUFFIX:
        raise InputError(
            f"--{flag} {path}: weights only, without the state that a resume needs; "
            "give a checkpoint that train.py has written"
        )
    try:
        content = io.BytesIO(unsealed(path.read_bytes()))
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign files
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise InputError(
            f"--{flag} {path}: damaged, or not a checkpoint of this project "
            f"({reason or type(error).__name__}); give another"
        ) from None
    needed = ["hyper_parameters", "state_dict"]
    needed += ["config", "optimizer_states"] if to_resume else []
    if not isinstance(checkpoint, dict) or not all(key in checkpoint for key in needed):
        raise InputError(
            f"--{flag} {path}: not a checkpoint of this project; give one that "
            "train.py has written"
        )
    return checkpoint


def read_newest(paths: list[Path]) -> tuple[Path, Checkpoint] | None:
    """The first readable one of several checkpoints; None if there are none.

    Raises:
        InputError: There are some, and all are damaged.
    """
    reasons = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            log.warning(f"{reason.removesuffix('; give another')}")
        if reasons:
            log.warning(f"resuming from {path} instead")
        return path, checkpoint
    if reasons:
        raise InputError(reasons[0])
    return None


def check_same_run(
    checkpoint: Checkpoint, config: Config, images: Any, world_size: int
) -> None:
    """Refuse to resume with other settings, images or processes than the checkpoint's.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        config: The flags, with `lr` as the user gave it.
        images: A data module that is set up.
        world_size: Number of processes.

    Raises:
        InputError: Something that shapes the run is not what it was.
    """
    known = checkpoint["hyper_parameters"]
    for name in ("classes", "mean", "std"):
        there, here = list(known.get(name, ())), list(getattr(images, name))
        if there != here:
            raise InputError(
                f"--data_dir {config.data_dir}: the {name} of the images are {here}, "
                f"the checkpoint's {there}; give the images that it was trained with"
            )
    # A checkpoint of before a flag was there was trained with its default.
    before = asdict(Config()) | checkpoint["config"]
    for flag in SHAPING:
        now, then = getattr(config, flag), before[flag]
        if flag not in PATHS or not _end_alike(now, then):
            _check_equal(flag, now, then, MARKS[flag].reason)
    if config.lr != "auto":
        _check_equal("lr", config.lr, before["lr"], "")
    # Drawn shapes follow from the seed; another CPU may round a pixel otherwise.
    is_drawn = config.data == "synthetic"
    if not is_drawn and checkpoint.get("images") != images.fingerprint:
        raise InputError(
            f"--data_dir {config.data_dir}: the pixels or labels of the training "
            f"images have the checksum {images.fingerprint}, the checkpoint's "
            f"{checkpoint.get('images')}; give the images that it was trained with"
        )
    if checkpoint.get("world_size") != world_size:
        raise InputError(
            f"--devices: there are {world_size} processes, but the checkpoint was "
            f"trained with {checkpoint.get('world_size')}; give the old number"
        )


def _end_alike(*paths: str | Path | None) -> bool:
    """Whether one path may be the other, seen from a folder or a machine of its own."""
    if None in paths:
        return False
    # It splits at both separators: the run may come from Windows.
    one, other = (PureWindowsPath(os.path.normpath(str(path))).parts for path in paths)
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]


def _check_equal(flag: str, now: Any, before: Any, reason: str) -> None:
    # Of batches, 1 is one and 1.0 is all.
    if before != now or (flag in LIMITS and type(before) is not type(now)):
        raise InputError(
            f"--{flag} is {now}, but the checkpoint was trained with {before}; "
            f"{reason or 'a run is resumed as it began'}: give the old value, or "
            "start anew"
        )
