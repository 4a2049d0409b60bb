"""How fast the real training is, beside what it could be and what is usual.

    python benchmarks/pace.py --device cpu --batch_size 128 --output FILE.csv
    python benchmarks/pace.py --device cpu --batch_size 512 --profile FILE.md

The first measures, on noise in the shape of CIFAR-10, the images a second of

trainer: this project's Trainer, data module and module, with all their comfort;
loop: a hand-written loop around the same network, precision and batch size, with images
    that lie augmented and normalised on the device: no trainer can beat it;
course: the usual notebook: float32, NCHW, plain Adam, torchvision's transforms image by
    image in a `DataLoader` with workers, loss and accuracy read at every step;
limit: the device's best matrix product in the same number format, by the floating-point
    operations of a training step per image.

Each has a process of its own, so that none changes another's memory or threads. They
take turns; the first round warms up and is not counted, and neither is the first of two
epochs in each measurement. A ratio is that of two measurements of the same round:
median, and range of all rounds.

The second times some steps of the trainer, profiles some more with PyTorch's profiler,
and writes a page: time and page faults of a step, and the operations that take most of
the time, of a GPU's where there is one. They are the first steps of a process, so its
images a second are not the pace. With `--keep_memory false` a CPU pays for page
faults as glibc would have it.

`--train.FLAG VALUE` gives the trainer a flag of train.py that the others have not, and
`--against '[loop]'` leaves out what it is not to be compared with.
"""

import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd

from benchmarks.paces import (
    DTYPES,
    PACES,
    TRAIN_IMAGES,
    Setting,
    operations,
    own_flags,
)
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, summary, today
from benchmarks.step_profile import WARM_UP, profile_page
from common import cli
from common.errors import InputError
from config import Compile, Precision
from machine import provenance
from machine.hardware import Hardware, choose_hardware

Rival = Literal["loop", "course", "limit"]
RIVALS: tuple[Rival, ...] = get_args(Rival)


def measure(
    setting: Setting, repeats: int, names: tuple[str, ...]
) -> dict[str, list[float]]:
    """Images a second of each of these, round by round."""
    context = multiprocessing.get_context("spawn")  # each pays for its own memory
    paces: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, context, cli.set_up_messages)
            )
            for name in names
        }
        for number in range(repeats + 1):
            for name in names:
                result = pools[name].submit(PACES[name], setting).result()
                if number:
                    paces[name].append(result)
                    print(f"round {number}: {name} {result:.1f} images/s", flush=True)
    return paces


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
        "date": today(),
        **setting._asdict(),
        "repeats": len(paces["trainer"]),
        "gflop_per_image": round(operations(setting.base_width) / 1e9, 4),
        **{f"{name} images/s": summary(found, 1) for name, found in paces.items()},
        **{name: summary(found, 2) for name, found in ratios(paces).items()},
        **circumstances,
        "device": f"{setting.device}: {circumstances['device']}",
    }


def table() -> str:
    """All measurements on record, in Markdown."""
    files = sorted(RESULTS.glob("*_throughput_*.csv"))
    rows = pd.concat([read_rows(file) for file in files])
    texts = [f"{name} images/s" for name in PACES] + [f"trainer/{n}" for n in RIVALS]
    wanted = list(dict.fromkeys([*rows, *texts, "flags", "on_host"]))
    rows = rows.reindex(columns=wanted).astype("object").fillna("")
    on_host = rows["on_host"].map({True: " images on the host"}).fillna("")
    shown = {
        "on": rows["device"] + ", " + rows["precision"],
        "batch size": rows["batch_size"],
        "compiled": rows["compile"].astype(str).replace({"True": "yes", "False": "no"}),
        "of the trainer": (rows["flags"] + on_host).str.strip(),
        **{name: rows[f"{name} images/s"] for name in PACES},
        **{f"trainer/{name}": rows[f"trainer/{name}"] for name in RIVALS},
        "rounds": rows["repeats"],
    }
    return markdown(pd.DataFrame(shown))


