"""Where the time of a training step goes, by PyTorch's profiler."""

import itertools
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from benchmarks.paces import Setting, train_briefly
from benchmarks.rows import markdown, summary, today
from images.loader import BLOCK
from machine.provenance import now

WARM_UP = BLOCK  # steps; what the loader makes at once is timed once, too
ROWS = 20  # operations in the table


def profile_page(setting: Setting, circumstances: dict[str, str]) -> str:
    """Time some steps of the trainer, profile as many, and say what was found.

    Args:
        setting: With the steps of both, and those that warm up.
        circumstances: To be kept with it.
    """
    profiler = StepProfiler(setting, (setting.steps - WARM_UP) // 2)
    with tempfile.TemporaryDirectory() as folder:
        train_briefly(setting, Path(folder), profiler)
    faults = [b - a for a, b in itertools.pairwise(profiler.faults)]
    facts = {
        "date": today(),
        **setting._asdict(),
        **circumstances,
        **step_times(setting, profiler.seconds),
        "page faults a step": summary(faults, 0),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    title = "# Where a training step's time goes"
    return "\n".join([title, "", *lines, "", markdown(operations(profiler)), ""])


def step_times(setting: Setting, seconds: list[float]) -> dict[str, str]:
    """What the steps took, given when each began and the last one ended.

    On a GPU only the first and the last time are the device's, for a step that waited
    for it would not be one of a training: their mean is all that can be told.
    """
    times = [1e3 * (b - a) for a, b in itertools.pairwise(seconds)]
    if setting.device == "cuda":
        mean = sum(times) / len(times)
        pace = 1e3 * setting.batch_size / mean
        return {
            "ms a step": f"{mean:.2f}, mean of {len(times)} in a row",
            "images/s": f"{pace:.0f}",
        }
    paces = [1e3 * setting.batch_size / time for time in times]
    return {
        "ms a step": f"{summary(times, 1)}, n = {len(times)}",
        "images/s": summary(paces, 0),
    }


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
            is_end = batch_idx in (WARM_UP, last)
            clock = partial(now, self.setting.device) if is_end else time.perf_counter
            self.seconds.append(clock())
            self.faults.append(page_faults())
        if batch_idx == last:
            self.profile.start()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self.profile.stop()


def page_faults() -> int:
    """Those of this process so far; 0 on Windows, which does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def operations(profiler: StepProfiler) -> pd.DataFrame:
    """The operations that take most of the time, host or device, a row each."""
    averages: Any = profiler.profile.key_averages()
    on_device = profiler.setting.device == "cuda"
    where = "device" if on_device else "host"
    if on_device:  # every kernel is there a second time, as its operation on the host
        averages = [
            average
            for average in averages
            if average.device_type.name == "CUDA" and not average.is_user_annotation
        ]
    field = "self_device_time_total" if on_device else "self_cpu_time_total"
    found = pd.DataFrame(
        [(each.key, each.count, getattr(each, field)) for each in averages],
        columns=["name", "calls", "time"],
    )
    most = found.nlargest(ROWS, "time")
    shown = {
        "operation": [f"`{name[:60]}`" for name in most["name"]],
        "calls a step": (most["calls"] / profiler.steps).map("{:g}".format),
        f"{where} ms a step": (most["time"] / 1e3 / profiler.steps).map(
            "{:.2f}".format
        ),
        "share": (100 * most["time"] / found["time"].sum()).map("{:.1f} %".format),
    }
    return pd.DataFrame(shown)
