"""Which heat map shows best where the network looks.

    python benchmarks/studies/explanations.py --output FILE.csv

asks the network of `--ckpt_path`, by default the project's own, where it sees the class
that it predicts. Three figures say how good such a map is:

- `hidden`: probability of the class when the hottest quarter of the pixels is painted
  in the mean colour; lower is better.
- `kept`: likewise when all but the hottest half is; higher is better.
- `side`: two images of different classes lie side by side, the middle 16 columns of
  each, and the map of either class is to be hotter on its side; 0.5 is chance.

Maps of random blobs say what a figure is worth. The best map is that with the largest
`kept` less `hidden` (`gap`) on training images, for nothing is chosen on test images;
what it is worth on images that were not trained on is to be read off those. Errors are
standard errors over images. A row a map and split is added to the output file.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.explanation import LOG_PROBABILITY, Score, heat_map, maps_and_gradients
from analysis.inference import predict_proba
from analysis.loading import load_model
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from benchmarks.studies.unknown_images import thin_out
from common import cli
from common.files import expanded
from config import DEFAULT_DIR, IMAGE_SIZE, Asked
from images import sources
from lightning_module import LitCustomResNet
from machine import provenance
from machine.hardware import choose_hardware

RECORD = RESULTS / "2026-11-26_explanations_cpu.csv"
BATCH_SIZE = 250  # images at once
LAYERS = ("prep", "layer1", "layer2", "layer3")  # outputs of 32, 16, 7 and 3 a side
BLOBS = 7  # random numbers a side, between which a map of blobs is smooth
HIDDEN, KEPT = 0.25, 0.5  # shares of the pixels

Cam = Callable[[Tensor, Tensor], Tensor]  # maps, gradients (N, K, H, W) -> (N, H, W)
Heat = Callable[[Tensor, Tensor], Tensor]  # images, labels -> (N, 32, 32)
PLAIN: Score = nn.Identity()


def grad_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM (arXiv 1610.02391): channels weighted by their mean gradient."""
    return (gradients.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1)


def hires_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM (arXiv 2011.08891): each place weighted by its own gradient."""
    return (gradients * maps).sum(dim=1)


def layer_cam(maps: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (IEEE TIP 2021): likewise, without gradients below 0."""
    return (F.relu(gradients) * maps).sum(dim=1)


METHODS: dict[tuple[str, str], tuple[Cam, Score]] = {
    ("Grad-CAM", "logit"): (grad_cam, PLAIN),
    ("HiResCAM", "log-probability"): (hires_cam, LOG_PROBABILITY),
    ("LayerCAM", "log-probability"): (layer_cam, LOG_PROBABILITY),
}


def candidates(model: LitCustomResNet, seed: int) -> dict[tuple[str, str, str], Heat]:
    """Every map that is compared, by method, score and layer."""
    generator = torch.Generator().manual_seed(seed)

    def blobs(images: Tensor, labels: Tensor) -> Tensor:
        return heat_map(torch.rand(len(images), BLOBS, BLOBS, generator=generator))

    def of(cam: Cam, score: Score, layer: nn.Module) -> Heat:
        return lambda images, labels: heat_map(
            cam(*maps_and_gradients(model, layer, images, labels, score))
        )

    maps = {
        (method, score, layer): of(*how, getattr(model.net, layer))
        for (method, score), how in METHODS.items()
        for layer in LAYERS
    }
    return {("random blobs", "", ""): blobs, **maps}


