"""What a result depends on beside its settings: machine, versions, commit, clock."""

import os
import platform
import re
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
# Results are files of the project, which change with every run that is put on record.
CODE_ONLY = ("--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!*.md")


def circumstances(hardware: Hardware) -> dict[str, str]:
    """What a result depends on beside its settings, to be kept with it."""
    return {
        "device": device_name(hardware.device),
        "precision": str(hardware.arguments["precision"]),
        "versions": versions(hardware.device),
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


def versions(device: torch.device) -> str:
    """Versions of Python, the packages that shape a result, and a GPU's libraries."""
    found = [f"python {platform.python_version()}"]
    found += [f"{package} {version(package)}" for package in PACKAGES]
    if device.type == "cuda":
        found.append(f"cuda {torch.version.cuda}")
        found.append(f"cudnn {torch.backends.cudnn.version()}")
        found.append(f"driver {_driver()}")
    return ", ".join(found)


def _driver() -> str:
    """Version of NVIDIA's driver; PyTorch does not know it."""
    query = ["--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return _output("nvidia-smi", *query).splitlines()[0]  # a line a GPU
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def commit() -> str:
    """The project's commit, if that is known, else "unknown".

    Behind it stands "-dirty" when code differs, and "-archive" for what was exported,
    as GitHub's "Download ZIP" is: there nobody can tell.
    """
    try:
        # An exported tree may be inside somebody else's repository.
        if Path(_git("rev-parse", "--show-toplevel")) == PROJECT:
            head = _git("rev-parse", "HEAD")
            return f"{head}-dirty" if _git("status", *CODE_ONLY) else head
    except (OSError, subprocess.SubprocessError):
        pass
    archived = PROJECT / ".git_archival.txt"  # `git archive` writes the commit into it
    text = archived.read_text(encoding="utf-8") if archived.is_file() else ""
    node = re.fullmatch(r"node: ([0-9a-f]{40})\n", text)
    return f"{node[1]}-archive" if node else "unknown"


def _git(*arguments: str) -> str:
    # Without a lock of the index, which would stay if git were ended by the time limit.
    return _output("git", "--no-optional-locks", "-C", str(PROJECT), *arguments)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return os.fsdecode(done.stdout).strip()  # a path may be of any bytes


def now(device: torch.device | str) -> float:
    """Seconds on a clock, read when the device has done what was asked of it."""
    if torch.device(device).type in ("cuda", "mps"):
        torch.accelerator.synchronize()
    return time.perf_counter()
