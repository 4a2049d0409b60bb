"""The range test: its record, its pick, and that it leaves no trace."""

import json
import math
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from config import Config
from datamodule import CIFAR10DataModule
from images.loader import Batch
from lightning_module import LitCustomResNet
from machine.hardware import Hardware
from train import build_module, settle_lr
from training import lr_finder
from training.lr_finder import (
    MAX_LR,
    MIN_LR,
    find_valley,
    ladder,
    limit,
    middle,
    pick,
    range_test,
    smooth,
)

HARDWARE: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
LRS = np.geomspace(1e-6, 1, 100).tolist()


def valley(low: float, high: float) -> list[float]:
    """Losses with a flat floor between two rates, and walls around it."""
    return [1.5 if low <= lr <= high else 3.0 for lr in LRS]


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=32)
    data.setup()
    return data


def new_module(data: CIFAR10DataModule) -> LitCustomResNet:
    torch.manual_seed(0)
    return LitCustomResNet(data.classes, data.mean, data.std, 0.01, base_width=4)


def test_smoothing_is_a_centred_mean() -> None:
    losses = [0.0] * 100
    losses[50] = 7.0
    smoothed = smooth(losses)
    assert smoothed[45:56].tolist() == [0, *[7 / 9] * 9, 0]
    assert smooth([1.0] * 40 + [math.nan])[-2] == math.inf
    assert smooth([4.0, 1.0, 1.0])[0] == 2.5  # half a window at the ends


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1e-2), (1e-3, 1e-1), (1e-5, 1e-3)])
def test_valley_lies_between_the_walls(low: float, high: float) -> None:
    found = find_valley(LRS, valley(low, high), num_classes=10)
    assert low < found[0] < 2 * low  # the smoothing takes some steps at each edge
    assert high / 2 < found[1] < high
    assert middle(found) == pytest.approx((low * high) ** 0.5, rel=0.1)


def test_the_limit_goes_with_the_root_of_the_batch_size() -> None:
    expected = {1: 0.000884, 32: 0.005, 64: 0.00707, 128: 0.01, 512: 0.02, 4096: 0.02}
    assert {size: round(limit(size), 6) for size in expected} == pytest.approx(
        expected, rel=1e-3
    )


def test_a_pick_is_the_middle_up_to_the_limit_and_short() -> None:
    low = pick(LRS, valley(1e-4, 1e-2), 10, batch_size=128)
    assert low.lr == float(f"{middle(low.valley):.3g}") < limit(128)
    high = valley(1e-2, 1)
    assert [pick(LRS, high, 10, size).lr for size in (64, 128, 512)] == [
        0.00707,
        0.01,
        0.02,
    ]


def test_a_pick_keeps_away_from_the_right_edge_of_a_narrow_valley() -> None:
    narrow = pick(LRS, valley(6e-3, 2e-2), 10, batch_size=512)
    assert narrow.lr == float(f"{narrow.valley[1] / 5:.3g}") < narrow.valley[0]


def test_pick_follows_the_edges_and_not_the_floor() -> None:
    picks = set()
    for lowest in (3e-4, 1e-3, 3e-3):
        losses = valley(1e-4, 1e-2)
        losses[int(np.argmin(np.abs(np.array(LRS) - lowest)))] -= 0.3
        picks.add(middle(find_valley(LRS, losses, num_classes=10)))
    assert max(picks) / min(picks) < 1.1


def test_a_hump_on_the_floor_is_no_edge() -> None:
    losses = valley(1e-4, 5e-2)
    losses[50:60] = [2.0] * 10
    assert find_valley(LRS, losses, 10) == find_valley(LRS, valley(1e-4, 5e-2), 10)


def test_losses_that_never_rise_or_are_not_finite() -> None:
    falling = np.linspace(3, 0.5, 100).tolist()
    assert find_valley(LRS, falling, num_classes=10)[1] == LRS[-1]
    torn = [*valley(1e-4, 1e-2)[:70], *[math.nan] * 20, *[math.inf] * 10]
    assert find_valley(LRS, torn, 10) == find_valley(LRS, valley(1e-4, 1e-2), 10)
    with pytest.raises(InputError, match="no loss in 100 steps was finite"):
        find_valley(LRS, [math.nan] * 100, num_classes=10)


GUESSING = math.log(3)
OPEN = (
    "the loss was still low at its end, at a rate of 1, so the max LR 0.005 is "
    "uncertain"
)
ABOVE = (
    "in the 100 steps of the LR range test the loss never fell below that of guessing"
)


