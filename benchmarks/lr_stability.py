"""How far the picked max LR moves from seed to seed.

    python benchmarks/lr_stability.py --data_dir data/cifar10 --output FILE.jsonl

runs the LR range test of `train.py` for several seeds (weights, split, order and
augmentation all change) at each batch size, adds a line a test to the output file, and
prints the picks with their spread, max / min. A line holds the curve and not the pick,
which follows from it: `picks` applies the rule as it is now.
"""

import datetime
import json
import sys
import time
from pathlib import Path

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytorch_lightning as pl

from components import environment
from components.environment import Precision
from components.lr_finder import Finder, find_valley, middle, range_test
from components.sources import Source
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet


def picks(file: Path) -> dict[int, list[float]]:
    """The picks from all curves in a file, by batch size."""
    found: dict[int, list[float]] = {}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        valley = find_valley(record["lrs"], record["losses"], record["classes"])
        found.setdefault(record["batch_size"], []).append(middle(valley))
    return found


def lr_stability(
    output: str,
    data: Source = "cifar10",
    data_dir: str = "data",
    batch_sizes: tuple[int, ...] = (512, 128),
    seeds: int = 5,
    lr_steps: int = 100,
    lr_finder: Finder = "lightning",
    accelerator: str = "auto",
    precision: Precision = "auto",
    base_width: int = 64,
) -> None:
    """Run the range tests and print the spread of their picks.

    Args:
        output: File to which a line of JSON a test is added.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        batch_sizes: Batch sizes to test, each with every seed.
        seeds: Number of seeds, from 0.
        lr_steps: Length of a test in steps.
        lr_finder: Package that runs the tests.
        accelerator: What trains.
        precision: Number format.
        base_width: Channels of the first convolution.
    """
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    hardware = environment.choose_hardware(accelerator, 1, 1, "auto", precision)
    for batch_size in batch_sizes:
        for seed in range(seeds):
            started = time.perf_counter()
            images = CIFAR10DataModule(data, data_dir, batch_size, seed=seed)
            images.prepare_data()
            images.setup()
            pl.seed_everything(seed, verbose=False)
            module = LitCustomResNet(
                images.classes, images.mean, images.std, 0.01, base_width=base_width
            )
            test = range_test(module, images, lr_finder, lr_steps, hardware.arguments)
            record = {
                "date": datetime.date.today().isoformat(),
                "batch_size": batch_size,
                "seed": seed,
                "classes": len(images.classes),
                "lr_finder": lr_finder,
                "seconds": round(time.perf_counter() - started, 1),
                **environment.circumstances(hardware),
                "lrs": [float(f"{lr:.5g}") for lr in test.lrs],
                "losses": [float(f"{loss:.5g}") for loss in test.losses],
            }
            with Path(output).open("a") as file:
                file.write(json.dumps(record) + "\n")
    for size, lrs in picks(Path(output)).items():
        listed = " ".join(f"{lr:.2g}" for lr in lrs)
        print(f"| {size} | {listed} | {max(lrs) / min(lrs):.2f} |")


if __name__ == "__main__":
    auto_cli(lr_stability, as_positional=False)
