"""How a network does on photos, and on test images that are spoiled a little.

    python benchmarks/studies/photos.py --photos FOLDER \
        --output FILE.csv

tests weights, those that come with the project where no `--ckpt_path` is given:

- on the test images of CIFAR-10 as they are, as JPEG of quality 75, and spoiled in ways
  of CIFAR-10-C;
- on photos of any size in FOLDER/known/CLASS/, read in several ways;
- on photos of none of the classes in FOLDER/unknown/: how many of them are taken for
  known ones, by the mark of predict.py, and at the threshold that marks 90 % of the
  known ones.

A row is added for each. Nothing is trained on any of them. With `--held_out`, a
checkpoint is tested on the training images that its run held out instead of the test
images: to choose between recipes.
"""

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from analysis.inference import (
    novelty_of,
    predict_logits,
    see_views,
)
from analysis.loading import load_model, read_test_images, read_trained
from benchmarks.corruptions import spoilings, to_levels
from benchmarks.plain_training import load_images
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, rounded, today
from benchmarks.studies.unknown_images import auroc
from common import cli
from common.errors import InputError
from common.files import expanded
from config import DEFAULT_DIR
from images.class_folders import list_classes
from images.image_folder import SIZE, read_photo, to_views
from images.sources import Labelled
from lightning_module import LitCustomResNet
from machine import provenance
from machine.hardware import choose_hardware

RECORD = RESULTS / "2026-11-26_photos_cpu.csv"
SAME = ("weights", "images", "kind", "severity")  # of a row that replaces another
MARKED = 0.9  # share of the known photos that a threshold marks as known
LARGEST = 4096  # pixels of a photo's longer side; larger ones are scaled down first


def cut(image: Image.Image) -> Image.Image:
    """The middle square, the first view of predict.py."""
    return Image.fromarray(to_views(image)[0])


def squeezed(image: Image.Image) -> Image.Image:
    """All of it, its sides made equal, the second view."""
    return Image.fromarray(to_views(image)[1])


def cut_bicubic(image: Image.Image) -> Image.Image:
    """The middle square, a little sharper."""
    return ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC)


def squeezed_bicubic(image: Image.Image) -> Image.Image:
    """All of it, a little sharper."""
    return image.resize(SIZE, Image.Resampling.BICUBIC)


def middle(image: Image.Image) -> Image.Image:
    """The middle four fifths of the middle square."""
    return ImageOps.fit(image, SIZE, Image.Resampling.BILINEAR, bleed=0.1)


USUAL = "cut and squeezed, mirrored, as predict.py"
# Ways to read a photo: its views, and whether their mirror images count, too.
READINGS: dict[str, tuple[tuple[Callable[[Image.Image], Image.Image], ...], bool]] = {
    "cut, bicubic": ((cut_bicubic,), False),
    "cut": ((cut,), False),
    "squeezed, bicubic": ((squeezed_bicubic,), False),
    "squeezed": ((squeezed,), False),
    "cut, mirrored": ((cut,), True),
    "squeezed, mirrored": ((squeezed,), True),
    USUAL: ((cut, squeezed), True),
    "cut, squeezed and middle, mirrored": ((cut, squeezed, middle), True),
}


