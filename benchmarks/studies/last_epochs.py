"""What a training may do otherwise in its last epochs: branches of one trunk.

    python benchmarks/studies/last_epochs.py --output FILE.csv --folder FOLDER

trains what the first two designs of screening.py chose, in plain PyTorch
(benchmarks/plain_training.py), on 40,000 images of CIFAR-10, up to its last quarter.
From there each branch goes on with a change of its own, and is judged on the 10,000
other images. So branches differ by their last epochs alone. After every epoch a
checkpoint is written into FOLDER, and the same command goes on from it; branches that
are on record are left out.
"""

import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch

from benchmarks.factorial import Row, lower
from benchmarks.plain_training import Training, load_images, shape_of
from benchmarks.rows import RESULTS, add_row, check_shape, markdown, read_rows, today
from benchmarks.runs import percent
from benchmarks.studies.screening import STUDIES
from common import cli
from common.errors import InputError
from common.files import expanded, replacing
from config import Asked
from machine import provenance
from machine.hardware import choose_hardware

RECORD = RESULTS / "2026-11-27_last_epochs_cpu.csv"
SHARE = 0.25  # of the epochs, which the branches differ by
# The third design has that recipe at its lower levels, but for SAM.
THIRD = STUDIES["third"]
BEST: Row = THIRD.base | lower(THIRD.factors) | {"sam": 0.0, "sam_share": 1.0}
BRANCHES: dict[str, Row] = {
    "as the recipe is": {},
    "no cutout in the last 2": {"uncut_epochs": 2},
    "SAM, radius 0.05": {"sam": 0.05},
    "SAM, radius 0.1": {"sam": 0.1},
    "SAM, radius 0.2": {"sam": 0.2},
    "SAM, radius 0.1, no cutout in the last 2": {"sam": 0.1, "uncut_epochs": 2},
}


def last_epochs(
    output: str,
    folder: str,
    branches: list[str] | None = None,
    seed: int = 0,
    epochs: int = 24,
    base_width: int = 64,
    data: Asked = "auto",
    data_dir: str = "data",
    val_size: int = 10_000,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Train the trunk and its branches, and put each branch on record.

    Args:
        output: CSV file to which the rows are added.
        folder: Where checkpoints go, a file each for the trunk and the branches.
        branches: Their names; null for all.
        seed: Of weights, order and augmentation.
        epochs: Length of a training, trunk and branch together.
        base_width: Channels of the first convolution.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        val_size: How many images are held out, to judge with.
        device: What trains.

    Raises:
        InputError: There is no such branch or device, or the file is of something else.
    """
    wanted = [*BRANCHES] if branches is None else branches
    if unknown := {*wanted} - {*BRANCHES}:
        raise InputError(
            f"--branches: {min(unknown)} is none; give some of {', '.join(BRANCHES)}"
        )
    record, place = expanded(output), choose_hardware(device).device
    done = read_branches(record)  # refused before the images are read
    kept = expanded(folder)
    kept.mkdir(parents=True, exist_ok=True)
    images = load_images(data, data_dir, val_size)
    shape = shape_of(images, epochs, base_width)
    check_shape(done, shape, f"--output {record} has such rows")
    torch.backends.cudnn.benchmark = True

    def training(changes: Row) -> Training:
        row = BEST | {"seed": seed} | changes
        return Training(row, images, epochs, base_width, place)

    fork = epochs - round(SHARE * epochs)
    trunk = kept / f"trunk_{seed}.pt"
    go_on(training({}), trunk, trunk, fork, shape)
    for name in wanted:
        done = read_branches(record)  # now: others may add to it
        if ((done["branch"] == name) & (done["seed"] == seed)).any():
            continue
        branch = training(BRANCHES[name])
        own = kept / f"branch_{[*BRANCHES].index(name)}_{seed}.pt"
        go_on(branch, own if own.exists() else trunk, own, epochs, shape)
        found = branch.evaluate(*images.val_set)
        print(f"{name}, seed {seed}: {found}", flush=True)
        add_row(
            record,
            {
                "date": today(),
                "branch": name,
                "seed": seed,
                "fork": fork,
                **shape,
                **{f"val/{response}": value for response, value in found.items()},
                "device": provenance.device_name(place),
                "versions": provenance.versions(place),
                "commit": provenance.commit(),
            },
        )


def go_on(training: Training, source: Path, target: Path, end: int, shape: Row) -> None:
    """Train from a checkpoint, if there is one, and keep one after every epoch.

    Args:
        training: New.
        source: The checkpoint to begin with.
        target: The one to write.
        end: The epoch before which to stop.
        shape: What trunk and branches must share.

    Raises:
        InputError: The checkpoint is of a training of another shape.
    """
    parts: dict[str, Any] = {
        "net": training.net,
        "opt": training.optimizer,
        "sch": training.schedule,
    }
    start = 0
    if source.exists():
        saved = torch.load(source, weights_only=True)
        there = pd.DataFrame([saved["shape"]])
        check_shape(there, shape, f"--folder {source.parent} has a training")
        start = saved["epoch"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in range(start, end):
        training.train_epoch(epoch)
        states = {name: part.state_dict() for name, part in parts.items()}
        with replacing(target) as file:
            torch.save(states | {"epoch": epoch + 1, "shape": shape}, file)


def read_branches(record: Path) -> pd.DataFrame:
    """The branches on record, of each the newest row."""
    rows = read_rows(record, "branch", "seed", text=["images"])
    return rows.drop_duplicates(["branch", "seed"], keep="last")


def table(file: Path = RECORD) -> str:
    """A row a branch: accuracy and loss without and with flip TTA."""
    rows = read_branches(file)
    cells = []
    for name, same in rows.groupby("branch", sort=False):
        row = {"last quarter": name}
        for response, words in (("", "plain"), ("_tta", "flip TTA")):
            row[f"accuracy, {words}"] = percent(same[f"val/acc{response}"])
            row[f"loss, {words}"] = f"{same[f'val/loss{response}'].mean():.4f}"
        places = ", ".join(same["device"].unique())
        cells.append(row | {"n": str(len(same)), "on": f"{places}, bf16"})
    return markdown(pd.DataFrame(cells))


if __name__ == "__main__":
    cli.run("last_epochs.py", last_epochs)
