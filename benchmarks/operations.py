"""How many operations a training step asks of the device, and how often it waits.

    python benchmarks/operations.py
    python benchmarks/operations.py --output benchmarks/results/DATE_operations.csv

A small network on a fast GPU waits for the host, which takes microseconds for every
operation. So the real Trainer, as train.py builds it, trains some steps, and every ATen
operation is counted by the part of the step that it belongs to. Views are left out
(`view`, `permute`, `select`, `detach` and whatever else only looks at memory that is
there), as they ask nothing of the device. A *host read* makes the host wait for it.

The counts are the same on every machine and for every width, so this runs on a CPU and
takes seconds; convolutions are as on a GPU, not laid side by side as on some CPUs.
"""

import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import custom_resnet
from benchmarks.noise import RandomImages, fit
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from common import cli
from config import Config, Precision
from machine.hardware import choose_hardware
from machine.provenance import circumstances

PARTS = ("loader", "network", "loss and metrics", "backward", "optimizer", "callbacks")
TOTAL, READS = "whole step", "host reads"
# Of 16 steps each, so that what is done once for 16 batches counts a sixteenth.
WARM_UP, SPAN = 16, 32
BATCH_SIZE, BASE_WIDTH = 8, 4
EMA_DECAY = 0.99


class Count(TorchDispatchMode):
    """Counts operations and host reads by the part that is set.

    Attributes:
        part: What the next ones belong to.
        counts: Operations of each part.
        reads: How often the host waited.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = PARTS[0]
        self.counts: Counter[str] = Counter()
        self.reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        if func.namespace == "aten" and not func.is_view:
            self.counts[self.part] += 1
            self.reads += is_host_read(func, args, out)
        return out


def is_host_read(func: Any, args: Any, out: Any) -> bool:
    """Whether an operation makes the host wait for what the device has computed."""
    if func.overloadpacket in (
        torch.ops.aten._local_scalar_dense,  # `item`, `if tensor:`
        torch.ops.aten.nonzero,
        torch.ops.aten.equal,
    ):
        return True
    if not isinstance(out, Tensor) or out.device.type != "cpu":
        return False
    return any(isinstance(one, Tensor) and one.device.type != "cpu" for one in args)


class CountSteps(Callback):
    """Counts some steps, and says which part comes; put it behind all others."""

    def __init__(self) -> None:
        self.count: Any = Count()
        self.counting = ExitStack()

    def enter(self, part: str) -> None:
        """Count what follows as part of this."""
        self.count.part = part

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Have network and optimizer tell when they are done."""
        pl_module.net.register_forward_hook(lambda *_: self.enter("loss and metrics"))
        trainer.optimizers[0].register_step_post_hook(
            lambda *_: self.enter("callbacks")
        )

    def on_train_batch_start(self, *_: Any) -> None:
        """The batch is there."""
        self.enter("network")

    def on_before_zero_grad(self, *_: Any) -> None:
        """The loss is there."""
        self.enter("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        """The gradients are there."""
        self.enter("optimizer")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What follows, up to the next step, makes its batch."""
        self.enter("loader")
        if batch_idx + 1 == WARM_UP:
            self.counting.enter_context(self.count)
        if batch_idx + 1 == WARM_UP + SPAN:
            self.counting.close()


def count_step(config: Config) -> Count:
    """Train on a CPU, and count the operations of `SPAN` steps.

    Args:
        config: All flags but those of the epochs and batches.
    """
    hardware = choose_hardware("cpu", precision=config.precision)
    steps = WARM_UP + SPAN + 1
    images = RandomImages(steps * config.batch_size, config.batch_size)
    images.setup()
    counting = CountSteps()
    small_map, custom_resnet.SMALL_MAP = custom_resnet.SMALL_MAP, 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(config, hardware, images, folder, counting)
    finally:
        custom_resnet.SMALL_MAP = small_map
    count: Count = counting.count
    return count


def measure(precision: Precision, ema_decay: float) -> dict[str, float]:
    """Operations a step by part, their sum, and host reads a step."""
    config = Config(
        lr=0.001,
        val_size=0,
        batch_size=BATCH_SIZE,
        base_width=BASE_WIDTH,
        max_epochs=1,
        precision=precision,
        ema_decay=ema_decay,
    )
    count = count_step(config)
    found = {part: count.counts[part] / SPAN for part in PARTS}
    return found | {TOTAL: sum(found.values()), READS: count.reads / SPAN}


def operations(
    precision: Precision = "bf16-mixed",
    label: str = "now",
    output: str | None = None,
) -> None:
    """Count the operations of a training step, without averaged weights and with.

    Args:
        precision: Number format.
        label: What the rows are called.
        output: CSV file to which the rows are added; docs/lab/speed.md shows those
            named benchmarks/results/DATE_operations.csv.

    Raises:
        InputError: There is no such precision on a CPU, or the file is something else.
    """
    if output is not None:
        read_rows(Path(output), TOTAL)  # a wrong file is refused before the work
    hardware = choose_hardware("cpu", precision=precision)
    rows = []
    for ema_decay in (0.0, EMA_DECAY):
        about = {"date": today(), "label": label, "ema_decay": ema_decay}
        rows.append(about | measure(precision, ema_decay) | circumstances(hardware))
    for row in rows:
        if output is not None:
            add_row(Path(output), row)
    print(as_table(pd.DataFrame(rows)))


def table() -> str:
    """All counts on record, in Markdown."""
    files = sorted(RESULTS.glob("*_operations.csv"))
    return as_table(pd.concat([read_rows(file) for file in files]))


def as_table(rows: pd.DataFrame) -> str:
    """Rows in Markdown, without their circumstances."""
    shown = {
        "": rows["label"],
        "averaged weights": rows["ema_decay"].map(
            lambda decay: "yes" if decay else "no"
        ),
        **{name: rows[name].map("{:.4g}".format) for name in (*PARTS, TOTAL, READS)},
    }
    return markdown(pd.DataFrame(shown))


if __name__ == "__main__":
    cli.run("operations.py", operations)