def read_photos(folder: Path) -> list[Image.Image]:
    """All photos of a folder and of those in it, in the order of their names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [read_photo(path, LARGEST) for path in paths]


def predict(
    model: LitCustomResNet, photos: list[Image.Image], reading: str
) -> tuple[Tensor, Tensor]:
    """Classes of photos read in one of the `READINGS`, int64 (N,), and novelty (N,)."""
    ways, mirrored = READINGS[reading]
    pixels = [[np.asarray(way(photo)) for way in ways] for photo in photos]
    views = torch.from_numpy(np.array(pixels)).permute(0, 1, 4, 2, 3)
    seen = see_views(model, views, mirrored=mirrored)
    return seen.logits.mean(dim=1).argmax(dim=1), novelty_of(model, seen)


def held_out_images(path: Path | None, data_dir: str) -> Labelled:
    """What the run of a checkpoint held out, uint8 (N, 32, 32, 3), and int64 (N,).

    Raises:
        InputError: There is no such file, or its run held no images out.
    """
    config = {} if path is None else read_trained(path).get("config", {})
    if config.get("val_size", 0) == 0:
        raise InputError(
            "--held_out: no images were held out; give another --ckpt_path"
        )
    return load_images("auto", data_dir, config["val_size"], config["seed"]).val_set


def spoiled_rows(
    model: LitCustomResNet, images: Tensor, labels: Tensor, kinds: Collection[str]
) -> list[Any]:
    """A row a way to spoil images, uint8 (N, 3, 32, 32): accuracies."""
    rows = []
    for (kind, severity), spoil in spoilings().items():
        if kind not in kinds:
            continue
        spoiled = to_levels(spoil(images / 255, torch.Generator().manual_seed(0)))
        plain = predict_logits(model, spoiled)
        both = plain + predict_logits(model, spoiled.flip(3))
        row = {"kind": kind, "severity": severity, "n": len(labels)}
        row["acc"] = float((plain.argmax(1) == labels).float().mean())
        row["acc_tta"] = float((both.argmax(1) == labels).float().mean())
        rows.append(row)
    return rows


def photo_rows(model: LitCustomResNet, folder: Path) -> list[dict[str, Any]]:
    """A row a reading of the photos in known/CLASS/ and unknown/."""
    listing, classes = list_classes(folder / "known"), list(model.hparams["classes"])
    names = [listing.classes[label] for label in listing.labels]
    if foreign := {*names} - {*classes}:
        raise InputError(
            f"--photos {folder}: known/ has the classes {', '.join(sorted(foreign))}, "
            "which the network does not know; put them into unknown/"
        )
    labels = torch.tensor([classes.index(name) for name in names])
    known = [read_photo(path, LARGEST) for path in listing.paths]
    unknown = read_photos(folder / "unknown")
    rows = []
    for reading in READINGS:
        said, ours = predict(model, known, reading)
        _, theirs = predict(model, unknown, reading)
        hits = (said == labels).double()
        by_class = [hits[labels == label].mean() for label in labels.unique()]
        threshold = ours.quantile(MARKED)
        rows.append(
            {
                "images": "photos",
                "kind": reading,
                "n": len(labels),
                "n_unknown": len(theirs),
                "auroc": auroc(-ours, -theirs),
                "acc": float(hits.mean()),
                "acc_classes": float(torch.stack(by_class).mean()),
                "marked_known": float((ours < 1).double().mean()),
                "marked_unknown": float((theirs < 1).double().mean()),
                "unknown_at_90": float((theirs <= threshold).double().mean()),
            }
        )
    return rows


def table(file: Path = RECORD) -> str:
    """A table each of what is on record: photos, and spoiled images."""
    rows = read_rows(file, *SAME).drop_duplicates([*SAME], keep="last")
    tables = []
    makers = {"photos": photo_table, "test": spoiled_table, "held-out": held_out_table}
    for images, make in makers.items():
        same = rows[rows["images"] == images]
        if len(same):
            tables.append(f"{', '.join(same['device'].unique())}:\n\n{make(same)}")
    return "\n\n".join(tables)


def spoiled_table(rows: pd.DataFrame) -> str:
    """A row a kind, columns for each weights: the mean over the severities."""
    cells = []
    order = [*dict.fromkeys(kind for kind, _ in spoilings())].index
    rows = rows.sort_values("kind", key=lambda kinds: kinds.map(order), kind="stable")
    for kind, same in rows.groupby("kind", sort=False):
        row = {"test images": kind, "n": str(same["n"].iloc[0])}
        for weights, found in same.groupby("weights", sort=False):
            row |= accuracies(str(weights), found)
        cells.append(row)
    return markdown(pd.DataFrame(cells).fillna(""))


def held_out_table(rows: pd.DataFrame) -> str:
    """A row for each weights, columns a kind: the mean over the severities."""
    cells = []
    for weights, own in rows.groupby("weights", sort=False):
        row = {"weights": str(weights), "n": str(own["n"].iloc[0])}
        for kind, found in own.groupby("kind", sort=False):
            row |= accuracies(str(kind), found)
        cells.append(row)
    return f"Held-out images:\n\n{markdown(pd.DataFrame(cells).fillna(''))}"


def accuracies(column: str, rows: pd.DataFrame) -> dict[str, str]:
    """Cells of a column and its flip TTA: the mean over the rows, in percent."""
    names = {"acc": column, "acc_tta": f"{column}, with flip TTA"}
    return {words: f"{100 * rows[name].mean():.2f}" for name, words in names.items()}


def photo_table(rows: pd.DataFrame) -> str:
    """A row a reading; shares in percent, and the standard error of the accuracy.

    Of other weights than those of the last rows, the reading of predict.py alone.
    """
    last = rows["weights"].iloc[-1]
    cells = []
    for _, row in rows[(rows["weights"] == last) | (rows["kind"] == USUAL)].iterrows():
        error = 100 * (row["acc"] * (1 - row["acc"]) / row["n"]) ** 0.5
        cells.append(
            {
                "weights": row["weights"],
                "photos are": row["kind"],
                "right": f"{100 * row['acc']:.1f} ± {error:.1f}",
                "mean of classes": f"{100 * row['acc_classes']:.1f}",
                "known, marked so": f"{100 * row['marked_known']:.0f}",
                "unknown, marked as known": f"{100 * row['marked_unknown']:.0f}",
                "the same where 90 % are": f"{100 * row['unknown_at_90']:.0f}",
            }
        )
    counts = f"{rows['n'].iloc[0]:.0f} known, {rows['n_unknown'].iloc[0]:.0f} unknown"
    return f"{counts}:\n\n{markdown(pd.DataFrame(cells))}"


def name_of(path: Path) -> str:
    """What to call the weights of a file; of a run's checkpoints, with the run."""
    run = f"{path.parent.parent.name}/" if path.parent.name == "checkpoints" else ""
    return f"{run}{path.stem}"


