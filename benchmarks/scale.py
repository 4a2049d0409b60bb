"""How time and memory grow with epochs, images, batch size and processes.

    python benchmarks/scale.py --output benchmarks/results/DATE_scale_DEVICE.csv

trains on random images with a narrow network, once for every size, each time in a new
process (`scale_run.py`), and adds a row a training to the CSV file. `tables.py` writes
the tables in docs/lab/scale.md, from all such files in `benchmarks/results/`.
"""

import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import numpy as np
import pandas as pd
import torch

from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from common import cli
from machine.hardware import choose_hardware

RUN = Path(__file__).with_name("scale_run.py")
GROWING = {  # flag of scale_run.py: name in the table
    "epochs": "epochs",
    "images": "training images",
    "batch_size": "batch size",
    "processes": "processes",
}
FIXED = ("images_per_epoch", "base_width", "on_host")
PLACE = ("processor", "precision")
FORMATS = {  # of the columns of the table
    "set-up, s": "{:,.2f}",
    "training, s": "{:,.2f}",
    "an image, µs": "{:,.0f}",
    "process, s": "{:,.1f}",
    "memory, MiB": "{:,.0f}",
    "GPU memory, MiB": "{:,.0f}",
}


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


def scale_table(rows: pd.DataFrame) -> str:
    """Medians for each size, and how each figure grew: the b in a * size ** b.

    Args:
        rows: Of one file, whose first row is a training of the base size.
    """
    found = pd.DataFrame(
        {
            "set-up, s": rows["set_up_seconds"],
            "training, s": rows["fit_seconds"],
            "an image, µs": 1e6 * rows["fit_seconds"] / rows["images_trained"],
            "process, s": rows["seconds"],
            "memory, MiB": rows["peak_mib"],
            "GPU memory, MiB": rows["device_peak_mib"],
        }
    ).dropna(axis="columns", how="all")
    parts = []
    # Without its threads: two processes share them.
    rows = rows.assign(processor=rows["device"].str.split(",").str[0])
    for flag, name in GROWING.items():
        same = [other for other in (*GROWING, *FIXED, *PLACE) if other != flag]
        series = (rows[same] == rows.loc[0, same]).all(axis="columns")
        groups = found[series].groupby(rows[flag])
        medians = groups.median()
        if len(medians) < 2:
            continue
        shown = medians.apply(lambda column: column.map(FORMATS[column.name].format))
        shown.insert(0, "what grows", name)
        shown.insert(1, "to", [f"{size:,}" for size in medians.index])
        shown.insert(2, "n", groups.size())
        powers, _ = np.polyfit(np.log(medians.index), np.log(medians.to_numpy()), 1)
        exponent = {"what grows": name, "to": "exponent", "n": ""}
        exponent |= zip(
            medians.columns.map(str), map("{:z.2f}".format, powers), strict=True
        )
        parts += [shown, pd.DataFrame([exponent])]
    return markdown(pd.concat(parts))


def tables() -> str:
    """A table a file on record, with what it was measured on."""
    parts = []
    for file in sorted(RESULTS.glob("*_scale_*.csv")):
        rows = read_rows(file)
        first = rows.iloc[0]
        place = "in host memory" if first["on_host"] else "on the device"
        base = (f"{name} {first[flag]:,}" for flag, name in GROWING.items())
        parts.append(
            f"On {first['device']}, {first['precision']}, {first['versions']}, with "
            f"images {place}. Base: {', '.join(base)}, width {first['base_width']}, "
            f"{first['images_trained']} images an epoch. The rows are in "
            f"[{file.name}](../../benchmarks/results/{file.name}).\n\n{scale_table(rows)}"
        )
    return "\n\n".join(parts)


def scale(
    output: str,
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
    """Measure, and put every training on record.

    The first value of each list is the base, of which one is changed at a time.

    Args:
        output: CSV file to which a row a training is added.
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
        add_row(Path(output), {"date": today(), **row})
    print(scale_table(read_rows(Path(output))))


if __name__ == "__main__":
    cli.run("scale.py", scale, outlasts_readers=True)
