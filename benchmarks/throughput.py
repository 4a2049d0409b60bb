"""Images a second of the real training, beside what it could be and what is usual.

    python benchmarks/throughput.py --device cpu --batch_size 128 --output FILE.csv

measures, on noise in the shape of CIFAR-10,

trainer: this project's Trainer, data module and module, with all their comfort;
loop: a hand-written loop around the same network, precision and batch size, with images
    that lie augmented and normalised on the device: no trainer can beat it;
course: the usual notebook: float32, NCHW, plain Adam, torchvision's transforms image by
    image in a `DataLoader` with workers, loss and accuracy read at every step;
limit: the device's best matrix product in the same number format, by the floating-point
    operations of a training step per image.

Each has a process of its own, so that none changes another's memory or threads. They
take turns; the first round warms up and is not counted. A ratio is that of two
measurements of the same round: median, and range of all rounds.
"""

import csv
import datetime
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from benchmarks.scale_run import RandomImages, noise
from benchmarks.tables import add_row, with_table
from components import cli, environment
from components.callbacks import History, TrainingClock
from components.environment import Precision
from components.errors import InputError
from components.run_folder import RunFolder
from components.trainer import build_trainer
from custom_resnet import CustomResNet
from train import build_module, train

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "speed.md"
TRAIN_IMAGES = 50_000
DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


class Setting(NamedTuple):
    """What is measured; `precision` is settled, `steps` are those of a round."""

    device: str
    precision: str
    batch_size: int
    steps: int
    base_width: int
    compile: bool
    keep_memory: bool = True


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
    """Images a second of an epoch's training, all callbacks and files included."""
    with tempfile.TemporaryDirectory() as folder:
        clock = fit(setting, Path(folder))
    return clock.images / clock.seconds


def fit(setting: Setting, folder: Path, *others: Callback) -> TrainingClock:
    """Train one short epoch as train.py does, with other callbacks beside its own."""
    flags = [
        *("--accelerator", "gpu" if setting.device == "cuda" else "cpu"),
        *("--devices", "1", "--precision", setting.precision, "--lr", "0.001"),
        *("--batch_size", f"{setting.batch_size}", "--max_epochs", "1"),
        *("--base_width", f"{setting.base_width}", "--val_size", "0"),
        *("--limit_train_batches", f"{setting.steps}"),
        *("--compile", f"{setting.compile}".lower()),
    ]
    config = cli.parse(train, flags)
    hardware = environment.choose_hardware(
        config["accelerator"], 1, 1, "auto", config["precision"]
    )
    prepare(setting)
    images = RandomImages(TRAIN_IMAGES, setting.batch_size, on_host=False)
    images.setup()
    run = RunFolder(str(folder), "run", 0)
    run.create(overwrite=True)
    history, clock = History(run.metrics_csv), TrainingClock()
    module = build_module(config, images)
    trainer: Any = build_trainer(config, hardware, run, images, history, clock, None)
    trainer.callbacks += others
    trainer.fit(module, datamodule=images)
    return clock


def loop_pace(setting: Setting) -> float:
    """Images a second of the hand-written loop."""
    prepare(setting)
    device, dtype = torch.device(setting.device), DTYPES[setting.precision]
    net = CustomResNet(base_width=setting.base_width).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if setting.compile:
        net.compile()
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
    batches = iter(endless(setting.batch_size))

    def step() -> None:
        images, labels = (values.to(device) for values in next(batches))
        optimizer.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item(), logits.argmax(1).eq(labels).sum().item()

    return pace(step, setting)


def endless(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a `DataLoader`, epoch after epoch."""
    workers = min(4, os.cpu_count() or 1)
    loader = DataLoader(
        NoiseDataset(),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def pace(step: Callable[[], None], setting: Setting) -> float:
    """Images a second of some steps, after one that is not counted."""
    step()
    started = now(setting)
    for _ in range(setting.steps):
        step()
    return setting.steps * setting.batch_size / (now(setting) - started)


def limit_pace(setting: Setting) -> float:
    """Images a second if all of a step were the best matrix product of the device."""
    prepare(setting)
    sizes = (1024, 2048, 4096, 8192) if setting.device == "cuda" else (1024, 2048, 4096)
    rate = max(product_rate(size, setting) for size in sizes)
    return rate / operations(setting.base_width)


def product_rate(size: int, setting: Setting) -> float:
    """Floating-point operations a second of a square matrix product: best of ten."""
    options: Any = {"device": setting.device, "dtype": DTYPES[setting.precision]}
    left, right = torch.randn(2, size, size).to(**options)
    seconds = []
    for _ in range(10):
        started = now(setting)
        left @ right
        seconds.append(now(setting) - started)
    return 2 * size**3 / min(seconds)


def operations(base_width: int) -> float:
    """Floating-point operations of one image in training, forward and backward."""
    net = CustomResNet(base_width=base_width).eval()  # its convolutions as they are
    counter: Any = FlopCounterMode(display=False)
    with counter:
        net(torch.randn(2, 3, 32, 32)).sum().backward()
    return float(counter.get_total_flops()) / 2


def prepare(setting: Setting) -> None:
    """What train.py sets before it trains."""
    torch.set_float32_matmul_precision("high")
    if setting.device == "cpu" and setting.keep_memory:
        environment.keep_freed_memory()


def now(setting: Setting) -> float:
    """Seconds on a clock, read when the device has done what was asked of it."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


PACES: dict[str, Callable[[Setting], float]] = {
    "trainer": trainer_pace,
    "loop": loop_pace,
    "course": course_pace,
    "limit": limit_pace,
}


def measure(setting: Setting, repeats: int) -> dict[str, list[float]]:
    """Images a second of each, round by round."""
    context = multiprocessing.get_context("spawn")  # each pays for its own memory
    paces: dict[str, list[float]] = {name: [] for name in PACES}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, context, cli.set_up_messages)
            )
            for name in PACES
        }
        for number in range(repeats + 1):
            for name, function in PACES.items():
                result = pools[name].submit(function, setting).result()
                if number:
                    paces[name].append(result)
                    print(f"round {number}: {name} {result:.1f} images/s", flush=True)
    return paces