@pytest.mark.parametrize(
    ("start", "floor", "end", "lines"),
    [
        (1.5, 0.8, 1.5, []),
        (1.5, 0.8, 0.8, [OPEN]),
        (1.5, GUESSING - 0.01, 1.5, []),
        (1.5, GUESSING + 0.01, 1.5, [ABOVE]),
        (1.5, GUESSING + 0.01, GUESSING + 0.01, [ABOVE, OPEN]),
    ],
)
def test_an_uncertain_pick_is_said(
    start: float,
    floor: float,
    end: float,
    lines: list[str],
    data: CIFAR10DataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = [start] * 30 + [floor] * 30 + [end] * 40
    monkeypatch.setattr(lr_finder, "run_lightning", lambda *_: (LRS, losses))
    range_test(new_module(data), data, "lightning", 100, HARDWARE)
    assert len(caplog.messages) == len(lines)
    for message, line in zip(caplog.messages, lines, strict=True):
        assert line in message


def test_the_ladder_rises_by_equal_factors_after_a_double_one() -> None:
    assert ladder(6) == pytest.approx([1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_each_step_has_its_rate_and_the_first_beta_of_the_cycles_begin(
    data: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[float, ...]] = []
    plain_step = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, **arguments: Any) -> Any:
        used.extend((group["lr"], *group["betas"]) for group in optimizer.param_groups)
        return plain_step(optimizer, **arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    test = range_test(new_module(data), data, "lightning", 40, HARDWARE)
    assert test.lrs == ladder(40)
    assert used == [(lr, 0.95, 0.999) for lr in test.lrs for _ in range(2)]


@pytest.mark.parametrize("finder", ["lightning", "torch-lr-finder"])
def test_record_is_complete_and_leaves_no_file(
    finder: Any, data: CIFAR10DataModule
) -> None:
    test = range_test(new_module(data), data, finder, 50, HARDWARE)
    assert len(test.lrs) == len(test.losses) == 50  # though an epoch has 3 batches
    assert test.lrs[0] == pytest.approx(MIN_LR)
    assert test.lrs[-1] == pytest.approx(MAX_LR, rel=0.35)
    ratios = np.array(test.lrs[3:]) / np.array(test.lrs[2:-1])
    assert ratios == pytest.approx(ratios[0])
    assert test == pick(test.lrs, test.losses, 3, batch_size=32)
    assert data.trainer is None
    assert list(Path.cwd().iterdir()) == []


def test_first_losses_are_those_of_the_batches(data: CIFAR10DataModule) -> None:
    module = new_module(data)
    images, labels = next(iter(data.train_dataloader()))
    smoothing = module.hparams["label_smoothing"]
    losses = F.cross_entropy(module(images), labels, label_smoothing=smoothing)
    expected = losses.item()
    for finder in ("lightning", "torch-lr-finder"):
        test = range_test(new_module(data), data, finder, 40, HARDWARE)
        assert test.losses[0] == pytest.approx(expected, rel=1e-5)


def run_rank(rank: int, port: int, folder: Path) -> None:
    """The range test in one of two processes, as a cluster starts them."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    data = CIFAR10DataModule(data_dir=str(folder), batch_size=32)
    data.setup()
    hardware = HARDWARE | {"devices": 2, "strategy": "ddp"}
    test = range_test(new_module(data), data, "lightning", 40, hardware)
    Path(f"rank{rank}.json").write_text(json.dumps(test.losses))


def test_two_processes_see_the_same_losses_of_whole_batches(
    fork: Callable[..., Any],
    data: CIFAR10DataModule,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [fork(tmp_path, run_rank, rank, port, image_folder) for rank in (0, 1)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    ours, theirs = (json.loads(Path(f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert ours == theirs
    module = new_module(data).train()
    images, labels = next(iter(data.train_dataloader()))
    shares = zip(images.chunk(2), labels.chunk(2), strict=True)
    first = [module.training_step(share, 0).item() for share in shares]
    assert ours[0] == pytest.approx(sum(first) / 2, rel=1e-5)
    assert len(ours) == 40


def test_both_packages_see_nearly_the_same_losses(data: CIFAR10DataModule) -> None:
    ours = range_test(new_module(data), data, "lightning", 60, HARDWARE)
    theirs = range_test(new_module(data), data, "torch-lr-finder", 60, HARDWARE)
    # They start Adam's first beta at 0.95 and 0.9; the tests part at high rates.
    assert ours.losses[:25] == pytest.approx(theirs.losses[:25], rel=0.05)


@pytest.mark.parametrize("finder", ["lightning", "torch-lr-finder"])
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)],
)
def test_a_range_test_has_the_precision_of_the_run(
    finder: Any, precision: str, dtype: torch.dtype, data: CIFAR10DataModule
) -> None:
    module, seen = new_module(data), set()
    first: Any = module.net.get_submodule("prep.0")
    first.register_forward_hook(lambda *call: seen.add(call[-1].dtype))
    range_test(module, data, finder, 40, HARDWARE | {"precision": precision})
    assert seen == {dtype}


def test_torch_lr_finder_refuses_several_processes(data: CIFAR10DataModule) -> None:
    hardware = HARDWARE | {"devices": 2, "strategy": "ddp"}
    with pytest.raises(InputError, match="cannot share 2 processes"):
        range_test(new_module(data), data, "torch-lr-finder", 40, hardware)


@pytest.mark.parametrize("flags", [(True, True), (False, False)])
def test_a_range_test_trains_as_the_run_does(
    flags: tuple[bool, bool], data: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def note(module: LitCustomResNet, batch: Batch, batch_idx: int) -> torch.Tensor:
        layer_sync = module.trainer._accelerator_connector._layer_sync
        seen.add((torch.are_deterministic_algorithms_enabled(), bool(layer_sync)))
        return training_step(module, batch, batch_idx)

    training_step = LitCustomResNet.training_step
    monkeypatch.setattr(LitCustomResNet, "training_step", note)
    deterministic, sync_batchnorm = flags
    config = Config(
        lr_steps=40,
        base_width=4,
        deterministic=deterministic,
        sync_batchnorm=sync_batchnorm,
    )
    try:
        spent = build_module(replace(config, lr=0.01), data)
        settle_lr(config, data, Hardware(HARDWARE, torch.device("cpu"), 1), None, spent)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == {flags}
