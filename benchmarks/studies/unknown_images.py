"""Which score best tells images of known classes from images of none.

    python benchmarks/studies/unknown_images.py --ckpt_path FILE --output FILE.csv

compares scores on the test images of the classes that a network knows and on four kinds
of images of which it knows none: drawn shapes, uniform noise, test images with shuffled
pixels, and test images of classes that it has not been trained on, if there are such.
It adds a row a score and kind to the output file. For the last kind, write CIFAR-10 as
class folders, and train on some of them, here without cat and truck:

    from pathlib import Path
    from torchvision.datasets import CIFAR10

    for part in ("train", "test"):
        images = CIFAR10("data", train=part == "train", download=True)
        for number, (image, label) in enumerate(images):
            path = Path("ten", part, images.classes[label], f"{number:05}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)

    for part in train test; do
        mkdir -p eight/$part
        ln -s $PWD/ten/$part/* eight/$part
        rm eight/$part/cat eight/$part/truck
    done
    python train.py --config configs/seed.yaml --data_dir eight --max_epochs 3
    python benchmarks/studies/unknown_images.py --data_dir ten ...

No threshold is chosen on test images: `threshold` is the score below which 5 % of the
held-out validation images of the training fall, `known_refused` and `unknown_refused`
are the shares of images below it. The columns `warned_` hold the shares of images of
which predict.py says that they are probably of none of the classes.
"""

import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from analysis.inference import Seen, novelty_of, see, to_probabilities
from analysis.loading import load_model
from analysis.novelty import entropy
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, rounded, today
from common import cli
from common.errors import InputError
from config import Asked
from datamodule import stratified_split
from images import sources
from images.sources import ImageSet
from images.synthetic import SHAPES, draw_shapes
from lightning_module import LitCustomResNet
from machine import provenance
from machine.hardware import choose_hardware
from training.resume import Checkpoint, read_checkpoint

RECORD = RESULTS / "2026-11-22_unknown_images_cpu.csv"
REFUSED = 0.05  # share of the known images that a threshold may refuse
NOVELTY = "negative novelty"  # what predict.py goes by


