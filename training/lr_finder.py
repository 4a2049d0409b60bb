"""The learning-rate range test: a short training at a rising rate, and what it says."""

import contextlib
import io
import itertools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch_lr_finder import LRFinder, TrainDataLoaderIter

from common import signals
from common.errors import InputError
from config import Finder
from datamodule import CIFAR10DataModule
from images.loader import Batch, TrainLoader
from training.progress import RunProgressBar

log = logging.getLogger(__name__)

MIN_LR, MAX_LR = 1e-6, 1.0  # the rate rises from one to the other, by equal factors
# Of the pick at batch size 128: no loss of a test tells that more ruins a training.
# It goes with the root of the batch size, the rule for Adam of Malladi et al. (2022,
# arXiv:2205.10287), up to the largest that docs/lab/learning_rate.md has measured.
LIMIT = 0.01
LARGEST_MEASURED = 512
# The pick stays this factor below the valley's right edge: a training is longer at its
# highest rate than a test, and large batches leave it few steps to settle after that.
HEADROOM = 5
VALLEY = 0.07  # depth of the valley, as a share of the loss of guessing


class RangeTest(NamedTuple):
    """What a range test saw.

    Attributes:
        lrs: Learning rate of each step.
        losses: Training loss of each step's batch, not smoothed.
        valley: Lowest and highest rate at which it trained about as well as it could.
        lr: The pick, the middle of the valley, but at most `limit`, and not within
            `HEADROOM` of the right edge.
    """

    lrs: list[float]
    losses: list[float]
    valley: tuple[float, float]
    lr: float


def range_test(
    module: pl.LightningModule,
    data: CIFAR10DataModule,
    finder: Finder,
    steps: int,
    hardware: dict[str, Any],
) -> RangeTest:
    """Train `module`, which is spent afterwards, for `steps` steps and pick a rate.

    A line on the terminal says why the pick may be a bad one, where it may.

    Args:
        module: A new module.
        data: Where the batches come from; its `trainer` is None afterwards.
        finder: Which package runs the test.
        steps: Length of the test, at least `MIN_LR_STEPS`.
        hardware: The arguments of `Trainer` that say on what, and how, to train.

    Raises:
        InputError: The losses allow no pick, or the finder cannot do what is asked.
    """
    run = run_lightning if finder == "lightning" else run_torch_lr_finder
    try:
        lrs, losses = run(module, data, steps, hardware)
    finally:
        data.trainer = None
    num_classes = len(module.hparams["classes"])
    test = pick(lrs, losses, num_classes, data.batch_size)
    for line in doubts(test, num_classes):
        log.warning(line)
    return test


def pick(
    lrs: list[float], losses: list[float], num_classes: int, batch_size: int
) -> RangeTest:
    """What the losses of a test at rising rates say.

    Raises:
        InputError: Every loss is infinite or not a number.
    """
    valley = find_valley(lrs, losses, num_classes)
    lr = min(middle(valley), valley[1] / HEADROOM, limit(batch_size))
    return RangeTest(lrs, losses, valley, float(f"{lr:.3g}"))


def find_valley(
    lrs: list[float], losses: list[float], num_classes: int
) -> tuple[float, float]:
    """The rates between which a range test trains about as well as it can.

    They are the first and the last at which the smoothed loss is within `VALLEY` times
    log(num_classes), the loss of guessing, of its minimum. The floor is nearly flat, so
    the minimum and the steepest point wander over a decade from seed to seed; the edges
    are steep and hold. A hump between them is no edge: narrow networks have one, and
    train well on both sides of it.

    Raises:
        InputError: Every loss is infinite or not a number.
    """
    smoothed = smooth(losses)
    lowest = smoothed.min()
    if not np.isfinite(lowest):
        raise InputError(
            f"--lr auto: no loss in {len(lrs)} steps was finite, so there is nothing "
            "to pick; try another --precision, or give a rate such as --lr 0.01"
        )
    inside = np.flatnonzero(smoothed <= lowest + VALLEY * np.log(num_classes))
    return lrs[inside[0]], lrs[inside[-1]]


def doubts(test: RangeTest, num_classes: int) -> list[str]:
    """Why the pick may be a bad one, a line each; none if all is well."""
    found, guessing = [], float(np.log(num_classes))
    if smooth(test.losses).min() >= guessing:
        found.append(
            f"in the {len(test.lrs)} steps of the LR range test the loss never fell "
            f"below that of guessing, {guessing:.2f}, so the max LR {test.lr:g} is "
            "uncertain; a longer test may see more, such as --lr_steps 300, or give a "
            "rate, such as --lr 0.01"
        )
    if test.valley[1] == test.lrs[-1]:
        found.append(
            f"in the LR range test the loss was still low at its end, at a rate of "
            f"{test.lrs[-1]:.2g}, so the max LR {test.lr:g} is uncertain; if the run "
            "learns little, give a lower one, such as --lr 0.003"
        )
    return found


