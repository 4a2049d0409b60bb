"""Which changes of the recipe pay: designs in which every run says something of all.

    python benchmarks/studies/screening.py first --output FILE.csv --device cuda
    python benchmarks/studies/screening.py first --output FILE.csv --rows [0,1,2]

trains rows of a two-level design (benchmarks/factorial.py) on 40,000 images of CIFAR-10
and judges each on the 10,000 others. The first design has many factors; the second has
those that were left, at levels about the best of the first; the third is about the
best of the second, with SAM, and the fourth about the best of the third, with and
without SAM. The fifth goes further where the fourth has gained, and configs/best.yaml
is what it chose. What is judged is the loss at the temperature that suits it best: it
tells recipes apart far sooner than accuracy does. Rows that are on record in FILE are
not trained again.

`effects` of factorial.py says what the rows on record show.
"""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.corruptions import jpeg_compression, to_levels
from benchmarks.factorial import Factors, Row, design, effects, lower
from benchmarks.plain_training import Training, load_images, shape_of
from benchmarks.rows import RESULTS, add_row, check_shape, markdown, read_rows, today
from common import cli
from common.errors import InputError
from common.files import expanded
from config import Asked
from machine import provenance
from machine.hardware import choose_hardware

SAME = ("design", "row", "seed")  # of a row that is trained once
RECORD = RESULTS / "2026-11-26_screening_cuda.csv"


class Study(NamedTuple):
    """A design: the levels that all rows share, and those of the factors."""

    base: Row
    factors: Factors


# Factor: its lower level, that of the best recipe of then or about it, and its upper.
FIRST: dict[str, tuple[Any, Any]] = {
    "whiten": (False, True),  # filters that whiten patches start the first convolution
    "logit_scale": (0.25, 0.125),
    "batch_size": (256, 128),
    "lr": (1.0, 1.5),  # times that of the batch size
    "beta2": (0.999, 0.99),  # of Adam
    "weight_decay": (0.2, 0.5),
    "label_smoothing": (0.2, 0.1),
    "ema_decay": (0.0, 0.99),  # of an average of the weights; 0 for none
    "pct_start": (5 / 24, 0.1),
    "anneal": ("linear", "cos"),
    "bias_lr": (1.0, 8.0),  # learning rate of batch norm's biases, times the other
    "residual_gain": (1.0, 0.2),  # at the start, of the last norm of a residual
    "dirac": (False, True),  # convolutions start by handing their input on
    "norm_momentum": (0.1, 0.3),
    "cutout": (8, 12),  # pixels
    "colour_jitter": (0.0, 0.15),  # largest change of brightness and contrast
    "cutmix": (0.0, 0.25),  # share of the batches
    "mixup": (0.0, 0.25),  # likewise
    "photo_like": (0.0, 0.25),  # share of the images
}
# What the first design says nothing of is as in that recipe there.
USUAL = {
    "crop_padding": 4,
    "first_lr": 1.0,
    "centred": False,
    "eps": None,  # of Adam: what suits its second beta
    "cycle_momentum": True,
    "uncut_epochs": 0,
    "sam": 0.0,
    "sam_share": 0.25,
    "norm_batch": 0,
    "dropout": 0.0,
    "drop_path": 0.0,
    "scale_lr": 1.0,
}
# About the best levels of the first.
SECOND: dict[str, tuple[Any, Any]] = {
    "lr": (1.0, 0.7),
    "weight_decay": (0.2, 0.1),
    "cutout": (8, 4),
    "label_smoothing": (0.2, 0.1),
    "ema_decay": (0.0, 0.99),
    "logit_scale": (0.25, 0.5),
    "residual_gain": (1.0, 0.2),
    "dirac": (False, True),
    "crop_padding": (4, 2),  # pixels
    "first_lr": (1.0, 0.1),  # learning rate of the first convolution, likewise
    "centred": (False, True),  # gradients of convolutions (arXiv 2004.01461)
}
# About the best levels of the second, with sharpness-aware steps.
THIRD: dict[str, tuple[Any, Any]] = {
    "lr": (1.0, 1.4),
    "eps": (1e-8, 1e-4),
    "cycle_momentum": (True, False),  # Adam's first beta goes against the rate, or not
    "weight_decay": (0.2, 0.14),
    "label_smoothing": (0.1, 0.05),
    "logit_scale": (0.25, 1.0),
    "crop_padding": (4, 3),  # pixels
    "uncut_epochs": (0, 2),  # at the end, without cutout
    "sam": (0.1, 0.2),  # how far sharpness-aware minimisation looks
    "sam_share": (0.25, 0.5),  # of the steps, at the end
    "norm_batch": (0, 64),  # images that share batch statistics; 0 for all
}
# About the best levels of the third, but SAM, which brought nothing on all images.
FOURTH: dict[str, tuple[Any, Any]] = {
    "norm_batch": (64, 32),
    "batch_size": (256, 128),
    "sam": (0.0, 0.1),  # in half of the steps, the better share of the third
    "label_smoothing": (0.05, 0.1),
    "weight_decay": (0.2, 0.28),
    "crop_padding": (3, 2),
    "cutout": (8, 6),
    "norm_momentum": (0.1, 0.02),
    "dropout": (0.0, 0.1),  # of the 512 features
    "drop_path": (0.0, 0.1),  # of the residual branches
    "scale_lr": (1.0, 0.0),  # learning rate of batch norm's factors, times the other
}
# About the best levels of the fourth, and beyond them.
FIFTH: dict[str, tuple[Any, Any]] = {
    "weight_decay": (0.28, 0.4),
    "sam": (0.1, 0.2),
    "cutout": (8, 10),
    "lr": (1.0, 1.25),
    "label_smoothing": (0.05, 0.0),
}
BASE = lower(FIRST) | USUAL | {"whiten": True}
AFTER_SECOND = BASE | {"dirac": True}
AFTER_THIRD = AFTER_SECOND | lower(THIRD) | {"sam_share": 0.5}
AFTER_FOURTH = AFTER_THIRD | lower(FOURTH) | {"norm_batch": 32}
STUDIES = {
    "first": Study(USUAL, FIRST),
    "second": Study(BASE, SECOND),
    "third": Study(AFTER_SECOND, THIRD),
    "fourth": Study(AFTER_THIRD, FOURTH),
    "fifth": Study(AFTER_FOURTH, FIFTH),
}


