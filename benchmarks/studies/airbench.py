"""How fast a script of airbench is on this machine, by its own clock and by ours.

    python benchmarks/studies/airbench.py airbench94_muon.py --output FILE.csv

runs `airbench94.py` or `airbench94_muon.py` of KellerJordan/cifar10-airbench as it is,
on the images that train.py would take, and adds a row a training to the CSV file.
`fit_seconds` ends with the last epoch, as in every run of this project: augmentation is
inside, the evaluation is not. `seconds` is what the script itself reports: with its
test, which has test-time augmentation. Both have the whitening of the first layer
inside. A training that warms up and compiles comes first and does not count.
"""

import contextlib
import importlib.util
import inspect
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch

from benchmarks.rows import RESULTS, add_row, markdown, read_rows, summary, today
from benchmarks.runs import percent
from common import cli
from common.errors import InputError
from config import Accelerator, Asked, Config
from machine import provenance
from machine.hardware import choose_hardware
from train import load_images

PRECISION = "16-true"  # of the scripts
CLOCKS = ("time_seconds", "total_time_seconds")  # their names in the scripts


def airbench(
    scripts: list[str],
    output: str,
    data: Asked = "auto",
    data_dir: str = "data",
    repeats: int = 10,
    accelerator: Accelerator = "gpu",
) -> None:
    """Train with scripts of airbench, and put every training on record.

    Args:
        scripts: Their files.
        output: CSV file to which the rows are added.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        repeats: Trainings of each that count.
        accelerator: What they train on; they ask for an NVIDIA GPU.

    Raises:
        InputError: A file, the images or the GPU is not there, or a value is wrong.
    """
    if repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {repeats}")
    read_rows(Path(output), "script")  # a wrong file is refused before the work
    record, paths = Path(output).resolve(), [Path(name).resolve() for name in scripts]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a script of airbench")
    hardware = choose_hardware(accelerator)
    circumstances = provenance.circumstances(hardware) | {"precision": PRECISION}
    config = Config(data=data, data_dir=data_dir, val_size=0, batch_size=1)
    images = load_images(config)  # the scripts make their batches themselves
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("cifar10").mkdir()  # where the scripts look
        sets = {"train": images.train_set, "test": images.test_set}
        for name, (pixels, labels) in sets.items():
            kept = {"images": pixels, "labels": labels, "classes": [*images.classes]}
            torch.save(kept, f"cifar10/{name}.pt")
        for path in paths:
            module = load(path)
            arguments = prepare(module)
            for run in ("warmup", *range(repeats)):
                found = train_once(module, run, arguments)
                print(path.name, run, found, flush=True)
                if run != "warmup":
                    row = {"date": today(), "script": path.name, "run": run, **found}
                    add_row(record, row | circumstances)


def load(path: Path) -> ModuleType:
    """A script as a module, so that it trains nothing by itself."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where torch.compile looks for it
    argv = sys.argv
    sys.argv = [str(path)]  # one of them reads its own code
    try:
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
    return module


def prepare(module: Any) -> tuple[Any, ...]:
    """What `main` of a script takes beside the run, made as the script makes it."""
    if "model" not in inspect.signature(module.main).parameters:
        return ()
    model = module.CifarNet().cuda().to(memory_format=torch.channels_last)
    model.compile(mode="max-autotune")
    return (model,)


def train_once(
    module: Any, run: str | int, arguments: tuple[Any, ...]
) -> dict[str, Any]:
    """Train once, and take from what a script would print what it measured."""
    notes: list[tuple[float, float]] = []  # seconds so far, test accuracy

    def note(variables: dict[str, Any], is_final_entry: bool) -> None:
        [seconds] = [variables[name] for name in CLOCKS if name in variables]
        notes.append((seconds, variables["val_acc"]))

    module.print_training_details = note
    accuracy = module.main(run, *arguments)
    *epochs, (seconds, _) = notes  # the last one is of the test
    fit_seconds, plain = epochs[-1]
    return {
        "epochs": len(epochs),
        "test/acc": plain,
        "test/acc_tta": accuracy,
        "fit_seconds": round(fit_seconds, 3),
        "seconds": round(seconds, 3),
    }


def table() -> str:
    """What is on record, in Markdown: a row a script and device."""
    files = sorted(RESULTS.glob("*_airbench_*.csv"))
    if not files:
        return "Nothing is on record yet."
    rows = pd.concat([read_rows(file, "script") for file in files])
    shown = []
    for (script, device), same in rows.groupby(["script", "device"], sort=False):
        shown.append(
            {
                "script": script,
                "test accuracy": percent(same["test/acc"]),
                "with its TTA": percent(same["test/acc_tta"]),
                "n": len(same),
                "training, s": summary([*same["fit_seconds"]], 2),
                "by its own clock, s": summary([*same["seconds"]], 2),
                "on": device,
            }
        )
    return markdown(pd.DataFrame(shown))


if __name__ == "__main__":
    cli.run("airbench.py", airbench, outlasts_readers=True)
