"""What a result depends on beside its settings: machine, versions, commit, clock."""

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from machine.hardware import Hardware

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "tensorboard")
PROJECT = Path(__file__).resolve().parent.parent


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
