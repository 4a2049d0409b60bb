"""Where the time of a training step goes, by PyTorch's profiler.

    python benchmarks/step_profile.py --device cpu --batch_size 512 --output FILE.md

trains on noise through the project's own Trainer, times some steps without the
profiler, profiles some more, and writes a page: time and page faults of a step, and the
operations that take most of the time, of a GPU's where there is one. With
`--keep_memory false` a CPU pays for page faults as glibc would have it.
"""

import datetime
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytorch_lightning.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from benchmarks.paces import TRAIN_IMAGES, Setting, fit
from benchmarks.throughput import summary
from common import cli
from common.errors import InputError
from config import Precision
from machine import provenance
from machine.hardware import choose_hardware
from machine.provenance import now

WARM_UP = 3  # steps
ROWS = 20  # operations in the table


def page_faults() -> int:
    """Those of this process so far; 0 on Windows, which does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class StepProfiler(Callback):
    """Times some steps, then profiles as many."""

    def __init__(self, setting: Setting, steps: int) -> None:
        self.setting, self.steps = setting, steps
        self.seconds: list[float] = []
        self.faults: list[int] = []
        activities = [ProfilerActivity.CPU]
        if setting.device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities, acc_events=True)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin, or go on to the next step."""
        last = WARM_UP + self.steps
        if WARM_UP <= batch_idx <= last:
            self.seconds.append(now(self.setting.device))
            self.faults.append(page_faults())
        if batch_idx == last:
            self.profile.start()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self.profile.stop()


def page(profiler: StepProfiler, circumstances: dict[str, str]) -> str:
    """What was found, in Markdown."""
    times = [1e3 * (b - a) for a, b in itertools.pairwise(profiler.seconds)]
    faults = [b - a for a, b in itertools.pairwise(profiler.faults)]
    images = profiler.setting.batch_size
    facts = {
        "date": datetime.date.today().isoformat(),
        **profiler.setting._asdict(),
        **circumstances,
        "ms a step": f"{summary(times, 1)}, n = {len(times)}",
        "images/s": summary([1e3 * images / time for time in times], 0),
        "page faults a step": summary(faults, 0),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *operation_rows(profiler), ""])


def operation_rows(profiler: StepProfiler) -> list[str]:
    """The operations that take most of the time, host or device, in a table."""
    operations: Any = profiler.profile.key_averages()
    on_device = profiler.setting.device == "cuda"
    if on_device:  # every kernel is there a second time, as its operation on the host
        operations = [
            operation
            for operation in operations
            if operation.device_type.name == "CUDA" and not operation.is_user_annotation
        ]

    def milliseconds(operation: Any) -> float:
        name = "self_device_time_total" if on_device else "self_cpu_time_total"
        return float(getattr(operation, name)) / 1e3

    total = sum(map(milliseconds, operations))
    where = "device" if on_device else "host"
    rows = [
        f"| operation | calls a step | {where} ms a step | share |",
        "|---|---|---|---|",
    ]
    for operation in sorted(operations, key=milliseconds, reverse=True)[:ROWS]:
        time = milliseconds(operation)
        cells = [
            f"`{operation.key[:60]}`",
            f"{operation.count / profiler.steps:g}",
            f"{time / profiler.steps:.2f}",
            f"{100 * time / total:.1f} %",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def step_profile(
    output: str,
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 512,
    precision: Precision = "auto",
    steps: int = 10,
    compile: bool = False,
    base_width: int = 64,
    keep_memory: bool = True,
) -> None:
    """Profile training steps and write a page about them.

    Args:
        output: Markdown file to write.
        device: What trains.
        batch_size: Images in a batch.
        precision: Number format.
        steps: Steps to time, and again to profile.
        compile: Compile the network.
        base_width: Channels of the first convolution.
        keep_memory: Keep freed memory on a CPU, as train.py does.

    Raises:
        InputError: There is no such device, or there are too few images.
    """
    accelerator = "gpu" if device == "cuda" else "cpu"
    hardware = choose_hardware(accelerator, 1, 1, "auto", precision)
    settled: Precision = hardware.arguments["precision"]
    every = WARM_UP + 2 * steps
    if steps < 1 or every * batch_size > TRAIN_IMAGES:
        raise InputError(
            f"--steps {steps} --batch_size {batch_size}: {every} batches are needed of "
            f"{TRAIN_IMAGES} images; give at least one step, or smaller batches"
        )
    setting = Setting(
        device, settled, batch_size, every, base_width, compile, keep_memory
    )
    profiler = StepProfiler(setting, steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(setting, Path(folder), profiler)
    text = page(profiler, provenance.circumstances(hardware))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(f"# Where a training step's time goes\n\n{text}")
    print(text)


if __name__ == "__main__":
    cli.run("step_profile.py", step_profile)
