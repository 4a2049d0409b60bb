"""Whether trained weights help a training on few images of other classes.

    python benchmarks/studies/fine_tuning.py

trains on a few drawn shapes a class, from scratch and from the weights that come with
the project, which have never seen a shape, with the same flags otherwise, and puts the
accuracy on 1,000 other shapes on record. It goes on where it was stopped. Each seed
draws other training images.
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
from benchmarks.runs import spread
from common import cli
from config import Config
from images.synthetic import SHAPES, draw_shapes

RUNS = RESULTS / "2026-11-25_fine_tuning_cpu.csv"
PER_CLASS = (20, 50)
STARTS = {"from scratch": None, "fine-tuned": str(WEIGHTS)}
FLAGS: dict[str, Any] = {"batch_size": 32, "max_epochs": 10}
TEST_IMAGES, TEST_SEED = 1000, 2  # those of --data synthetic
TRAIN_SEED = 1000  # the first: no image of --data synthetic is among them


class Setting(NamedTuple):
    """What a run is."""

    per_class: int
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


def fine_tuning(
    per_class: tuple[int, ...] = PER_CLASS, seeds: int = 5, base_width: int = 64
) -> None:
    """Put the trainings on record that are not there yet.

    Args:
        per_class: Training images of each class.
        seeds: Number of seeds, from 0.
        base_width: That of the weights.
    """
    done = set(read_accuracies()["setting"])
    for count, seed, start in itertools.product(per_class, range(seeds), STARTS):
        setting = Setting(count, start, seed)
        if setting not in done:
            put_on_record(setting, base_width)


def put_on_record(setting: Setting, base_width: int) -> None:
    """Train once and add a row."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_folder(Path(folder) / "shapes", setting.per_class, setting.seed)
        metrics = quietly_train(
            Config(
                **FLAGS,
                accelerator="cpu",
                init_from=STARTS[setting.start],
                base_width=base_width,
                seed=setting.seed,
                data_dir=Path(folder) / "shapes",
                output_dir=Path(folder) / "runs",
                val_size=0,
                report=False,
            )
        )
    row = setting._asdict() | FLAGS | {"base_width": base_width, "date": today()}
    row |= {
        name: metrics[name]
        for name in ("max_lr", "test/acc", "device", "precision", "versions", "commit")
    }
    row["seconds"] = round(time.perf_counter() - started, 1)
    print(*setting, f"{row['max_lr']:g}", f"{row['test/acc']:.4f}", flush=True)
    add_row(RUNS, row)


def read_accuracies() -> pd.DataFrame:
    """All rows on record, and the setting of each."""
    rows = read_rows(RUNS, *Setting._fields, "max_lr", "test/acc")
    settings = rows[[*Setting._fields]].itertuples(index=False, name=None)
    return rows.assign(setting=pd.Series(map(Setting._make, settings), dtype=object))


def table() -> str:
    """A row a number of images, a column a start: mean, spread and n."""
    rows = []
    for count, same in read_accuracies().groupby("per_class"):
        row: dict[str, Any] = {"training images": f"{count} a class"}
        for start in STARTS:
            runs = same[same["start"] == start]
            row[start] = f"{spread(runs['test/acc'])} %"
            row[f"picked LR, {start}"] = _ends(runs["max_lr"])
        rows.append(row | {"n": str(same["seed"].nunique())})
    return markdown(pd.DataFrame(rows))


def _ends(values: pd.Series) -> str:
    ends = dict.fromkeys(f"{value:.2g}" for value in (values.min(), values.max()))
    return " to ".join(ends)


if __name__ == "__main__":
    cli.run("fine_tuning.py", fine_tuning)
