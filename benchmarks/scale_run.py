"""One training on random images, timed: what `scale.py` starts anew for every size.

    python benchmarks/scale_run.py --images 1000000 --output_dir runs/scale

trains as `train.py` does, without range test and test, and prints a line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import torch
from pytorch_lightning.callbacks import Callback

from benchmarks.noise import RandomImages, fit, prepare
from common import cli
from config import Config
from machine import provenance
from machine.hardware import choose_hardware

MIB = 2**20


class SetUpClock(Callback):
    """Notes when the first step is about to begin."""

    ended = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Everything is in its place."""
        self.ended = time.perf_counter()


def scale_run(
    output_dir: str,
    images: int = 50_000,
    epochs: int = 1,
    batch_size: int = 512,
    processes: int = 1,
    images_per_epoch: int = 4096,
    base_width: int = 4,
    device: Literal["cpu", "cuda"] = "cpu",
    on_host: bool = False,
) -> dict[str, Any]:
    """Train once and say how long it took and how much memory.

    Args:
        output_dir: Folder for the run.
        images: Size of the training set.
        epochs: Length of the training.
        batch_size: Images in a global batch.
        processes: Number of processes, each with a device, that share a batch.
        images_per_epoch: Images that are trained on in an epoch, in whole batches.
        base_width: Channels of the first convolution.
        device: What trains.
        on_host: Hold the images in host memory even where they fit on the device.
    """
    config = Config(
        lr=0.001,
        val_size=0,
        batch_size=batch_size,
        max_epochs=epochs,
        base_width=base_width,
        limit_train_batches=images_per_epoch // batch_size,
    )
    strategy = "auto" if processes == 1 else "ddp"
    hardware = choose_hardware(device, processes, 1, strategy, "auto")
    prepare(device)
    data, set_up = RandomImages(images, batch_size, on_host=on_host), SetUpClock()
    data.setup()
    clock = fit(config, hardware, data, output_dir, set_up)
    result = {
        "set_up_seconds": round(set_up.ended - data.drawn, 3),
        "fit_seconds": round(clock.seconds, 3),
        "images_trained": clock.images,
        **peaks(hardware.device),
        **provenance.circumstances(hardware),
    }
    if cli.is_first_process():
        print(json.dumps(result))
    return result


def peaks(device: torch.device) -> dict[str, float | str]:
    """The most memory that this process has held so far, in MiB; "" if unknown."""
    resident: float | str = ""
    if sys.platform != "win32":
        import resource  # which Windows has not

        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resident = round(most * unit / MIB, 1)
    allocated: float | str = ""
    if device.type == "cuda":
        allocated = round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    return {"peak_mib": resident, "device_peak_mib": allocated}


if __name__ == "__main__":
    cli.run("scale_run.py", scale_run)
