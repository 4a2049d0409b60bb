"""Memory of the CPU and of a GPU: what is kept, given back and free."""

import contextlib
import ctypes
import gc
import math
import platform
import threading
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536  # likewise
MEMORY_IS_KEPT = threading.Event()  # by `keep_freed_memory`


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    By itself it gives every large block back and asks for it anew, and each step of a
    training on a CPU pays for the page faults of its activations: docs/lab/speed.md.
    Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        MEMORY_IS_KEPT.set()


@contextlib.contextmanager
def giving_memory_back() -> Iterator[None]:
    """Undo `keep_freed_memory` at the end, and give back what nothing uses any more.

    Whoever calls `train` in a program of their own may need the memory for other
    things.
    """
    try:
        yield
    finally:
        gc.collect()  # a Trainer and its callbacks know each other
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if MEMORY_IS_KEPT.is_set():
            MEMORY_IS_KEPT.clear()
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
            libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
            libc.malloc_trim(0)


def free_memory(device: torch.device) -> float:
    """Bytes that new tensors may take; infinity where PyTorch cannot say."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch has taken from the device and uses for nothing is free as well.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + idle