def as_jpeg(images: Tensor) -> Tensor:
    """What JPEG files of quality 75 hold of images: uint8 (N, 32, 32, 3)."""
    shares = images.permute(0, 3, 1, 2) / 255
    return to_levels(jpeg_compression(75, shares, torch.Generator())).permute(
        0, 2, 3, 1
    )


def screening(
    designs: list[str],
    output: str,
    rows: list[int] | None = None,
    seed: int = 0,
    epochs: int = 24,
    base_width: int = 64,
    data: Asked = "auto",
    data_dir: str = "data",
    val_size: int = 10_000,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Train rows of designs, and put each on record.

    Args:
        designs: Their names, from first to fifth.
        output: CSV file to which the rows are added.
        rows: Which ones, from 0; null for all.
        seed: Of weights, order and augmentation.
        epochs: Length of a training.
        base_width: Channels of the first convolution.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        val_size: How many images are held out, to judge with.
        device: What trains.

    Raises:
        InputError: There is no such row or device, or the file is of something else.
    """
    wanted = [(name, number) for name in designs for number in numbers_of(name, rows)]
    record, place = expanded(output), choose_hardware(device).device
    done = read_designs(record, designs)  # refused before the images are read
    images = load_images(data, data_dir, val_size)
    shape = shape_of(images, epochs, base_width)
    check_shape(done, shape, f"--output {record} has such rows")
    pixels, labels = images.val_set
    judged = {"val": pixels, "jpeg": as_jpeg(pixels)}
    circumstances = {
        "date": today(),
        "device": provenance.device_name(place),
        "versions": provenance.versions(place),
        "commit": provenance.commit(),
    }
    torch.backends.cudnn.benchmark = True
    for name, number in wanted:
        same = {"design": name, "row": number, "seed": seed}
        done = read_designs(record, designs)  # now: others may add to it
        if len(done) and (done[[*same]] == pd.Series(same)).all(axis=1).any():
            continue
        base, factors = STUDIES[name]
        row = base | design(factors)[number] | {"seed": seed}
        training = Training(row, images, epochs, base_width, place)
        training.train()
        found = {
            f"{which}/{response}": value
            for which, shown in judged.items()
            for response, value in training.evaluate(shown, labels).items()
        }
        print(f"{name} {number}, seed {seed}: {found}", flush=True)
        add_row(record, {**same, **shape, **row, **found, **circumstances})


def read_designs(record: Path, designs: Collection[str]) -> pd.DataFrame:
    """The rows of some designs on record, of each the newest."""
    rows = read_rows(record, *SAME, text=["images"])
    newest = rows.drop_duplicates([*SAME], keep="last")
    return newest[newest["design"].isin(designs)]


def numbers_of(name: str, rows: list[int] | None) -> list[int]:
    """The rows of a design that are asked for.

    Raises:
        InputError: There is no such design, or row.
    """
    if name not in STUDIES:
        raise InputError(f"{name} is no design; give one of {', '.join(STUDIES)}")
    count = len(design(STUDIES[name].factors))
    if rows is None:
        return [*range(count)]
    if not {*rows} <= {*range(count)}:
        given = ", ".join(map(str, rows))
        raise InputError(f"--rows must be from 0 to {count - 1}, got {given}")
    return rows


def read_finished(file: Path = RECORD) -> dict[str, pd.DataFrame]:
    """The rows on record by their design; of those that are all there."""
    found = {name: read_designs(file, [name]) for name in STUDIES}
    return {
        name: same
        for name, same in found.items()
        if {*range(len(design(STUDIES[name].factors)))} <= {*same["row"]}
    }


def tables(file: Path = RECORD) -> str:
    """A row a factor of each design: its levels, and what the upper one adds."""
    made = [table(name, rows) for name, rows in read_finished(file).items()]
    return "\n\n".join(made) or "No design is on record as a whole."


def table(name: str, rows: pd.DataFrame) -> str:
    """The table of a design."""
    factors = STUDIES[name].factors
    losses, tta, hits, jpeg = (
        effects(rows, response, factors)
        for response in ("val/loss", "val/loss_tta", "val/acc", "jpeg/acc")
    )
    cells = [
        {
            "factor": f"`{factor}`",
            "from": level(low),
            "to": level(high),
            "loss, 1/1000": with_error(1000 * losses.loc[factor]),
            "p": f"{losses['p'][factor]:.2g}",
            "with flip TTA": with_error(1000 * tta.loc[factor]),
            "accuracy, points": with_error(100 * hits.loc[factor]),
            "of JPEG 75": with_error(100 * jpeg.loc[factor]),
        }
        for factor, (low, high) in factors.items()
    ]
    epochs, devices = rows["epochs"].iloc[0], ", ".join(rows["device"].unique())
    hit, loss = rows["val/acc"].mean(), rows["val/loss"].mean()
    head = f"The {name} design, {len(rows)} rows of {epochs} epochs, {devices}; "
    head += f"mean accuracy {hit:.2%}, mean loss {loss:.4f}"
    return f"{head}:\n\n{markdown(pd.DataFrame(cells))}"


def level(value: Any) -> str:
    """A level as in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def with_error(found: Any) -> str:
    """An effect with its standard error."""
    return f"{found['effect']:+.2f} ± {found['error']:.2f}"


def figure(file: Path = RECORD) -> Figure | None:
    """The effects on the loss, a bar each; None while no design is on record."""
    finished = read_finished(file)
    if not finished:
        return None
    drawn = Figure(figsize=(7, 4 * len(finished)), layout="constrained")
    drawn_axes = drawn.subplots(len(finished), squeeze=False)[:, 0]
    for axes, (name, rows) in zip(drawn_axes, finished.items(), strict=True):
        found = 1000 * effects(rows, "val/loss", STUDIES[name].factors)
        axes.barh(
            found.index, found["effect"], xerr=found["error"], color="C0", capsize=3
        )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_title(f"the {name} design")
        axes.set_xlabel("what the upper level adds to the loss, in thousandths")
        axes.grid(alpha=0.3, axis="x")
    return drawn


if __name__ == "__main__":
    cli.run("screening.py", screening)
