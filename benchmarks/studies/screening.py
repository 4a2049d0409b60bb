"""Which changes of the recipe pay: a two-level design in which every run counts.

    python benchmarks/studies/screening.py 0 1 2 --work DIR --output FILE.csv

trains rows of a Plackett-Burman design on 40,000 images of CIFAR-10 and judges each on
the 10,000 others. Every factor is at its upper level in half of the rows, and any two
factors meet at all pairs of levels equally often, so twelve rows say as much of each
factor as twelve runs for it alone would. Rows 12 to 23 are the first twelve with all
levels turned round; with them no effect of a factor is mixed with that of a pair.

What is judged is the loss at the temperature that suits it best: it tells recipes apart
far sooner than accuracy does. All rows start from whitening filters, share the seed,
and are scaled at the logits, which a first trial found to pay.

An epoch that is done is kept in DIR, and the same command goes on behind it. `effects`
says what the rows on record show.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import circulant
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from common import cli
from common.errors import InputError
from common.files import expanded, replacing
from config import IMAGE_SIZE
from custom_resnet import CustomResNet
from datamodule import CIFAR10DataModule
from images.augmentation import Augmentation
from images.loader import EvalLoader, TrainLoader
from machine import provenance

RECORD = RESULTS / "2026-11-25_screening_cpu.csv"
HELD_OUT = 10_000  # images
SMOOTHING = 0.2
CPU = torch.device("cpu")
# Factor: its lower and its upper level.
FACTORS: dict[str, tuple[Any, Any]] = {
    "logit_scale": (0.25, 0.125),
    "batch_size": (256, 128),
    "beta2": (0.999, 0.99),  # of Adam
    "cutout": (8, 12),  # pixels
    "colour_jitter": (0.0, 0.15),  # largest change of brightness and contrast
    "cutmix": (0.0, 0.25),  # share of the batches
    "weight_decay": (0.2, 0.5),
    "residual_gain": (1.0, 0.2),  # at the start, of the last norm of a residual
    "dirac": (False, True),  # convolutions start by handing their input on
    "norm_momentum": (0.1, 0.3),
    "pct_start": (5 / 24, 0.1),
}
# What goes with a level: the rate that suits a batch size, the eps that suits a beta2.
LRS = {256: 0.0035, 128: 0.0025}
EPS = {0.999: 1e-8, 0.99: 1e-5}
# First row of the design for twelve runs (Plackett and Burman, Biometrika 33, 1946).
GENERATOR = (1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1)

Row = dict[str, Any]  # factor: its level


def design() -> list[Row]:
    """The levels of all 24 rows."""
    shifted = torch.from_numpy(circulant(GENERATOR)).T
    half = torch.cat([shifted, -torch.ones(1, len(GENERATOR), dtype=shifted.dtype)])
    return [
        {
            name: levels[sign > 0]
            for sign, (name, levels) in zip(signs, FACTORS.items(), strict=True)
        }
        for signs in torch.cat([half, -half]).tolist()
    ]


def build_net(row: Row, images: Tensor, base_width: int) -> CustomResNet:
    """The network with the start that a row asks for.

    Args:
        row: The levels.
        images: Normalised images (N, 3, 32, 32), to whiten.
        base_width: Channels of the first convolution.
    """
    torch.manual_seed(0)
    net = CustomResNet(base_width=base_width)
    net.whiten(images)
    _, *others = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for conv in others if row["dirac"] else ():
            nn.init.dirac_(conv.weight[: conv.in_channels])
        for residual in (net.residual1, net.residual3):
            last_norm: Any = residual[1].get_submodule("1")
            last_norm.weight.fill_(row["residual_gain"])
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = row["norm_momentum"]
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness and contrast of each normalised image (B, 3, 32, 32)."""
    if not strength:
        return images
    draws = torch.rand((2, len(images), 1, 1, 1), generator=generator)
    gain, shift = (strength * (2 * draws - 1)).unbind()
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = (images - middle) * (1 + gain) + middle + 2 * shift
    return changed


