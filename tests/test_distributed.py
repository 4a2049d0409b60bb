"""Two processes on the CPU, as `--devices 2`, a cluster or `torchrun` starts them."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

import train
from common.errors import DivergedError
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet
from run_files import LAST, STEP, assert_same, rows, weights
from training.guard import Guard
from training.history import History
from training.run_folder import RunFolder
from training.saving import BackgroundCheckpointIO

SCRIPT = Path(__file__).resolve().parent.parent / "train.py"


@pytest.mark.skipif(sys.platform == "win32", reason="gloo on Windows needs set-up")
def test_two_processes_leave_one_run_and_count_every_image_once(
    image_folder: Path,
) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    flags += ["--data_dir", str(image_folder), "--precision", "32-true"]
    flags += ["--batch_size", "32", "--max_epochs", "2", "--base_width", "4"]
    flags += ["--lr_steps", "40"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1

    [run] = Path("runs").iterdir()
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]
    metrics = json.loads((run / "metrics.json").read_text())

    # One process gets the same figures from the checkpoint, so none was counted twice.
    last = run / "checkpoints" / "last.ckpt"
    module = LitCustomResNet.load_from_checkpoint(last, weights_only=True).eval()
    assert module.hparams["lr"] == metrics["max_lr"]
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=7)
    data.setup()
    images, labels = data.test_set
    with torch.no_grad():
        logits = module(images.permute(0, 3, 1, 2))
    hits = (logits.argmax(1) == labels).float().mean().item()
    loss = F.cross_entropy(logits, labels).item()
    assert metrics["test/acc"] == pytest.approx(hits)
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-4)


def test_a_batch_that_cannot_be_shared(image_folder: Path) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2", "--batch_size", "31"]
    flags += ["--data_dir", str(image_folder)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: error: --batch_size 31 cannot be shared by 2 processes; give a "
        "multiple of their number\n"
    )
    assert not Path("runs").exists()


FLAGS = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
FLAGS += ["--precision", "32-true", "--batch_size", "16", "--max_epochs", "4"]
FLAGS += ["--base_width", "4", "--lr", "0.01", "--name", "run"]
FLAGS += ["--report", "false"]

Processes = list[Any]


def run_rank(rank: int, port: int, argv: list[str], stop_at: int | str) -> None:
    """One of two processes, as a cluster starts them; it keeps its weights.

    It waits for a signal at a step of the training, or of the "test".
    """
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    plain_test, plain_step = pl.Trainer.test, LitCustomResNet.training_step
    plain_test_step = LitCustomResNet.test_step

    def wait() -> None:
        Path(f"rank{rank}-is-there").touch()
        time.sleep(2)  # and is signalled

    def test(trainer: pl.Trainer, module: Any, **arguments: Any) -> Any:
        torch.save(module.state_dict(), f"rank{rank}.pt")
        return plain_test(trainer, module, **arguments)

    def step(module: LitCustomResNet, *arguments: Any) -> Any:
        if module.global_step == stop_at:
            wait()
        return plain_step(module, *arguments)

    def test_step(module: LitCustomResNet, *arguments: Any) -> Any:
        if stop_at == "test":
            wait()
        return plain_test_step(module, *arguments)

    setattr(pl.Trainer, "test", test)  # noqa: B010 - mypy refuses the plain form
    setattr(LitCustomResNet, "training_step", step)  # noqa: B010
    setattr(LitCustomResNet, "test_step", test_step)  # noqa: B010
    sys.argv = ["train.py", *argv]
    train.main()


@pytest.fixture
def start_two(
    fork: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> Callable[..., Processes]:
    def start(*flags: str, stop_at: int | str = -1) -> Processes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [*FLAGS, "--data_dir", str(image_folder), *flags]
        return [
            fork(tmp_path, run_rank, rank, port, argv, stop_at) for rank in range(2)
        ]

    return start


def end(processes: Processes, timeout: float = 300) -> list[int | None]:
    """Exit codes."""
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]


def wait_until_both_are_there() -> None:
    for rank in range(2):
        while not Path(f"rank{rank}-is-there").exists():
            time.sleep(0.01)


@pytest.mark.slow
def test_processes_keep_the_same_weights_and_validate_with_them(
    start_two: Callable[..., Processes], image_folder: Path
) -> None:
    assert end(start_two("--max_epochs", "2", "--sam_radius", "0.1")) == [0, 0]
    first, second = (torch.load(f"rank{rank}.pt") for rank in range(2))
    for name, parameter in weights().items():
        assert torch.equal(first[name], parameter)
        if "running" not in name:  # batch statistics are each process's own
            assert torch.equal(second[name], parameter)

    # The last validation, done again by one process.
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=5)
    data.setup()
    module = LitCustomResNet.load_from_checkpoint(LAST, weights_only=True).eval()
    images, labels = data.val_set
    with torch.no_grad():
        logits = module(images.permute(0, 3, 1, 2))
    loss = F.cross_entropy(logits, labels).item()
    assert float(rows()[-1]["val/loss"]) == pytest.approx(loss, rel=1e-5)
    hits = (logits.argmax(1) == labels).float().mean().item()
    assert float(rows()[-1]["val/acc"]) == pytest.approx(hits)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_both_and_they_go_on_exactly(
    rank: int, start_two: Callable[..., Processes], tmp_path: Path
) -> None:
    assert end(start_two("--name", "unbroken")) == [0, 0]
    processes = start_two(stop_at=13)  # they ask at step 16, which is within an epoch
    wait_until_both_are_there()
    os.kill(processes[rank].pid, signal.SIGTERM)
    assert end(processes) == [143, 0]  # the first one speaks for all
    assert torch.load(STEP, weights_only=True)["global_step"] == 16
    log = Path("log").read_text()
    assert log.count(f"stopped by SIGTERM; {STEP} is saved; resume with: python") == 1
    assert "Traceback" not in log
    assert end(start_two("--ckpt_path", "last")) == [0, 0]
    assert rows() == rows("unbroken")
    unbroken = Path("runs/unbroken/checkpoints/last.ckpt")
    ours, theirs = (torch.load(path, weights_only=True) for path in (LAST, unbroken))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(ours[part], theirs[part])


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_in_the_test_ends_both(
    rank: int, start_two: Callable[..., Processes]
) -> None:
    processes = start_two("--max_epochs", "1", stop_at="test")
    wait_until_both_are_there()
    os.kill(processes[rank].pid, signal.SIGTERM)
    assert end(processes, timeout=60) == [143, 0]
    log = Path("log").read_text()
    assert log.count(f"stopped by SIGTERM; {LAST} is saved; resume with: python") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_dies_the_other_ends_within_a_minute(
    rank: int, start_two: Callable[..., Processes]
) -> None:
    processes = start_two(stop_at=8)
    wait_until_both_are_there()
    processes[rank].kill()
    codes = end(processes, timeout=60)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] not in (None, 0)


def test_fewer_images_than_processes(start_two: Callable[..., Processes]) -> None:
    assert end(start_two("--val_size", "1")) == [2, 2]
    message = "--devices: 1 val images cannot be shared by 2 processes"
    assert message in Path("log").read_text()
    assert not Path("runs").exists()


@pytest.mark.slow
def test_torchrun_on_two_hosts(image_folder: Path) -> None:
    """Two agents, each with one process, that know each other by a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*FLAGS, "--data_dir", str(image_folder), "--max_epochs", "2"]
    flags += ["--devices", "1", "--num_nodes", "2"]
    agents = []
    for host in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc_per_node", "1", "--node_rank", str(host)]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        agents.append(subprocess.Popen([*command, str(SCRIPT), *flags]))
    assert [agent.wait(timeout=300) for agent in agents] == [0, 0]
    assert [path.name for path in Path("runs").iterdir()] == ["run"]
    assert [row["step"] for row in rows()] == ["6", "12"]
    two_hosts = weights()
    command = [sys.executable, str(SCRIPT), *FLAGS, "--data_dir", str(image_folder)]
    command += ["--max_epochs", "2", "--name", "one_host"]
    subprocess.run(command, check=True, timeout=300)
    assert_same(two_hosts, weights(Path("runs/one_host/checkpoints/last.ckpt")))


