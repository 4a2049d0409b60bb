"""The four things that `pace.py` times: trainer, loop, course and limit."""

import itertools
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from benchmarks.noise import RandomImages, fit, noise, prepare
from common import cli
from config import Compile, Config, Precision
from custom_resnet import CustomResNet
from machine.hardware import choose_hardware
from machine.provenance import now
from training.history import TrainingClock

TRAIN_IMAGES = 50_000
COURSE_STEPS = 20  # of a round at most: an epoch takes the usual notebook minutes
DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


class Setting(NamedTuple):
    """What is measured; `precision` is settled, `steps` are those of a round."""

    device: str
    precision: Precision
    batch_size: int
    steps: int
    base_width: int
    compile: Compile
    keep_memory: bool = True
    flags: str = ""  # of train.py, for the trainer only
    on_host: bool = False  # where the trainer's images are


class NoiseDataset(Dataset[tuple[Tensor, int]]):
    """The same as PIL images with the usual transforms, image by image."""

    def __init__(self) -> None:
        images, labels = noise(TRAIN_IMAGES)
        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
                v2.RandomErasing(p=1, scale=(1 / 16, 1 / 16), ratio=(1, 1)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def trainer_pace(setting: Setting) -> float:
    """Images a second of an epoch's training, all callbacks and files included.

    It is the second one: the first begins with a cold allocator.
    """
    with tempfile.TemporaryDirectory() as folder:
        clock = train_briefly(setting, Path(folder), ForgetsFirstEpoch(), epochs=2)
    return clock.images / clock.seconds


class ForgetsFirstEpoch(Callback):
    """Has the clock of the training begin with the second epoch.

    A GPU is slower in its first steps, and graphs are captured in them. Lightning
    empties the memory's cache before the first epoch.
    """

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forget what was counted so far."""
        for clock in trainer.callbacks:
            if isinstance(clock, TrainingClock) and trainer.current_epoch == 1:
                clock.seconds, clock.images = 0.0, 0


def train_briefly(
    setting: Setting, folder: Path, *others: Callback, epochs: int = 1
) -> TrainingClock:
    """Train short epochs as train.py does, with other callbacks beside its own."""
    accelerator = "gpu" if setting.device == "cuda" else "cpu"
    hardware = choose_hardware(accelerator, precision=setting.precision)
    prepare(setting.device, keep_memory=setting.keep_memory)
    images = RandomImages(TRAIN_IMAGES, setting.batch_size, on_host=setting.on_host)
    images.setup()
    config = Config(
        lr=0.001,
        val_size=0,
        batch_size=setting.batch_size,
        max_epochs=epochs,
        base_width=setting.base_width,
        limit_train_batches=setting.steps,
        compile=setting.compile,
    )
    config = replace(config, **own_flags(setting.flags))
    return fit(config, hardware, images, folder, *others)


def own_flags(flags: str) -> dict[str, Any]:
    """Flags of train.py by name, from a command line; a wrong one ends the program."""
    names = [part.split("=")[0].removeprefix("--") for part in shlex.split(flags)]
    values = cli.parse(Config, shlex.split(flags), "pace.py")
    return {name: values[name] for name in names}


def loop_pace(setting: Setting) -> float:
    """Images a second of the hand-written loop."""
    prepare(setting.device, keep_memory=setting.keep_memory)
    device, dtype = torch.device(setting.device), DTYPES[setting.precision]
    net = CustomResNet(base_width=setting.base_width).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if setting.compile:
        net.compile(mode="default" if setting.compile is True else setting.compile)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)
    scaler = torch.GradScaler(setting.device, enabled=dtype == torch.float16)
    shape = (setting.batch_size, 3, 32, 32)
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, shape[:1], device=device)

    def step() -> None:
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return pace(step, setting)


def course_pace(setting: Setting) -> float:
    """Images a second of the usual notebook."""
    device = torch.device(setting.device)
    net = CustomResNet(base_width=setting.base_width).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    batches = iter(endless(setting.batch_size, pin=device.type == "cuda"))

    def step() -> None:
        images, labels = (values.to(device) for values in next(batches))
        optimizer.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item(), logits.argmax(1).eq(labels).sum().item()

    few = min(setting.steps, COURSE_STEPS)
    return pace(step, setting._replace(steps=few))


def endless(batch_size: int, *, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a `DataLoader`, in page-locked memory or not, epoch after epoch."""
    workers = min(4, os.cpu_count() or 1)
    loader = DataLoader(
        NoiseDataset(),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=pin,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def pace(step: Callable[[], None], setting: Setting) -> float:
    """Images a second of some steps, after as many that are not counted.

    Nothing waits for the device between them, but the clock does at the end.
    """
    for _ in range(setting.steps):
        step()
    started = now(setting.device)
    for _ in range(setting.steps):
        step()
    return setting.steps * setting.batch_size / (now(setting.device) - started)


def limit_pace(setting: Setting) -> float:
    """Images a second if all of a step were the best matrix product of the device."""
    prepare(setting.device, keep_memory=setting.keep_memory)
    sizes = (1024, 2048, 4096, 8192) if setting.device == "cuda" else (1024, 2048, 4096)
    rate = max(product_rate(size, setting) for size in sizes)
    return rate / operations(setting.base_width)


def product_rate(size: int, setting: Setting) -> float:
    """Floating-point operations a second of a square matrix product: best of ten."""
    options: Any = {"device": setting.device, "dtype": DTYPES[setting.precision]}
    left, right = torch.randn(2, size, size).to(**options)
    seconds = []
    for _ in range(10):
        started = now(setting.device)
        left @ right
        seconds.append(now(setting.device) - started)
    return 2 * size**3 / min(seconds)


def operations(base_width: int) -> float:
    """Floating-point operations of one image in training, forward and backward."""
    net = CustomResNet(base_width=base_width).eval()  # its convolutions as they are
    counter: Any = FlopCounterMode(display=False)
    with counter:
        net(torch.randn(2, 3, 32, 32)).sum().backward()
    return float(counter.get_total_flops()) / 2


PACES: dict[str, Callable[[Setting], float]] = {
    "trainer": trainer_pace,
    "loop": loop_pace,
    "course": course_pace,
    "limit": limit_pace,
}
