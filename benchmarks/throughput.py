"""Images a second of the real training, beside what it could be and what is usual.

    python benchmarks/throughput.py --device cpu --batch_size 128 --output FILE.csv

measures, on noise in the shape of CIFAR-10,

trainer: this project's Trainer, data module and module, with all their comfort;
loop: a hand-written loop around the same network, precision and batch size, with images
    that lie augmented and normalised on the device: no trainer can beat it;
course: the usual notebook: float32, NCHW, plain Adam, torchvision's transforms image by
    image in a `DataLoader` with workers, loss and accuracy read at every step;
limit: the device's best matrix product in the same number format, by the floating-point
    operations of a training step per image.

Each has a process of its own, so that none changes another's memory or threads. They
take turns; the first round warms up and is not counted. A ratio is that of two
measurements of the same round: median, and range of all rounds.
"""

import datetime
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.paces import DTYPES, PACES, TRAIN_IMAGES, Setting, operations
from benchmarks.rows import add_row, read_rows
from benchmarks.tables import with_table
from common import cli
from common.errors import InputError
from config import Precision
from machine import provenance
from machine.hardware import Hardware, choose_hardware

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "speed.md"


def measure(setting: Setting, repeats: int) -> dict[str, list[float]]:
    """Images a second of each, round by round."""
    context = multiprocessing.get_context("spawn")  # each pays for its own memory
    paces: dict[str, list[float]] = {name: [] for name in PACES}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, context, cli.set_up_messages)
            )
            for name in PACES
        }
        for number in range(repeats + 1):
            for name, function in PACES.items():
                result = pools[name].submit(function, setting).result()
                if number:
                    paces[name].append(result)
                    print(f"round {number}: {name} {result:.1f} images/s", flush=True)
    return paces


def summary(values: Sequence[float], digits: int) -> str:
    """Median and range, such as "0.99 (0.97-1.01)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratios(paces: dict[str, list[float]]) -> dict[str, list[float]]:
    """The trainer's pace in units of each other's, round by round."""
    ours = paces["trainer"]
    return {
        f"trainer/{name}": [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in paces.items()
        if name != "trainer"
    }


def record(
    setting: Setting, paces: dict[str, list[float]], hardware: Hardware
) -> dict[str, Any]:
    """A measurement as a row of a CSV file."""
    circumstances = provenance.circumstances(hardware)
    return {
        "date": datetime.date.today().isoformat(),
        **setting._asdict(),
        "repeats": len(paces["trainer"]),
        "gflop_per_image": round(operations(setting.base_width) / 1e9, 4),
        **{f"{name} images/s": summary(found, 1) for name, found in paces.items()},
        **{name: summary(found, 2) for name, found in ratios(paces).items()},
        **circumstances,
        "device": f"{setting.device}: {circumstances['device']}",
    }


def pace_table() -> str:
    """All measurements on record, in Markdown."""
    rows = [
        row
        for file in sorted(RESULTS.glob("*_throughput_*.csv"))
        for row in read_rows(file)
    ]
    ours = [f"trainer/{name}" for name in PACES if name != "trainer"]
    header = ["on", "batch size", "compiled", *PACES, *ours, "rounds"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [f"{row['device']}, {row['precision']}", row["batch_size"]]
        cells.append("yes" if row["compile"] == "True" else "no")
        cells += [row[f"{name} images/s"] for name in PACES]
        cells += [row[name] for name in ours]
        lines.append(f"| {' | '.join([*cells, row['repeats']])} |")
    return "\n".join(lines)


def throughput(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 512,
    precision: Precision = "auto",
    steps: int | None = None,
    repeats: int = 5,
    compile: bool = False,
    base_width: int = 64,
    keep_memory: bool = True,
    output: str | None = None,
) -> None:
    """Measure the pace of the training, and what it is in units of others.

    Args:
        device: What trains.
        batch_size: Images in a batch.
        precision: Number format of all but the course's way, which is float32.
        steps: Steps of each in a round; null for an epoch, or 2048 images on a CPU.
        repeats: Rounds that count.
        compile: Compile the network of trainer and loop.
        base_width: Channels of the first convolution.
        keep_memory: Keep freed memory in trainer and loop on a CPU, as train.py does.
        output: CSV file to which a row is added; docs/speed.md shows those named
            benchmarks/results/DATE_throughput_DEVICE.csv.

    Raises:
        InputError: There is no such device, or a value is out of its range.
    """
    if min(batch_size, repeats, base_width, 1 if steps is None else steps) < 1:
        raise InputError(
            "--batch_size, --repeats, --base_width and --steps must be at least 1"
        )
    if batch_size > TRAIN_IMAGES:
        raise InputError(
            f"--batch_size must be at most {TRAIN_IMAGES}, got {batch_size}"
        )
    if output is not None:
        read_rows(Path(output), "steps")  # a wrong file is refused before the work
    accelerator = "gpu" if device == "cuda" else "cpu"
    hardware = choose_hardware(accelerator, 1, 1, "auto", precision)
    settled: Precision = hardware.arguments["precision"]
    if settled not in DTYPES:
        raise InputError(
            f"--precision must be auto, {', '.join(DTYPES)}, got {precision}"
        )
    epoch = TRAIN_IMAGES // batch_size
    short = min(epoch, max(1, 2048 // batch_size))
    steps = steps or (epoch if device == "cuda" else short)
    setting = Setting(
        device, settled, batch_size, steps, base_width, compile, keep_memory
    )
    paces = measure(setting, repeats)
    row = record(setting, paces, hardware)
    if output is not None:
        add_row(Path(output), row)
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(text, pace_table()), encoding="utf-8")
    for name, value in row.items():
        print(f"{'ratio ' if name in ratios(paces) else ''}{name} {value}")


if __name__ == "__main__":
    cli.run("throughput.py", throughput, outlasts_readers=True)