TRIAL = RunFolder("runs", "run", seed=0, trial=True)


def two_alike(step: int = 2, **known: Any) -> Any:
    """A trainer of two processes in which the same happens."""

    def reduce(value: Tensor, reduce_op: str) -> Tensor:
        both = torch.stack([value, value])
        if reduce_op == "max":
            return both.amax()
        return both.sum() if reduce_op == "sum" else both.float().mean()

    strategy = SimpleNamespace(
        root_device=torch.device("cpu"),
        reduce=reduce,
        checkpoint_io=BackgroundCheckpointIO(),
    )
    return SimpleNamespace(
        world_size=2, global_rank=0, global_step=step, strategy=strategy, **known
    )


@pytest.mark.parametrize("signum", [0, signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_is_that_signal(signum: int) -> None:
    """A terminal sends Ctrl-C to each of them."""
    guard = Guard(TRIAL, 0, History(None))
    guard.signum = signum
    assert guard._agreed_signal(two_alike()) == signum


def test_processes_that_diverge_at_the_same_step_name_it() -> None:
    module: Any = torch.nn.Linear(1, 1)
    module.losses = [*torch.tensor([1.0, 1.0, torch.nan, torch.nan])]
    history = History(None)
    history.lrs = [0.1, 0.2, 0.3, 0.4]
    guard = Guard(TRIAL, 0, history)
    with pytest.raises(
        DivergedError, match=r"not finite at step 8, where the LR was 0\.3;"
    ):
        guard._check_finite(two_alike(10, lightning_module=module))