def hottest(heat: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the pixels, those where a map is hottest; drawn where it is even.

    Args:
        heat: float32 (N, 32, 32), from 0 to 1.
        share: From 0 to 1.
        generator: Draws.

    Returns:
        bool (N, 32, 32).
    """
    flat = heat.flatten(1) + 1e-6 * torch.rand(heat[0].numel(), generator=generator)
    places = flat.topk(round(share * flat.shape[1])).indices
    found = torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, value=True)
    return found.view_as(heat)


def glue(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of images of different classes, the middle columns of both side by side.

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        seed: Of who stands beside whom.

    Returns:
        uint8 (M, 3, 32, 32), and int64 (M, 2): the classes to the left and right.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    other = order.roll(1)
    differ = labels[order] != labels[other]
    pairs = torch.stack([order, other], dim=1)[differ]
    quarter = IMAGE_SIZE // 4
    middle = images[..., quarter : IMAGE_SIZE - quarter]
    left, right = pairs.unbind(dim=1)
    return torch.cat([middle[left], middle[right]], dim=3), labels[pairs]


def is_on_its_side(heat: Heat, glued: Tensor, classes: Tensor) -> Tensor:
    """Share of the two classes whose map is hotter on their side, float (M,)."""
    shares = []
    for side in (0, 1):
        halves = heat(glued, classes[:, side]).unflatten(2, (2, -1)).sum(dim=(1, 3))
        shares.append((halves[:, side] > halves[:, 1 - side]).float())
    return torch.stack(shares).mean(dim=0)


def judge(
    model: LitCustomResNet, heat: Heat, images: Tensor, labels: Tensor, seed: int
) -> dict[str, float]:
    """The figures of a map: mean over images, and its standard error.

    Args:
        model: As `load_model` gives it.
        heat: The map.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,), the true classes.
        seed: Of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    fill = (255 * torch.tensor(model.hparams["mean"])).round().to(torch.uint8)
    figures: dict[str, list[Tensor]] = {"hidden": [], "kept": [], "side": []}
    for batch in images.split(BATCH_SIZE):
        predicted = predict_proba(model, batch).argmax(dim=1)
        found = heat(batch, predicted)
        for name, share in (("hidden", HIDDEN), ("kept", KEPT)):
            hot = hottest(found, share, generator)
            painted = hot if name == "hidden" else ~hot
            seen = torch.where(painted[:, None], fill[:, None, None], batch)
            chances = predict_proba(model, seen).gather(1, predicted[:, None])
            figures[name].append(chances.flatten())
    glued, classes = glue(images, labels, seed)
    for pair, both in zip(
        glued.split(BATCH_SIZE), classes.split(BATCH_SIZE), strict=True
    ):
        figures["side"].append(is_on_its_side(heat, pair, both))
    found_all = {name: torch.cat(parts).double() for name, parts in figures.items()}
    gap = found_all["kept"] - found_all["hidden"]
    row: dict[str, float] = {"n": len(images), "n_glued": len(glued)}
    for name, values in (*found_all.items(), ("gap", gap)):
        error = values.std() / len(values) ** 0.5
        row |= {name: round(values.mean().item(), 4)}
        row |= {f"{name}_error": round(error.item(), 4)}
    return row


def table(file: Path = RECORD) -> str:
    """A row a map: what it is chosen by, and what it reaches on test images."""
    keys = ["method", "score", "layer"]
    rows = read_rows(file, text=keys).fillna(dict.fromkeys(keys, ""))
    by_split = {name: part.set_index(keys) for name, part in rows.groupby("split")}

    def cell(split: str, map_of: Any, name: str) -> str:
        row = by_split[split].loc[map_of]
        return f"{row[name]:.3f} ± {row[f'{name}_error']:.3f}"

    best_first = by_split["train"]["gap"].sort_values(ascending=False).index
    lines = [
        {
            "map": f"{method} of the {score}" if score else method,
            "at": f"`{layer}`" if layer else "",
            "kept less hidden, training images": cell("train", map_of, "gap"),
            **{name: cell("test", map_of, name) for name in ("hidden", "kept", "side")},
        }
        for map_of in best_first
        for method, score, layer in [map_of]
    ]
    return markdown(pd.DataFrame(lines))


def explanations(
    output: str,
    ckpt_path: str | None = None,
    data: Asked = "auto",
    data_dir: str = DEFAULT_DIR,
    limit: int = 500,
    seed: int = 0,
) -> None:
    """Compare heat maps and add the rows to a CSV file.

    Args:
        output: CSV file to which the rows are added.
        ckpt_path: Checkpoint of a network; null for the project's own weights.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        limit: How many images of each split at most.
        seed: Seed of all that is drawn.
    """
    read_rows(Path(output), "method")  # a wrong file is refused before the work
    model = load_model(ckpt_path)
    folder = expanded(data_dir).absolute()
    found = sources.load(sources.fetch(data, folder), folder)
    cpu = choose_hardware("cpu", precision="32-true")
    shared = {"date": today(), "seed": seed, **provenance.circumstances(cpu)}
    for (method, score, layer), heat in candidates(model, seed).items():
        for split, (pixels, labels) in (("train", found.train), ("test", found.test)):
            images = thin_out(pixels, limit).permute(0, 3, 1, 2)
            figures = judge(model, heat, images, thin_out(labels, limit), seed)
            row = {"method": method, "score": score, "layer": layer, "split": split}
            add_row(Path(output), row | figures | shared)
            print(*(row | figures).values(), flush=True)
    print(table(Path(output)))


if __name__ == "__main__":
    cli.run("explanations.py", explanations)
