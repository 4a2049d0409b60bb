"""One training on random images, timed: what `scale.py` starts anew for every size.

    python benchmarks/scale_run.py --images 1000000 --output_dir /tmp/run

trains as `train.py` does, without range test and test, and prints a line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common import cli
from config import Config
from datamodule import CIFAR10DataModule
from images.sources import ImageSet
from machine import memory, provenance
from machine.hardware import Hardware, choose_hardware
from train import build_module
from training.history import History, TrainingClock
from training.run_folder import RunFolder
from training.trainer import build_trainer

CLASSES = tuple("0123456789")
MIB = 2**20


class RandomImages(CIFAR10DataModule):
    """Noise in the shape of CIFAR-10; what is on images changes no time and no memory.

    Args:
        count: Number of training images, of which none is held out.
        batch_size: Images in a global batch.
        on_host: Hold them in host memory even where they fit on the device.

    Attributes:
        drawn: When the images were there, as `time.perf_counter` tells it.
    """

    def __init__(self, count: int, batch_size: int, *, on_host: bool) -> None:
        super().__init__(batch_size=batch_size, val_size=0)
        self.count, self.forced = count, on_host

    def prepare_data(self) -> None:
        """Nothing to download."""

    def load_images(self) -> ImageSet:
        """Draw them."""
        images = ImageSet(noise(self.count), noise(len(CLASSES)), CLASSES)
        self.drawn = time.perf_counter()
        return images

    def stays_on_host(self, device: torch.device) -> bool:
        """As asked for, or as usual."""
        return self.forced or super().stays_on_host(device)


class SetUpClock(Callback):
    """Notes when the first step is about to begin."""

    ended = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Everything is in its place."""
        self.ended = time.perf_counter()


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Random images, uint8 (count, 32, 32, 3), and labels, int64 (count,)."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return torch.from_numpy(pixels), torch.arange(count) % len(CLASSES)


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
        max_epochs=epochs,
        batch_size=batch_size,
        base_width=base_width,
        limit_train_batches=images_per_epoch // batch_size,
    )
    strategy = "auto" if processes == 1 else "ddp"
    hardware = choose_hardware(device, processes, 1, strategy, "auto")
    torch.set_float32_matmul_precision("high")
    if device == "cpu":
        memory.keep_freed_memory()
    data = RandomImages(images, batch_size, on_host=on_host)
    data.setup()
    trainer, clock, set_up = build(config, hardware, data, output_dir)
    trainer.fit(build_module(config, data), datamodule=data)
    result = {
        "set_up_seconds": round(set_up.ended - data.drawn, 3),
        "fit_seconds": round(clock.seconds, 3),
        "images_trained": clock.images,
        **peaks(hardware.device),
        **provenance.circumstances(hardware),
    }
    if trainer.is_global_zero:
        print(json.dumps(result))
    return result


def build(
    config: Config, hardware: Hardware, data: RandomImages, output_dir: str
) -> tuple[pl.Trainer, TrainingClock, SetUpClock]:
    """The Trainer of `train.py`, with all its files, and the clocks in it."""
    run = RunFolder(output_dir, "run", seed=0)
    run.create()
    run.clear(overwrite=True)
    history, clock, set_up = History(run.metrics_csv), TrainingClock(), SetUpClock()
    trainer: Any = build_trainer(config, hardware, run, data, history, clock, None)
    trainer.callbacks.append(set_up)
    return trainer, clock, set_up


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
