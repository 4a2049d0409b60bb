"""Trainings on random images: what is on images changes no time and no memory."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common.errors import InputError
from config import Config
from datamodule import CIFAR10DataModule
from images.sources import ImageSet
from machine import memory
from machine.hardware import Hardware, cudnn_benchmark
from train import build_module
from training.cuda_graph import CudaGraph
from training.history import History, TrainingClock
from training.run_folder import RunFolder
from training.trainer import build_trainer

CLASSES = tuple("0123456789")


class RandomImages(CIFAR10DataModule):
    """Noise in the shape of CIFAR-10.

    Args:
        count: Number of training images, of which none is held out.
        batch_size: Images in a global batch.
        on_host: Hold them in host memory even where they fit on the device.

    Attributes:
        drawn: When the images were there, as `time.perf_counter` tells it.
    """

    def __init__(self, count: int, batch_size: int, *, on_host: bool = False) -> None:
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


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Random images, uint8 (count, 32, 32, 3), and labels, int64 (count,)."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return torch.from_numpy(pixels), torch.arange(count) % len(CLASSES)


def prepare(device: str, *, keep_memory: bool = True) -> None:
    """Set what train.py and its Trainer set before they train."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = bool(cudnn_benchmark(torch.device(device)))
    if device == "cpu" and keep_memory:
        memory.keep_freed_memory()


def fit(
    config: Config,
    hardware: Hardware,
    images: RandomImages,
    folder: str | Path,
    *others: Callback,
) -> TrainingClock:
    """Train as train.py does, with all its files, but without range test and test.

    Args:
        config: All flags, with a fixed rate.
        hardware: What to train on.
        images: The images, set up.
        folder: Of all runs.
        others: Callbacks beside its own.

    Raises:
        InputError: It did without the CUDA graphs that were asked for.
    """
    run = RunFolder(str(folder), "run", seed=0)
    run.create()
    run.begin()
    history, clock = History(run.metrics_csv), TrainingClock()
    module = build_module(config, images)
    trainer: Any = build_trainer(config, hardware, run, images, history, clock, None)
    trainer.callbacks += others
    trainer.fit(module, datamodule=images)
    for callback in trainer.callbacks:
        if isinstance(callback, CudaGraph) and callback.problem is not None:
            raise InputError(f"--cuda_graph: not measured, for {callback.problem}")
    return clock