def middle(valley: tuple[float, float]) -> float:
    """The middle on the log scale."""
    low, high = valley
    return float((low * high) ** 0.5)


def limit(batch_size: int) -> float:
    """The highest pick: `LIMIT`, more for larger batches and less for smaller ones."""
    return float(LIMIT * (min(batch_size, LARGEST_MEASURED) / 128) ** 0.5)


def smooth(losses: list[float]) -> np.ndarray:
    """Centred running mean over some 9 % of a test; infinite where a loss is not.

    Unlike a mean of past losses it does not shift the curve towards higher rates.
    """
    values = np.array(losses)
    values[~np.isfinite(values)] = np.inf  # and not the largest float, nor minus that
    half = max(1, round(0.04 * len(values)))
    windows = [values[max(0, k - half) : k + half + 1] for k in range(len(values))]
    return np.array([window.mean() for window in windows])


def run_lightning(
    module: pl.LightningModule,
    data: CIFAR10DataModule,
    steps: int,
    hardware: dict[str, Any],
) -> tuple[list[float], list[float]]:
    """Learning rates and losses of a training by Lightning's Trainer."""
    rising = RisingRate(steps)
    trainer = pl.Trainer(
        **hardware,
        max_steps=steps,
        limit_val_batches=0,
        callbacks=[rising, RunProgressBar("LR range test")],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=data)
    return rising.lrs, rising.losses


class RisingRate(Callback):
    """Raises the learning rate from step to step, and records the losses.

    Lightning's `Tuner` does so, too, but records a running mean of the losses only,
    which lags by half of a usual test.

    Attributes:
        lrs: Learning rate of each step.
        losses: Loss of each step's batch, the mean over all processes; empty before
            the end.
    """

    def __init__(self, steps: int) -> None:
        self.lrs = ladder(steps)
        self.losses: list[float] = []
        self.seen: list[Tensor] = []  # on the device, for which no step is to wait

    def setup(self, *_: Any, **__: Any) -> None:
        """Note what signals do, before Lightning takes them over."""
        self.handlers = signals.current()

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Let signals end the test at once, and no schedule interfere."""
        signals.install(self.handlers)
        # The one cycle has set Adam's first beta to 0.95, and leaves it there.
        trainer.lr_scheduler_configs.clear()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set the rate of this step."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lrs[trainer.global_step]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Keep the loss of this step."""
        self.seen.append(outputs["loss"])

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Settle the losses, so that every process picks the same rate."""
        losses = trainer.strategy.reduce(torch.stack(self.seen), reduce_op="mean")
        self.losses = losses.tolist()


def ladder(steps: int) -> list[float]:
    """Rates from `MIN_LR` to `MAX_LR`, by equal factors; the first counts twice.

    They are those of Lightning's `Tuner`, which ran the tests on record.
    """
    rungs = [0, *range(2, steps + 1)]
    return [MIN_LR * (MAX_LR / MIN_LR) ** (rung / steps) for rung in rungs]


def run_torch_lr_finder(
    module: pl.LightningModule,
    data: CIFAR10DataModule,
    steps: int,
    hardware: dict[str, Any],
) -> tuple[list[float], list[float]]:
    """Learning rates and losses of the package torch-lr-finder.

    Raises:
        InputError: There is more than one process, of which it knows nothing.
    """
    trainer = pl.Trainer(**hardware, logger=False, enable_checkpointing=False)
    if trainer.world_size > 1:
        raise InputError(
            f"--lr_finder torch-lr-finder cannot share {trainer.world_size} processes; "
            "use --lr_finder lightning or --devices 1"
        )
    device, precision = trainer.strategy.root_device, trainer.precision
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision not in ("32-true", *mixed):
        raise InputError(
            f"--lr_finder torch-lr-finder does not know --precision {precision}; use "
            "--lr_finder lightning"
        )
    data.trainer = trainer
    make_optimizer: Any = module.to(device).make_optimizer
    finder = LRFinder(
        module,
        make_optimizer(),
        nn.CrossEntropyLoss(label_smoothing=module.hparams["label_smoothing"]),
        device=device,
        amp_backend="torch" if precision in mixed else None,
        amp_config={"device_type": device.type, "dtype": mixed.get(precision)},
        grad_scaler=GradScaler(device.type, enabled=precision == "16-mixed"),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on its methods
        finder.range_test(
            _EpochIterator(data.train_dataloader()),
            start_lr=MIN_LR,
            end_lr=MAX_LR,
            num_iter=steps,
            smooth_f=0,
            diverge_th=np.inf,  # the end is part of the record
        )
    return finder.history["lr"], finder.history["loss"]


class _EpochIterator(TrainDataLoaderIter):  # type: ignore[misc]
    """Feeds our loader to torch-lr-finder, epoch after epoch."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.batches = self._all_epochs()

    def __next__(self) -> Batch:
        return next(self.batches)

    def _all_epochs(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            self.loader.set_epoch(epoch)
            yield from self.loader
