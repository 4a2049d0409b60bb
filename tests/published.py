"""CIFAR-10 in the form in which it is published, but small.

The five batches and the test batch have the published names, and in each the pixels of
an image stand colour after colour. Only the checksums are not the published ones, so

    python tests/published.py CHECKSUMS.json train.py --max_epochs 2

runs a program that takes these for CIFAR-10's.
"""

import hashlib
import io
import json
import pickle
import runpy
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES = tuple(name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list))


def make_files(count: int, seed: int = 0) -> dict[str, bytes]:
    """The files of `cifar-10-batches-py/`, with `count` images in each batch.

    Every class has a colour of its own below the noise, so it can be learnt.
    """
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (10, 3))
    files = {"batches.meta": pickle.dumps({"label_names": [*CLASSES]}, protocol=2)}
    for name in BATCHES:
        labels = rng.permutation(np.arange(count) % 10)
        noise = rng.integers(-60, 60, (count, 3, 1024))
        pixels = (colours[labels][:, :, None] + noise).clip(0, 255).astype(np.uint8)
        batch = {"data": pixels.reshape(count, 3072), "labels": labels.tolist()}
        batch["filenames"] = [f"{name}_{number}.png" for number in range(count)]
        files[name] = pickle.dumps(batch, protocol=2)
    return files


def make_archive(files: dict[str, bytes], folder: str = CIFAR10.base_folder) -> bytes:
    """The archive with these files in its folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def checksums(files: dict[str, bytes], archive: bytes) -> dict[str, Any]:
    """What `CIFAR10` knows of its files, for other ones."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    return {
        "train_list": [[name, sums[name]] for name in BATCHES[:5]],
        "test_list": [[name, sums[name]] for name in BATCHES[5:]],
        "meta": {**CIFAR10.meta, "md5": sums["batches.meta"]},
        "tgz_md5": hashlib.md5(archive).hexdigest(),
    }


def main() -> None:
    """Run a program with other checksums."""
    for name, value in json.loads(Path(sys.argv[1]).read_text()).items():
        setattr(CIFAR10, name, value)
    program = Path(sys.argv[2]).resolve()
    sys.argv[:] = sys.argv[2:]
    sys.path[0] = str(program.parent)
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