def photos(
    output: str,
    photos: str | None = None,
    data_dir: str = DEFAULT_DIR,
    ckpt_path: str | None = None,
    limit: int | None = None,
    kinds: list[str] | None = None,
    held_out: bool = False,
) -> None:
    """Test weights on spoiled test images and on photos, and put that on record.

    Args:
        output: CSV file to which the rows are added.
        photos: Folder of known/CLASS/ and unknown/; left out where it is not given.
        data_dir: Folder of CIFAR-10, or of other images of the network's classes.
        ckpt_path: Checkpoint or weights of a network.
        limit: How many of the test images at most, of all classes; all where it is
            not given.
        kinds: Only these ways to spoil test images, such as gaussian_blur; null for
            all.
        held_out: Take the training images that a checkpoint's run held out instead of
            the test images.

    Raises:
        InputError: There is no such kind, a file cannot be read, or no images were
            held out.
    """
    known = dict.fromkeys(kind for kind, _ in spoilings())
    for kind in kinds or ():
        if kind not in known:
            raise InputError(
                f"--kinds: {kind!r} is none; give some of {', '.join(known)}"
            )
    read_rows(expanded(output), *SAME)  # refused before the work
    path = None if ckpt_path is None else expanded(ckpt_path)
    model = load_model(path)
    pixels, labels = (
        held_out_images(path, data_dir)
        if held_out
        else read_test_images(model, "auto", data_dir)
    )
    rows = [] if photos is None else photo_rows(model, expanded(photos))
    step = -(-len(pixels) // (limit or len(pixels)))  # those of a class stand together
    images = pixels[::step].permute(0, 3, 1, 2)
    for row in spoiled_rows(model, images, labels[::step], kinds or known):
        rows.append({"images": "held-out" if held_out else "test", **row})
    hardware = choose_hardware("cpu", precision="32-true")
    circumstances = provenance.circumstances(hardware)
    del circumstances["command"]  # it would name folders of this machine
    weights = "shipped weights" if path is None else name_of(path)
    for row in rows:
        head = {"weights": weights, "date": today()}
        add_row(expanded(output), head | rounded(row) | circumstances)
    print(table(expanded(output)))


if __name__ == "__main__":
    cli.run("photos.py", photos)
