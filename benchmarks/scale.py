"""How time and memory grow with epochs, images, batch size and processes.

    python benchmarks/scale.py --output benchmarks/results/DATE_scale_DEVICE.csv
    python benchmarks/scale.py

The first trains on random images with a narrow network, once for every size, each time
in a new process (`scale_run.py`), and adds a row a training to the CSV file; both write
the tables in `docs/scale.md` anew, from all such files in `benchmarks/results/`.
"""

import datetime
import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.rows import Row, add_row, read_rows
from benchmarks.tables import with_table
from common import cli
from machine.hardware import choose_hardware

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "scale.md"
RUN = Path(__file__).with_name("scale_run.py")

GROWING = {  # flag of scale_run.py: name in the table
    "epochs": "epochs",
    "images": "training images",
    "batch_size": "batch size",
    "processes": "processes",
}
FIXED = ("images_per_epoch", "base_width", "on_host")


class Figure(NamedTuple):
    """A column of the table."""

    heading: str
    of: Callable[[Row], float]
    digits: int


FIGURES = (
    Figure("set-up, s", lambda row: float(row["set_up_seconds"]), 2),
    Figure("training, s", lambda row: float(row["fit_seconds"]), 2),
    Figure(
        "an image, µs",
        lambda row: 1e6 * float(row["fit_seconds"]) / int(row["images_trained"]),
        0,
    ),
    Figure("process, s", lambda row: float(row["seconds"]), 1),
    Figure("memory, MiB", lambda row: float(row["peak_mib"]), 0),
)
DEVICE_MEMORY = Figure("GPU memory, MiB", lambda row: float(row["device_peak_mib"]), 0)


def sizes(choices: dict[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """The first of each flag's values together; then each other one in its place."""
    base = {flag: values[0] for flag, values in choices.items()}
    others = [
        base | {flag: value} for flag, values in choices.items() for value in values[1:]
    ]
    return [base, *others]


def train_once(flags: dict[str, Any]) -> dict[str, Any]:
    """Start one training and wait for it.

    Args:
        flags: Those of `scale_run.py`.

    Returns:
        The flags, what it measured, and `seconds` from before the process began until
        after it ended.
    """
    command = [f"--{flag}={value}" for flag, value in flags.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RUN), *command, f"--output_dir={folder}"]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        seconds = round(time.perf_counter() - started, 3)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measured["command"] = shlex.join(["python", *sys.argv])
    return flags | {"seconds": seconds} | measured


def exponent(values: Sequence[float], figures: Sequence[float]) -> float:
    """The b in figure = a * value ** b, by least squares on the log scales."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, figures))
    return statistics.linear_regression(x, y).slope


def scale_table(rows: list[Row]) -> str:
    """Medians for each size, and an exponent for whatever grew.

    Args:
        rows: Of one file, whose first row is a training of the base size.
    """
    base = rows[0]
    figures = [*FIGURES, DEVICE_MEMORY] if base["device_peak_mib"] else [*FIGURES]
    headings = ["what grows", "to", "n", *(figure.heading for figure in figures)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for flag in GROWING:
        same = [other for other in (*GROWING, *FIXED) if other != flag]
        groups: dict[int, list[Row]] = {}
        for row in rows:
            if all(row[other] == base[other] for other in same):
                groups.setdefault(int(row[flag]), []).append(row)
        if len(groups) > 1:
            lines += _series(GROWING[flag], dict(sorted(groups.items())), figures)
    return "\n".join(lines)


def _series(
    name: str, groups: dict[int, list[Row]], figures: list[Figure]
) -> Iterator[str]:
    """The lines of what grew, and how each figure grew with it."""
    medians = [
        [statistics.median(map(figure.of, rows)) for figure in figures]
        for rows in groups.values()
    ]
    for (value, rows), numbers in zip(groups.items(), medians, strict=True):
        pairs = zip(numbers, figures, strict=True)
        cells = [f"{number:,.{figure.digits}f}" for number, figure in pairs]
        yield f"| {name} | {value:,} | {len(rows)} | {' | '.join(cells)} |"
    columns = zip(*medians, strict=True)
    powers = [f"{exponent(list(groups), column):.2f}" for column in columns]
    yield f"| {name} | exponent | | {' | '.join(powers)} |"


def page_tables(files: list[Path]) -> str:
    """A table a file, with what it was measured on."""
    parts = []
    for file in files:
        rows = read_rows(file)
        first = rows[0]
        place = "in host memory" if first["on_host"] == "True" else "on the device"
        base = (f"{name} {int(first[flag]):,}" for flag, name in GROWING.items())
        parts.append(
            f"On {first['device']}, {first['precision']}, {first['versions']}, with "
            f"images {place}. Base: {', '.join(base)}, width {first['base_width']}, "
            f"{first['images_trained']} images an epoch. The rows are in "
            f"[{file.name}](../benchmarks/results/{file.name}).\n\n{scale_table(rows)}"
        )
    return "\n\n".join(parts) or "not measured yet"


def scale(
    output: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    epochs: tuple[int, ...] = (1, 2, 4, 8),
    images: tuple[int, ...] = (50_000, 10_000, 200_000, 1_000_000),
    batch_sizes: tuple[int, ...] = (512, 128, 2048),
    processes: tuple[int, ...] | None = None,
    images_per_epoch: int = 4096,
    base_width: int = 4,
    on_host: bool = False,
    repeats: int = 3,
) -> None:
    """Measure, if there is a file for it, and write the tables of docs/scale.md.

    The first value of each list is the base, of which one is changed at a time.

    Args:
        output: CSV file to which a row a training is added; none to measure nothing.
        device: What trains.
        epochs: Lengths of the training.
        images: Sizes of the training set.
        batch_sizes: Images in a global batch.
        processes: Numbers of processes, each with a device, that share a batch; null
            for 1 and 2, or for 1 where there is a single GPU.
        images_per_epoch: Images that an epoch trains on, however many there are.
        base_width: Channels of the first convolution.
        on_host: Hold the images in host memory even where they fit on the device.
        repeats: Trainings of each size, in rounds.

    Raises:
        InputError: The devices are not there, or the file is of something else.
    """
    if output is not None:
        read_rows(Path(output), *GROWING)  # what is wrong is refused before the work
        if processes is None:
            is_single = device == "cuda" and torch.cuda.device_count() < 2
            processes = (1,) if is_single else (1, 2)
        choose_hardware(device, max(processes), 1, "ddp", "auto")
        fixed = {"images_per_epoch": images_per_epoch, "base_width": base_width}
        fixed |= {"on_host": on_host}
        growing = {"images": images, "epochs": epochs}
        growing |= {"batch_size": batch_sizes, "processes": processes}
        for _, size in itertools.product(range(repeats), sizes(growing)):
            row = train_once({"device": device, **size, **fixed})
            today = datetime.date.today().isoformat()
            add_row(Path(output), {"date": today, **row})
        print(scale_table(read_rows(Path(output))))
    tables = page_tables(sorted(RESULTS.glob("*_scale_*.csv")))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, tables), encoding="utf-8")


if __name__ == "__main__":
    cli.run("scale.py", scale, outlasts_readers=True)