def summary(values: Sequence[float], digits: int) -> str:
    """Median and range, such as "0.99 (0.97-1.01)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratios(paces: dict[str, list[float]]) -> dict[str, list[float]]:
    """The trainer's pace in units of each other's, round by round."""
    ours = paces["trainer"]
    return {
        f"trainer/{name}": [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in paces.items()
        if name != "trainer"
    }


def pace_table() -> str:
    """All measurements on record, in Markdown."""
    rows = [
        row
        for file in sorted(RESULTS.glob("*_throughput_*.csv"))
        for row in csv.DictReader(file.read_text().splitlines())
    ]
    ours = [f"trainer/{name}" for name in PACES if name != "trainer"]
    header = ["on", "batch size", "compiled", *PACES, *ours, "rounds"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [f"{row['device']}, {row['precision']}", row["batch_size"]]
        cells.append("yes" if row["compile"] == "True" else "no")
        cells += [row[f"{name} images/s"] for name in PACES]
        cells += [row[name] for name in ours]
        lines.append(f"| {' | '.join([*cells, row['repeats']])} |")
    return "\n".join(lines)


def throughput(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 512,
    precision: Precision = "auto",
    steps: int | None = None,
    repeats: int = 5,
    compile: bool = False,
    base_width: int = 64,
    keep_memory: bool = True,
    output: str | None = None,
) -> None:
    """Measure the pace of the training, and what it is in units of others.

    Args:
        device: What trains.
        batch_size: Images in a batch.
        precision: Number format of all but the course's way, which is float32.
        steps: Steps of each in a round; null for an epoch, or 2048 images on a CPU.
        repeats: Rounds that count.
        compile: Compile the network of trainer and loop.
        base_width: Channels of the first convolution.
        keep_memory: Keep freed memory in trainer and loop on a CPU, as train.py does.
        output: CSV file to which a row is added; docs/speed.md shows those named
            benchmarks/results/DATE_throughput_DEVICE.csv.

    Raises:
        InputError: There is no such device, or a value is out of its range.
    """
    if min(batch_size, repeats, base_width, 1 if steps is None else steps) < 1:
        raise InputError(
            "--batch_size, --repeats, --base_width and --steps must be at least 1"
        )
    if batch_size > TRAIN_IMAGES:
        raise InputError(
            f"--batch_size must be at most {TRAIN_IMAGES}, got {batch_size}"
        )
    accelerator = "gpu" if device == "cuda" else "cpu"
    hardware = environment.choose_hardware(accelerator, 1, 1, "auto", precision)
    settled = str(hardware.arguments["precision"])
    if settled not in DTYPES:
        raise InputError(
            f"--precision must be auto, {', '.join(DTYPES)}, got {precision}"
        )
    epoch = TRAIN_IMAGES // batch_size
    short = min(epoch, max(1, 2048 // batch_size))
    steps = steps or (epoch if device == "cuda" else short)
    setting = Setting(
        device, settled, batch_size, steps, base_width, compile, keep_memory
    )
    paces = measure(setting, repeats)
    circumstances = environment.circumstances(hardware)
    row: dict[str, Any] = {"date": datetime.date.today().isoformat()}
    row |= {**setting._asdict(), "repeats": repeats}
    row["gflop_per_image"] = round(operations(base_width) / 1e9, 4)
    for name, values in paces.items():
        row[f"{name} images/s"] = summary(values, 1)
    for name, values in ratios(paces).items():
        row[name] = summary(values, 2)
    row |= circumstances | {"device": f"{device}: {circumstances['device']}"}
    if output is not None:
        add_row(Path(output), row)
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(text, pace_table()), encoding="utf-8")
    for name, value in row.items():
        print(f"{'ratio ' if name in ratios(paces) else ''}{name} {value}")


if __name__ == "__main__":
    cli.run("throughput.py", throughput)
