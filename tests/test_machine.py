"""Device, precision, memory, versions, commit."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import InputError
from machine import memory, provenance
from machine.hardware import choose_hardware, resolve_precision

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "32")])
def test_auto_precision_of_a_cpu(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert resolve_precision("auto", CPU).startswith(expected)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")],
)
def test_auto_precision_of_a_gpu(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", CUDA) == expected


def test_other_precisions_stay_and_a_mac_gets_float32() -> None:
    assert resolve_precision("auto", MPS) == "32-true"
    assert resolve_precision("64-true", CPU) == "64-true"
    assert resolve_precision("16-mixed", CUDA) == "16-mixed"
    with pytest.raises(InputError, match="16-true needs a GPU"):
        resolve_precision("16-true", CPU)


def test_hardware_counts_its_processes() -> None:
    hardware = choose_hardware("cpu", 2, 1, "ddp", "32-true")
    assert hardware.world_size == 2
    assert hardware.device == CPU
    assert hardware.arguments["precision"] == "32-true"


def test_versions_name_what_is_installed() -> None:
    versions = provenance.versions(CPU)
    assert f"torch {torch.__version__.split('+')[0]}" in versions
    python = ".".join(map(str, sys.version_info[:3]))
    assert versions.startswith(f"python {python}, ")
    assert "cud" not in versions
    assert "driver" not in versions


@pytest.mark.parametrize(
    ("script", "driver"),
    [("echo 570.86.10; echo 570.86.10", "570.86.10"), ("exit 9", "unknown")],
)
def test_versions_of_a_gpu_name_its_libraries_and_driver(
    script: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.name != "posix":
        pytest.skip("is a shell script")
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    libraries = f", cuda 12.8, cudnn 91002, driver {driver}"
    assert provenance.versions(CUDA) == provenance.versions(CPU) + libraries
    command.unlink()
    assert provenance.versions(CUDA).endswith(", driver unknown")


def test_a_command_is_kept_as_it_would_be_typed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--name", "it's a b"])
    hardware = choose_hardware("cpu", precision="32-true")
    command = provenance.circumstances(hardware)["command"]
    assert shlex.split(command) == ["python", *sys.argv]


def test_a_cpu_is_named_with_the_threads_that_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 57)
    assert provenance.device_name(CPU).endswith(", 57 threads")


@pytest.mark.parametrize(("device", "waits"), [("cpu", 0), ("cuda:0", 1), ("mps", 1)])
def test_the_clock_waits_for_the_device(
    device: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr("time.perf_counter", lambda: len(done))
    assert provenance.now(device) == waits


def test_commit_of_a_checkout_and_of_an_exported_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    if sys.platform == "linux":  # elsewhere all names of folders are characters
        tmp_path /= os.fsdecode(b"\xfc")
        tmp_path.mkdir()
    monkeypatch.setattr(provenance, "PROJECT", tmp_path.resolve())
    assert provenance.commit() == "unknown"
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init"], [*identity, "commit", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, text=True)
    assert re.fullmatch("[0-9a-f]{40}", provenance.commit())
    inner = tmp_path / "exported"
    inner.mkdir()
    monkeypatch.setattr(provenance, "PROJECT", inner.resolve())
    assert provenance.commit() == "unknown"


def test_only_code_makes_a_commit_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *names, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    if shutil.which("git") is None:
        pytest.skip("needs git")
    files = ("benchmarks/results/runs.csv", "README.md", "train.py")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in files:
        (tmp_path / name).touch()
    git("init")
    git("add", *files)
    git("commit", "-m", "all")
    monkeypatch.setattr(provenance, "PROJECT", tmp_path.resolve())
    os.utime(tmp_path / files[2], (0, 0))  # git would note that in its index
    index = (tmp_path / ".git/index").read_bytes()
    clean = provenance.commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    assert (tmp_path / ".git/index").read_bytes() == index
    for name in files[:2]:
        (tmp_path / name).write_text("more")
    assert provenance.commit() == clean
    (tmp_path / files[2]).write_text("more")
    assert provenance.commit() == f"{clean}-dirty"


def test_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"  # a copy of a checkout
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    assert provenance.commit() == "unknown"


def test_commit_of_what_git_has_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    tree, exported = tmp_path / "tree", tmp_path / "exported"
    exported.mkdir()
    tree.mkdir()
    for name in (".gitattributes", ".git_archival.txt"):
        shutil.copy(provenance.PROJECT / name, tree)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tree), *identity, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    git("archive", "--output", str(tmp_path / "exported.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "exported.tar", exported, filter="data")
    monkeypatch.setattr(provenance, "PROJECT", exported)
    assert provenance.commit() == f"{git('rev-parse', 'HEAD')}-archive"


def test_afterwards_glibc_does_again_as_its_manual_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []
    libc = SimpleNamespace(
        mallopt=lambda *call: calls.append(call), malloc_trim=lambda _: None
    )
    monkeypatch.setattr("machine.memory.ctypes.CDLL", lambda _: libc)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    mmap_max, trim_threshold = -4, -1  # in malloc.h; defaults as in mallopt(3)
    with memory.giving_memory_back():
        memory.keep_freed_memory()
        assert calls == [(mmap_max, 0), (trim_threshold, -1)]
        calls.clear()
    assert calls == [(mmap_max, 65_536), (trim_threshold, 128 * 1024)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_memory_is_kept() -> None:
    script = """
import resource
import pytorch_lightning  # as in a training
import torch
from machine import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def taken():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() >> 20

print(min(faults() for _ in range(3)))
with memory.giving_memory_back():
    memory.keep_freed_memory()
    print(min(faults() for _ in range(3)))
    tensors = [torch.ones(2**22) for _ in range(16)]
    used = torch.ones(2**22)  # above them
    del tensors
    kept = taken()
print(kept - taken())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=provenance.PROJECT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"GLIBC_TUNABLES": "", "LD_PRELOAD": ""},
    )
    before, after, given_back = map(int, done.stdout.split())
    assert before > 20  # 2**24 floats are 16,384 small pages, or 32 huge ones
    assert after < 5
    assert given_back > 200  # MiB, of 16 * 16
