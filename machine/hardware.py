"""Devices, processes and precision, and whether they can be used."""

import logging
import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from pytorch_lightning.utilities import rank_zero_only

from common.errors import InputError
from config import Precision

log = logging.getLogger(__name__)

NEEDS_SCRIPT = (
    "several processes are started from a script, not forked, spawned or from "
    "interactive Python; use python train.py --devices 2 --strategy ddp, or one device"
)
# What starts processes, and what its numbers of processes and of machines are called.
COUNTS = {
    "torchrun": ("--nproc_per_node", "--nnodes"),
    "srun": ("--ntasks-per-node", "--nodes"),
}


class Hardware(NamedTuple):
    """Devices and precision of a run.

    Attributes:
        arguments: Those of `Trainer` that choose it, "auto" precision replaced.
        device: This process's device.
        world_size: Number of processes.
    """

    arguments: dict[str, Any]
    device: torch.device
    world_size: int


def choose_hardware(
    accelerator: str,
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Precision = "auto",
) -> Hardware:
    """Settle device and precision before anything else happens.

    With "auto", a GPU that cannot be used is named, and the CPU taken.

    Raises:
        InputError: This machine has not got what is asked for, or the environment has
            flags for Lightning.
    """
    _check_environment()
    arguments: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
    }
    asked = f"--accelerator {accelerator} --devices {devices} --strategy {strategy}"
    trainer = _first_trainer(arguments, asked)
    _check_launcher(trainer, asked)
    if trainer.world_size == 1:  # whatever another program's RANK says
        ranked: Any = rank_zero_only
        ranked.rank = 0
    device = trainer.strategy.root_device
    is_nvidia = device.type == "cuda" or (
        accelerator == "auto" and shutil.which("nvidia-smi") is not None
    )
    if is_nvidia and (problem := cuda_problem(device.index)):
        if accelerator != "auto":
            raise InputError(f"{asked}: {problem}, or give --accelerator cpu")
        log.warning(f"continuing without the GPU: {problem}")
        if device.type == "cuda":
            return choose_hardware("cpu", devices, num_nodes, strategy, precision)
    arguments["precision"] = resolve_precision(precision, device)
    return Hardware(arguments, device, trainer.world_size)


def _check_environment() -> None:
    """Refuse the arguments that Lightning would take from the environment.

    They would change a training, and no record would say so.
    """
    given = sorted(name for name in os.environ if name.startswith("PL_TRAINER_"))
    if given:
        raise InputError(
            f"{given[0]} in the environment would change what Lightning does; unset "
            "it, and give a flag of this program"
        )