def cutmix(
    images: Tensor, labels: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """In some batches, a box of each image from another one (arXiv 1905.04899).

    Args:
        images: (B, 3, 32, 32).
        labels: int64 (B,).
        share: In how many of the batches.
        generator: Decides.

    Returns:
        The images, the labels of what is in the boxes, and the area of a box as a share
        of the image.
    """
    if torch.rand((), generator=generator) >= share:
        return images, labels, 0.0
    side = int(IMAGE_SIZE * (1 - torch.rand((), generator=generator)).sqrt())
    places = torch.randint(IMAGE_SIZE + 1 - side, (2,), generator=generator)
    top, left = places.tolist()
    other = torch.randperm(len(images), generator=generator)
    box = (..., slice(top, top + side), slice(left, left + side))
    mixed = images.clone()
    mixed[box] = images[other][box]
    return mixed, labels[other], side**2 / IMAGE_SIZE**2


def best_loss(scores: Tensor, labels: Tensor) -> float:
    """Cross-entropy at the temperature at which it is least.

    Args:
        scores: float (N, C), logits.
        labels: int64 (N,).
    """

    def loss(sharpness: float) -> float:
        return float(F.cross_entropy(scores.double() * 2**sharpness, labels))

    return float(minimize_scalar(loss, bounds=(-3, 6), method="bounded").fun)


class Training:
    """A row of the design, trained epoch after epoch on a CPU.

    Args:
        row: The levels.
        images: The data module, set up.
        epochs: Length of the training.
        base_width: Channels of the first convolution.
    """

    def __init__(
        self, row: Row, images: CIFAR10DataModule, epochs: int, base_width: int
    ) -> None:
        self.row, self.epoch = row, 0
        self.mean = 255 * torch.tensor(images.mean).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(images.std).view(1, 3, 1, 1)
        # In class folders these are of one class, whose patches are much like all.
        sample = self._normalised(images.train_set[0][:5000].permute(0, 3, 1, 2))
        self.net = build_net(row, sample, base_width)
        self.batches = TrainLoader(
            *images.train_set,
            batch_size=row["batch_size"],
            augmentation=Augmentation(4, "reflect", "alternate", row["cutout"]),
            fill=(255 * torch.tensor(images.mean)).round().to(torch.uint8),
            seed=0,
            device=CPU,
        )
        self.held_out = EvalLoader(*images.val_set, batch_size=500, device=CPU)
        lr, beta2 = LRS[row["batch_size"]], row["beta2"]
        weights = [p for p in self.net.parameters() if p.ndim > 1]
        norms = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.Adam(
            [
                {"params": weights, "weight_decay": row["weight_decay"]},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, beta2),
            eps=EPS[beta2],
            decoupled_weight_decay=True,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=lr,
            total_steps=epochs * len(self.batches),
            pct_start=row["pct_start"],
            anneal_strategy="linear",
        )

    def train_epoch(self) -> None:
        """Train one more epoch."""
        self.net.train()
        self.batches.set_epoch(self.epoch)
        draws = torch.Generator().manual_seed(1000 + self.epoch)
        for raw, labels in self.batches:
            images = jitter(self._normalised(raw), self.row["colour_jitter"], draws)
            images, others, share = cutmix(images, labels, self.row["cutmix"], draws)
            logits = self._logits(images)
            loss = torch.zeros(())
            for targets, part in ((labels, 1 - share), (others, share)):
                loss = loss + part * F.cross_entropy(
                    logits, targets, label_smoothing=SMOOTHING
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        self.epoch += 1

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Accuracy and best loss on the held-out images, without and with flip TTA."""
        self.net.eval()
        plain, flipped = [], []
        for raw, _ in self.held_out:
            images = self._normalised(raw)
            plain.append(self._logits(images))
            flipped.append(plain[-1] + self._logits(images.flip(3)))
        labels, found = self.held_out.labels, {}
        for name, parts in (("val", plain), ("val_tta", flipped)):
            scores = torch.cat(parts)
            found[f"{name}/acc"] = float((scores.argmax(1) == labels).float().mean())
            found[f"{name}/loss"] = best_loss(scores, labels)
        return found

    def save(self, path: Path) -> None:
        """Keep all that the next epoch depends on."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(path) as file:
            torch.save({"epoch": self.epoch, **parts}, file)

    def load(self, path: Path) -> None:
        """Go on behind the epoch that was kept."""
        state = torch.load(path, weights_only=True)
        self.epoch = state["epoch"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"net": self.net, "optimizer": self.optimizer}
        return parts | {"schedule": self.schedule}

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.net(images)
        return float(self.row["logit_scale"]) * logits.float()


def screening(
    rows: list[int],
    work: str,
    output: str,
    epochs: int = 8,
    base_width: int = 64,
    data_dir: str = "data",
) -> None:
    """Train rows of the design, and put each on record.

    Args:
        rows: Which ones, from 0 to 23.
        work: Folder of the epochs that are done.
        output: CSV file to which the rows are added.
        epochs: Length of a training.
        base_width: Channels of the first convolution.
        data_dir: Folder of the images.

    Raises:
        InputError: There is no such row, or the file is of something else.
    """
    if not {*rows} <= {*range(24)}:
        raise InputError(f"rows must be from 0 to 23, got {' '.join(map(str, rows))}")
    read_rows(expanded(output), "row", *FACTORS)  # refused before the work
    # Batches are made in `Training`.
    images = CIFAR10DataModule(data_dir=data_dir, val_size=HELD_OUT, batch_size=1)
    images.prepare_data()
    images.setup()
    expanded(work).mkdir(parents=True, exist_ok=True)
    for number in rows:
        row = design()[number]
        training = Training(row, images, epochs, base_width)
        kept = expanded(work) / f"row{number}_{epochs}.pt"
        if kept.exists():
            training.load(kept)
        while training.epoch < epochs:
            started = time.perf_counter()
            training.train_epoch()
            training.save(kept)
            seconds = time.perf_counter() - started
            print(f"row {number}: epoch {training.epoch}/{epochs}, {seconds:.0f} s")
        found = training.evaluate()
        print(f"row {number}: {found}", flush=True)
        circumstances = {
            "date": today(),
            "device": provenance.device_name(CPU),
            "versions": provenance.versions(CPU),
            "commit": provenance.commit(),
        }
        settings = {"row": number, "epochs": epochs, "base_width": base_width}
        add_row(expanded(output), {**settings, **row, **found, **circumstances})


def effects(rows: pd.DataFrame, response: str) -> pd.DataFrame:
    """What the upper level of each factor adds to a response, by least squares.

    With twelve rows nothing is left to tell chance by. The standard error then follows
    from the small effects (Lenth, Technometrics 31, 1989), else from what the effects
    leave unexplained.

    Args:
        rows: Those on record, twelve or more, of which the first twelve are the design.
        response: A column of them.

    Returns:
        A row a factor: `effect`, `error` and `p`, two-sided.
    """
    signs = np.array([[row[f] == FACTORS[f][1] for f in FACTORS] for row in design()])
    levels = 2.0 * signs[rows["row"].to_numpy()] - 1
    plan = np.column_stack([np.ones(len(rows)), levels])
    values = rows[response].to_numpy(dtype=float)
    halves, *_ = np.linalg.lstsq(plan, values)
    found = 2 * halves[1:]
    freedom: float = len(rows) - plan.shape[1]
    if freedom:
        variance = np.square(values - plan @ halves).sum() / freedom
        errors = 2 * np.sqrt(variance * np.diag(np.linalg.inv(plan.T @ plan))[1:])
    else:
        freedom, errors = len(found) / 3, np.full(len(found), _lenth(found))
    p = 2 * stats.t.sf(np.abs(found) / errors, freedom)
    columns = {"effect": found, "error": errors, "p": p}
    return pd.DataFrame(columns, index=pd.Index(FACTORS, name="factor"))


def _lenth(found: NDArray[np.float64]) -> float:
    """Standard error of effects of which most are nothing but chance."""
    sizes = np.abs(found)
    small = sizes[sizes < 2.5 * 1.5 * np.median(sizes)]
    return float(1.5 * np.median(small))


def read_finished() -> pd.DataFrame | None:
    """The rows on record; None while they are too few to say anything."""
    rows = read_rows(RECORD, "row", *FACTORS).drop_duplicates("row").sort_values("row")
    return rows if {*range(12)} <= {*rows["row"]} else None


def table() -> str:
    """A row a factor: its levels, and what the upper one adds."""
    rows = read_finished()
    if rows is None:
        done = read_rows(RECORD, "row", *FACTORS)["row"].nunique()
        return f"{done} of the first 12 rows are on record, and all are needed."
    losses = (1000 * effects(rows, "val/loss")[["effect", "error"]]).to_numpy()
    accuracies = (100 * effects(rows, "val/acc")[["effect", "error"]]).to_numpy()
    chances = effects(rows, "val/loss")["p"].to_numpy()
    cells = [
        {
            "factor": f"`{name}`",
            "from": f"{FACTORS[name][0]:.3g}",
            "to": f"{FACTORS[name][1]:.3g}",
            "loss, 1/1000": "{:+.2f} ± {:.2f}".format(*loss),
            "p": f"{p:.2g}",
            "accuracy, points": "{:+.2f} ± {:.2f}".format(*accuracy),
        }
        for name, loss, p, accuracy in zip(
            FACTORS, losses, chances, accuracies, strict=True
        )
    ]
    places = ", ".join(rows["device"].unique())
    return f"{len(rows)} rows, {places}:\n\n{markdown(pd.DataFrame(cells))}"


def figure() -> Figure | None:
    """The effects on the loss, a bar each; None while the rows are too few."""
    rows = read_finished()
    if rows is None:
        return None
    found = 1000 * effects(rows, "val/loss")
    drawn = Figure(figsize=(7, 4), layout="constrained")
    axes = drawn.subplots()
    axes.barh(found.index, found["effect"], xerr=found["error"], color="C0", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("what the upper level adds to the held-out loss, in thousandths")
    axes.grid(alpha=0.3, axis="x")
    return drawn


if __name__ == "__main__":
    cli.run("screening.py", screening)
