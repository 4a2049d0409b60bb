"""What runs leave behind, read back and compared."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LAST = Path("runs/run/checkpoints/last.ckpt")
STEP, BEST = LAST.with_name("step.ckpt"), LAST.with_name("best.ckpt")


class Payload:
    """A pickle that runs code where it is read carelessly."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("payload-ran"),)  # type: ignore[return-value]


def rows(run: str = "run") -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with Path(f"runs/{run}/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path: Path = LAST) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same(ours: Any, theirs: Any) -> None:
    """Compare what checkpoints are made of, bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    elif isinstance(ours, list | tuple):
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert ours == theirs
