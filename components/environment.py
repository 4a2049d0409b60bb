"""What the run stands on: device, precision, versions, commit."""

import ctypes
import math
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from components.errors import InputError

Precision = Literal[
    "auto",
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
]
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "tensorboard")
PROJECT = Path(__file__).resolve().parent.parent
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class Hardware(NamedTuple):
    """What a run trains on.

    Attributes:
        arguments: Those of `Trainer` that choose it, "auto" precision replaced.
        device: This process's device.
        world_size: Number of processes.
    """

    arguments: dict[str, Any]
    device: torch.device
    world_size: int


def choose_hardware(
    accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str
) -> Hardware:
    """Settle device and precision before anything else happens.

    Raises:
        InputError: This machine has not got what is asked for.
    """
    arguments: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
    }
    try:
        trainer = pl.Trainer(**arguments, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"--accelerator {accelerator} --devices {devices} --strategy {strategy}: "
            f"not possible here ({reason}); --accelerator cpu --devices 1 always is"
        ) from None
    device = trainer.strategy.root_device
    arguments["precision"] = resolve_precision(precision, device)
    return Hardware(arguments, device, trainer.world_size)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replace "auto" by the fastest precision that a device is good at.

    Raises:
        InputError: Half precision with 5 exponent bits is asked of a CPU.
    """
    if precision in ("16-mixed", "16-true") and device.type == "cpu":
        raise InputError(
            f"--precision {precision} needs a GPU, the device is a CPU; use bf16-mixed "
            "or 32-true"
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        ampere_or_newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16-mixed" if ampere_or_newer else "16-mixed"
    # Without native bf16 instructions a CPU emulates them, many times slower.
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "bf16-mixed"
    return "32-true"


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    By itself it gives every large block back and asks for it anew, and each step of a
    training on a CPU pays for the page faults of its activations: docs/speed.md. Other
    C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory(device: torch.device) -> float:
    """Bytes that new tensors may take; infinity where PyTorch cannot say."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch has taken from the device and uses for nothing is free as well.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + idle


def circumstances(hardware: Hardware) -> dict[str, str]:
    """What a result depends on beside its settings, to be kept with it."""
    return {
        "device": device_name(hardware.device),
        "precision": str(hardware.arguments["precision"]),
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def device_name(device: torch.device) -> str:
    """Name of the processor that trains, with the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        processor = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        return f"{processor}, {torch.get_num_threads()} threads"
    return device.type


def versions() -> str:
    """Versions of Python and of the packages that shape a result."""
    packages = [f"{package} {version(package)}" for package in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *packages])


def commit() -> str:
    """The project's commit, "-dirty" behind it when files differ; else "unknown"."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != PROJECT:
            return "unknown"  # an exported tree inside somebody else's repository
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def now(device: torch.device | str) -> float:
    """Seconds on a clock, read when the device has done what was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