def _first_trainer(arguments: dict[str, Any], asked: str) -> pl.Trainer:
    """A trainer on what is asked for, if this machine has it."""
    # Whoever asks for the CPU knows it; this also holds for the Trainers to come.
    warnings.filterwarnings("ignore", "GPU available but not used")
    try:
        return pl.Trainer(**arguments, logger=False, enable_checkpointing=False)
    except (
        ImportError,  # of what a strategy needs
        MisconfigurationException,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        accelerator = arguments["accelerator"]
        wants_nvidia = accelerator in ("gpu", "cuda") and sys.platform != "darwin"
        if wants_nvidia and (problem := cuda_problem()):
            raise InputError(f"{asked}: {problem}, or give --accelerator cpu") from None
        if "not compatible with an interactive" in reason:
            raise InputError(f"{asked}: {NEEDS_SCRIPT}") from None
        way = "--accelerator cpu --devices 1 always is"
        if "--ntasks" in reason:  # of an allocation of Slurm's, without srun
            way = "start it with srun, or with env -u SLURM_NTASKS"
        raise InputError(f"{asked}: not possible here ({reason}); {way}") from None


def cuda_problem(index: int | None = None) -> str | None:
    """Why PyTorch cannot use a GPU of NVIDIA's, and what to do; None where it can.

    Args:
        index: Of the GPU; None for the first.
    """
    if not torch.backends.cuda.is_built():
        return (
            f"PyTorch {torch.__version__} is built without CUDA; install a build for "
            "CUDA"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is told here
            torch.cuda.init()
    except RuntimeError as error:
        reason = str(error)
        if "too old" in reason:
            return (
                f"the NVIDIA driver is too old for CUDA {torch.version.cuda}, which "
                "this PyTorch uses; update it or install PyTorch for an older CUDA"
            )
        if "no NVIDIA driver" in reason:
            return "there is no NVIDIA GPU, or no driver of it; install the driver"
        if "No CUDA GPUs" in reason:
            return "no NVIDIA GPU is visible; see what CUDA_VISIBLE_DEVICES says"
        return f"{reason.splitlines()[0].split('. ')[0].rstrip('.')}; put that right"
    if torch.version.hip is not None:  # its GPUs have names, not numbers
        return None
    return _capability_problem(index or 0, torch.cuda.get_arch_list())


def _capability_problem(index: int, built_for: list[str]) -> str | None:
    """Whether there are kernels for a GPU, given `torch.cuda.get_arch_list()`."""
    found = torch.cuda.get_device_capability(index)
    kinds = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in built_for]
    codes = [(kind[1], int(kind[2]), int(kind[3])) for kind in kinds if kind]
    # Machine code runs within a major version, and the driver compiles the rest.
    if not codes or any(
        (major, minor) <= found and (kind == "compute" or major == found[0])
        for kind, major, minor in codes
    ):
        return None
    versions = sorted({(major, minor) for _, major, minor in codes})
    name = torch.cuda.get_device_name(index)
    needed = "PyTorch for an older CUDA, such as 12.6"
    if found > versions[0]:
        needed = "a newer PyTorch"
    return (
        f"{name} has compute capability {found[0]}.{found[1]}, and this PyTorch code "
        f"for {', '.join(f'{major}.{minor}' for major, minor in versions)} only; "
        f"install {needed}"
    )


def _check_launcher(trainer: pl.Trainer, asked: str) -> None:
    """Make sure that the processes can be started, and are as many as there should be.

    Raises:
        InputError: They would hang, or each would train alone.
    """
    launcher = trainer.strategy.launcher
    is_cuda = trainer.strategy.root_device.type == "cuda"
    if launcher is not None and is_cuda and sys.platform == "win32":
        raise InputError(
            f"{asked}: several processes on GPUs need NCCL, which Windows does not "
            "have; leave --devices and --strategy out, or train in WSL"
        )
    main: Any = sys.modules["__main__"]
    # Lightning starts the others with the command of the first one.
    is_script = main.__spec__ is not None or Path(sys.argv[0]).is_file()
    if isinstance(launcher, _MultiProcessingLauncher) or (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
        and launcher.num_processes > 1
        and not is_script
    ):
        raise InputError(f"{asked}: {NEEDS_SCRIPT}")
    planned = trainer.num_devices * trainer.num_nodes
    program, started = _started_by()
    if program and started != planned:
        per_node, nodes = COUNTS[program]
        raise InputError(
            f"{asked} --num_nodes {trainer.num_nodes}: {program} has started {started} "
            f"processes, not {planned}; repeat its {per_node} as --devices and its "
            f"{nodes} as --num_nodes"
        )


def _started_by() -> tuple[str, int]:
    """What has started this process, and how many of its kind; "" for a person."""
    if TorchElasticEnvironment.detect():
        return "torchrun", TorchElasticEnvironment().world_size()
    # Of one task Lightning knows all that there is to know.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return ("srun", tasks) if tasks > 1 else ("", 1)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Replace "auto" by the fastest precision that a device is good at.

    Raises:
        InputError: The device cannot do it: half precision with 5 exponent bits on a
            CPU, double precision on a Mac's GPU.
    """
    if precision in ("16-mixed", "16-true") and device.type == "cpu":
        raise InputError(
            f"--precision {precision} needs a GPU, the device is a CPU; use bf16-mixed "
            "or 32-true"
        )
    if precision == "64-true" and device.type == "mps":
        raise InputError(
            "--precision 64-true is not possible on a Mac's GPU; use 32-true, or "
            "--accelerator cpu"
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


def cudnn_benchmark(
    device: torch.device, *, deterministic: bool = False
) -> bool | None:
    """Whether cuDNN is to try its algorithms and take the fastest for each shape.

    It is `Trainer`'s `benchmark`: None leaves all as it is, where there is no cuDNN.
    """
    return not deterministic if device.type == "cuda" else None


def check_compiler(device: torch.device) -> None:
    """Make sure that torch.compile works here, before anything is trained.

    Raises:
        InputError: It does not; mostly there is no compiler.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the start, which says the same
            torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # of torch, of the compiler, of the system
        reason = " ".join(str(error).split("\n\n")[0].split())[:200].rstrip(".")
        raise InputError(
            f"--compile: torch.compile does not work here ({reason}); install a C++ "
            "compiler such as g++, or leave it out"
        ) from None
