"""Whether trained weights help a training on few images of other classes.

    python benchmarks/studies/fine_tuning.py

trains on a few drawn shapes a class, from scratch and from the weights that come with
the project, which have never seen a shape, with the same flags otherwise, and puts the
accuracy on 1,000 other shapes on record. It goes on where it was stopped. Each seed
draws other training images. All rates are in the table, so none is chosen on the test
images.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
from PIL import Image
from torch import Tensor

from analysis.loading import WEIGHTS
from benchmarks.recipes import quietly_train
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from benchmarks.runs import percent
from common import cli
from config import Config
from images.synthetic import SHAPES, draw_shapes

RUNS = RESULTS / "2026-11-26_fine_tuning_cpu.csv"
PER_CLASS = 20
LRS = (0.001, 0.003, 0.01)
STARTS = {"from scratch": None, "fine-tuned": str(WEIGHTS)}
FLAGS: dict[str, Any] = {"batch_size": 32, "max_epochs": 10}
MEASURED = ("test/acc", "device", "precision", "versions", "commit")
TEST_IMAGES, TEST_SEED = 1000, 2  # those of --data synthetic
TRAIN_SEED = 1000  # the first: no image of --data synthetic is among them


class Setting(NamedTuple):
    """What a run is."""

    per_class: int
    lr: float
    start: str
    seed: int


def write_folder(folder: Path, per_class: int, seed: int) -> None:
    """Write an image folder of drawn shapes.

    Args:
        folder: Gets train/ and test/.
        per_class: Training images of each class.
        seed: Other ones draw other training images.
    """
    train = draw_shapes(per_class * len(SHAPES), TRAIN_SEED + seed)
    _write(folder / "train", *train)
    _write(folder / "test", *draw_shapes(TEST_IMAGES, TEST_SEED))


def _write(folder: Path, images: Tensor, labels: Tensor) -> None:
    for name in SHAPES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / SHAPES[label] / f"{number}.png"
        Image.fromarray(image.numpy()).save(path)


def fine_tuning(seeds: int = 3, per_class: int = PER_CLASS) -> None:
    """Put the trainings on record that are not there yet.

    Args:
        seeds: Number of seeds, from 0.
        per_class: Training images of each class.
    """
    rows = read_rows(RUNS, *Setting._fields)[[*Setting._fields]]
    done = {Setting(*row) for row in rows.itertuples(index=False)}
    for seed, lr, start in itertools.product(range(seeds), LRS, STARTS):
        setting = Setting(per_class, lr, start, seed)
        if setting not in done:
            put_on_record(setting)


def put_on_record(setting: Setting) -> None:
    """Train once and add a row."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_folder(Path(folder) / "shapes", setting.per_class, setting.seed)
        metrics = quietly_train(
            Config(
                **FLAGS,
                accelerator="cpu",
                lr=setting.lr,
                init_from=STARTS[setting.start],
                seed=setting.seed,
                data_dir=Path(folder) / "shapes",
                output_dir=Path(folder) / "runs",
                val_size=0,
                report=False,
            )
        )
    row = setting._asdict() | FLAGS | {name: metrics[name] for name in MEASURED}
    row |= {"seconds": round(time.perf_counter() - started, 1), "date": today()}
    print(*setting, f"{row['test/acc']:.4f}", flush=True)
    add_row(RUNS, row)


def table() -> str:
    """A row a number of images and a rate, a column a start: mean, spread and n."""
    rows, cells = read_rows(RUNS, *Setting._fields, "test/acc"), []
    for (count, lr), same in rows.groupby(["per_class", "lr"]):
        row = {"training images": f"{count} a class", "`--lr`": f"{lr:g}"}
        counts = []
        for start in STARTS:
            shares = same.loc[same["start"] == start, "test/acc"]
            row[start] = percent(shares)
            counts.append(str(len(shares)))
        cells.append(row | {"n": " and ".join(dict.fromkeys(counts))})
    return markdown(pd.DataFrame(cells))


if __name__ == "__main__":
    cli.run("fine_tuning.py", fine_tuning)
