"""What it brings on a CPU to lay small maps side by side.

    python benchmarks/studies/small_maps.py --output FILE.csv
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/studies/small_maps.py --output FILE.csv

times forward and backward pass of the network's convolutions with few pixels, as
`nn.Conv2d` and as one wide map, in turns, and adds a row a convolution. The variable
has oneDNN do without the newer instructions of a processor.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import torch
from torch import Tensor, nn

import custom_resnet
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, summary, today
from common import cli
from common.errors import InputError
from custom_resnet import Conv2d
from machine import memory, provenance
from machine.hardware import Hardware

RECORD = RESULTS / "2026-11-22_small_maps_cpu.csv"
SHAPES = ((512, 512, 3), (256, 512, 7))  # channels in, channels out, side


def milliseconds(conv: nn.Module, maps: Tensor) -> float:
    """Time of a forward and a backward pass, after one that is not counted."""
    for _ in range(2):
        started = time.perf_counter()
        output = conv(maps)
        output.backward(torch.ones_like(output))
    return 1e3 * (time.perf_counter() - started)


def small_maps(
    output: str,
    batch_size: int = 128,
    precision: Literal["32-true", "bf16"] = "bf16",
    repeats: int = 5,
) -> None:
    """Time the convolutions of small maps both ways.

    Args:
        output: CSV file to which the rows are added.
        batch_size: Maps in a batch.
        precision: Number format of maps and weights.
        repeats: Rounds, each of both ways.

    Raises:
        InputError: A value is out of its range, or the file is something else.
    """
    if min(batch_size, repeats) < 1:
        raise InputError("--batch_size and --repeats must be at least 1")
    read_rows(Path(output), "convolution")  # a wrong file is refused before the work
    # Also those that the network leaves as they are.
    custom_resnet.SMALL_MAP = 1 + max(side for _, _, side in SHAPES)
    memory.keep_freed_memory()
    hardware = Hardware({"precision": precision}, torch.device("cpu"), 1)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    form: Any = {"dtype": dtype, "memory_format": torch.channels_last}
    for channels, outputs, side in SHAPES:
        maps = torch.randn(batch_size, channels, side, side).to(**form).requires_grad_()
        ways: list[Callable[..., nn.Module]] = [nn.Conv2d, Conv2d]
        convs = [way(channels, outputs, 3, padding=1, bias=False) for way in ways]
        rounds = [
            [milliseconds(conv.to(**form), maps) for conv in convs]
            for _ in range(repeats)
        ]
        one_by_one, side_by_side = zip(*rounds, strict=True)
        row = {
            "date": today(),
            "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
            "convolution": f"{channels} to {outputs}, {side}x{side}",
            "batch_size": batch_size,
            "repeats": repeats,
            "one by one, ms": summary(one_by_one, 1),
            "side by side, ms": summary(side_by_side, 1),
            "ratio": summary([a / b for a, b in rounds], 2),
            **provenance.circumstances(hardware),
        }
        add_row(Path(output), row)
        print(*(row[name] for name in ("isa", "precision", "convolution", "ratio")))


def table() -> str:
    """What is on record, in Markdown."""
    rows = read_rows(RECORD).rename(columns={"isa": "instructions"})
    shown = ["instructions", "precision", "convolution"]
    return markdown(rows[[*shown, "one by one, ms", "side by side, ms", "ratio"]])


if __name__ == "__main__":
    cli.run("small_maps.py", small_maps, outlasts_readers=True)