class Images(NamedTuple):
    """Images, uint8 (N, 32, 32, 3), of classes that a network knows and of others.

    Attributes:
        validation: Those that were held out of its training.
        known: Test images of its classes.
        unknown: Images of none of its classes, by kind.
    """

    validation: Tensor
    known: Tensor
    unknown: dict[str, Tensor]


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Chance that a known image scores above an unknown one; a tie counts one half."""
    # torchmetrics would pass what is not between 0 and 1 through a sigmoid first.
    pairs = len(known) * len(unknown)
    return float(stats.mannwhitneyu(known, unknown).statistic / pairs)


def refused(scores: Tensor, threshold: Tensor) -> float:
    """Share of images with a score below a threshold."""
    return float((scores < threshold).double().mean())


def thin_out(images: Tensor, limit: int) -> Tensor:
    """At most `limit` images, evenly spaced, so that each class keeps its share."""
    if len(images) <= limit:
        return images
    return images[torch.arange(limit) * len(images) // limit]


def choose_images(
    checkpoint: Checkpoint, images: ImageSet, limit: int, seed: int
) -> Images:
    """The images to ask a checkpoint's network about.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        images: Those that it was trained with, and perhaps more classes.
        limit: How many of each kind at most.
        seed: Of what is drawn.

    Raises:
        InputError: It was trained with others.
    """
    names = list(checkpoint["hyper_parameters"]["classes"])
    labels = torch.tensor(
        [names.index(name) if name in names else -1 for name in images.classes]
    )
    pixels, test_labels = images.test
    ours = labels[test_labels] >= 0
    known, others = pixels[ours], pixels[~ours]
    known, others = thin_out(known, limit), thin_out(others, limit)
    count = len(known)
    generator = torch.Generator().manual_seed(seed)
    pixels = known.view(count, -1, 3)
    order = torch.rand(pixels.shape[:2], generator=generator).argsort(dim=1)
    shuffled = pixels.gather(1, order[..., None].expand_as(pixels)).view_as(known)
    noise = torch.randint(256, known.shape, dtype=torch.uint8, generator=generator)
    unknown = {"uniform noise": noise, "shuffled pixels": shuffled}
    if images.classes != SHAPES:
        unknown["drawn shapes"] = draw_shapes(count, seed)[0]
    if len(others):
        left_out = ", ".join(sorted(set(images.classes) - set(names)))
        unknown[f"held-out classes: {left_out}"] = others
    train_images, train_labels = images.train
    validation = held_out(checkpoint, train_images, labels[train_labels])
    return Images(thin_out(validation, limit), known, unknown)


def held_out(checkpoint: Checkpoint, images: Tensor, labels: Tensor) -> Tensor:
    """The validation images of a checkpoint's training.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        images: uint8 (N, 32, 32, 3), training images.
        labels: int64 (N,), in the order of the checkpoint's classes; -1 for others.

    Raises:
        InputError: It was trained with other images.
    """
    images, labels = images[labels >= 0], labels[labels >= 0]
    checksum = zlib.crc32(labels.numpy().data, zlib.crc32(images.numpy().data))
    if checkpoint.get("images") != f"{checksum:08x}":
        raise InputError(
            f"--data_dir: its training images have the checksum {checksum:08x}, the "
            f"checkpoint's {checkpoint.get('images')}; give those it was trained with"
        )
    config = checkpoint["config"]
    _, chosen = stratified_split(labels, config["val_size"], config["seed"])
    return images[chosen]


def scores_of(model: LitCustomResNet, images: Tensor) -> dict[str, Tensor]:
    """Scores of images, float64 (N,) each, higher for known ones.

    Args:
        model: The network.
        images: uint8 (N, 32, 32, 3).
    """
    seen = see(model, images.permute(0, 3, 1, 2))
    logits = seen.logits.double()
    shares = to_probabilities(logits, model.hparams["label_smoothing"])
    views = Seen(*(values[:, None] for values in seen))
    return {
        "maximum softmax": logits.softmax(1).amax(1),
        "maximum logit": logits.amax(1),
        "energy": logits.logsumexp(1),
        "negative entropy": -entropy(shares),
        NOVELTY: -novelty_of(model, views).double(),
    }


def compare(model: LitCustomResNet, images: Images) -> list[dict[str, Any]]:
    """A row a score and kind of unknown images, with figures in shares."""

    def warned(scores: dict[str, Tensor]) -> float:
        return float((scores[NOVELTY] <= -1).double().mean())

    validation = scores_of(model, images.validation)
    known = scores_of(model, images.known)
    rows = []
    for kind, pixels in images.unknown.items():
        unknown = scores_of(model, pixels)
        for name, ours in known.items():
            theirs = unknown[name]
            threshold = validation[name].quantile(REFUSED)
            row = {
                "score": name,
                "unknown": kind,
                "n_known": len(ours),
                "n_unknown": len(theirs),
                "auroc": auroc(ours, theirs),
                "fpr_at_95_tpr": 1 - refused(theirs, ours.quantile(REFUSED)),
                "n_validation": len(images.validation),
                "threshold": float(threshold),
                "known_refused": refused(ours, threshold),
                "unknown_refused": refused(theirs, threshold),
                "warned_validation": warned(validation),
                "warned_known": warned(known),
                "warned_unknown": warned(unknown),
            }
            rows.append(rounded(row))
    return rows


def table(file: Path = RECORD) -> str:
    """A row a network and kind: AUROC of each score, and the shares that are marked."""
    settings = ["unknown", "n_classes", "base_width", "epochs", "label_smoothing"]
    rows = []
    for setting, same in read_rows(file).groupby(settings, sort=False):
        unknown, classes, width, epochs, smoothing = setting
        network = f"{classes} classes, width {width}, {epochs} epochs"
        row = {
            "unknown images": unknown,
            "network": f"{network}, smoothing {smoothing}",
        }
        row |= {"n": str(same["n_unknown"].iloc[-1])}
        for score, auroc in zip(same["score"], same["auroc"], strict=True):
            row[score.removeprefix("negative ")] = f"{auroc:.3f}"
        for which in ("unknown", "known"):
            share = same[f"warned_{which}"].iloc[-1]
            row[f"{which}, marked"] = f"{100 * share:.1f} %"
        rows.append(row)
    columns = [name for row in rows for name in row if not name.endswith(", marked")]
    order = [*dict.fromkeys(columns), "unknown, marked", "known, marked"]
    return markdown(pd.DataFrame(rows, columns=order).fillna(""))


def unknown_images(
    output: str,
    ckpt_path: str,
    data: Asked = "auto",
    data_dir: str = "data",
    limit: int = 2000,
    seed: int = 3,
) -> None:
    """Compare scores by AUROC and add the rows to a CSV file.

    Args:
        output: CSV file to which the rows are added.
        ckpt_path: Checkpoint of a network.
        data: Known images, as for train.py.
        data_dir: Folder of the images.
        limit: How many images of each kind at most.
        seed: Seed of the noise and of the shapes.
    """
    read_rows(Path(output), "unknown")  # a wrong file is refused before the work
    path = Path(ckpt_path)
    model, checkpoint = load_model(path), read_checkpoint(path, to_resume=False)
    images = sources.load(sources.fetch(data, Path(data_dir)), Path(data_dir))
    chosen = choose_images(checkpoint, images, limit, seed)
    cpu = choose_hardware("cpu", precision="32-true")
    shared = {
        "date": today(),
        "n_classes": len(checkpoint["hyper_parameters"]["classes"]),
        "base_width": model.hparams["base_width"],
        "epochs": checkpoint["epoch"] + 1,
        "label_smoothing": model.hparams["label_smoothing"],
        **provenance.circumstances(cpu),
    }
    for row in compare(model, chosen):
        add_row(Path(output), row | shared)
    print(table(Path(output)))


if __name__ == "__main__":
    cli.run("unknown_images.py", unknown_images)