def pace(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 512,
    precision: Precision = "auto",
    steps: int | None = None,
    repeats: int = 5,
    compile: Compile = False,
    base_width: int = 64,
    keep_memory: bool = True,
    on_host: bool = False,
    train: dict[str, str | int | float | bool] | None = None,
    against: tuple[Rival, ...] = RIVALS,
    output: str | None = None,
    profile: str | None = None,
) -> None:
    """Measure the pace of the training, and what it is in units of others.

    Args:
        device: What trains.
        batch_size: Images in a batch.
        precision: Number format of all but the course's way, which is float32.
        steps: Steps of each in a round; null for an epoch, or 2048 images on a CPU.
            With --profile, steps to time and again to profile; null for 10.
        repeats: Rounds that count.
        compile: Compile the trainer's step and the loop's network, as train.py does.
        base_width: Channels of the first convolution.
        keep_memory: Keep freed memory in trainer and loop on a CPU, as train.py does.
        on_host: Hold the trainer's images in host memory.
        train: Flags of train.py, for the trainer only.
        against: What the trainer is compared with.
        output: CSV file to which a row is added; docs/lab/speed.md shows those named
            benchmarks/results/DATE_throughput_DEVICE.csv.
        profile: Markdown file to write about steps of the trainer, instead.

    Raises:
        InputError: There is no such device, or a value is out of its range.
    """
    if min(batch_size, repeats, base_width, 1 if steps is None else steps) < 1:
        raise InputError(
            "--batch_size, --repeats, --base_width and --steps must be at least 1"
        )
    if output is not None:
        read_rows(Path(output), "steps")  # a wrong file is refused before the work
    accelerator = "gpu" if device == "cuda" else "cpu"
    hardware = choose_hardware(accelerator, precision=precision)
    settled: Precision = hardware.arguments["precision"]
    if settled not in DTYPES:
        raise InputError(
            f"--precision must be auto, {', '.join(DTYPES)}, got {precision}"
        )
    steps = settle_steps(steps, batch_size, device, profiled=profile is not None)
    flags = shlex.join(f"--{name}={value}" for name, value in (train or {}).items())
    own_flags(flags)  # a wrong one is refused before the work
    setting = Setting(
        *(device, settled, batch_size, steps, base_width, compile, keep_memory),
        *(flags, on_host),
    )
    if profile is not None:
        page = profile_page(setting, provenance.circumstances(hardware))
        Path(profile).parent.mkdir(parents=True, exist_ok=True)
        Path(profile).write_text(page, encoding="utf-8")
        print(page)
        return
    paces = measure(setting, repeats, ("trainer", *against))
    row = record(setting, paces, hardware)
    if output is not None:
        add_row(Path(output), row)
    for name, value in row.items():
        print(f"{'ratio ' if name in ratios(paces) else ''}{name} {value}")


def settle_steps(
    steps: int | None, batch_size: int, device: str, *, profiled: bool
) -> int:
    """Steps of a round, or of a profile with those before and beside it.

    Args:
        steps: What the user wants, if anything.
        batch_size: Images in a batch.
        device: What trains.
        profiled: Whether a profile is wanted, instead of rounds.

    Raises:
        InputError: An epoch has fewer.
    """
    epoch = TRAIN_IMAGES // batch_size
    if profiled:
        steps = WARM_UP + 2 * (steps or WARM_UP)
    elif steps is None:
        steps = epoch if device == "cuda" else min(epoch, max(1, 2048 // batch_size))
    if steps > epoch or not epoch:
        raise InputError(
            f"--batch_size {batch_size}: {max(steps, 1)} batches are needed of "
            f"{TRAIN_IMAGES} images; give fewer steps or smaller batches"
        )
    return steps


if __name__ == "__main__":
    cli.run("pace.py", pace, outlasts_readers=True)
