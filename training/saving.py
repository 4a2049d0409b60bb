"""Checkpoints that are written beside the training."""

import copy
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from torch import Tensor

from training.checkpoint import BEST, AtomicCheckpointIO

log = logging.getLogger(__name__)


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Writes checkpoints in a thread while the training goes on.

    What it writes is what was there when it was asked to. `best.ckpt` and the
    `last.ckpt` of the same epoch, which comes next, are one state, so it is serialised
    once: `best.ckpt` waits for it. They are two files, for a damaged one must not take
    the other with it. All else goes in the order in which it was asked for, and one
    thing that goes wrong ends it.

    Lightning's `AsyncCheckpointIO` holds as many copies as a slow disk makes it, on the
    GPU, says what went wrong at the save after the next, and cannot be waited for
    before the training has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held_back: list[Path] = []
        self._job: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Begin to replace the file at `path`, once the one before is written.

        Raises:
            InputError: The one before could not be written.
        """
        self.wait()
        paths = [*self._held_back, Path(path)]
        is_last = paths[-1].name != BEST
        self._held_back = [] if is_last else paths
        if is_last:
            self._begin(self.write, snapshot(checkpoint), paths)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file when what was to be saved is on the disk."""
        self._begin(super().remove_checkpoint, path)

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            InputError: It cannot be written; what was there before still is.
            OSError: A file cannot be removed.
        """
        if self._job is not None:
            wait([self._job])  # if a signal ends this, `teardown` waits again
            job, self._job = self._job, None
            job.result()

    def teardown(self) -> None:
        """Wait, whatever has ended the training; that is what is to be raised."""
        try:
            self.wait()
        except Exception as error:
            log.warning(error)

    def _begin(self, function: Callable[..., None], *arguments: Any) -> None:
        before = self._job

        def work() -> None:
            if before is not None:
                before.result()
            function(*arguments)

        executor = ThreadPoolExecutor(1, "checkpoint")
        self._job = executor.submit(work)
        executor.shutdown(wait=False)  # its thread ends with the work


def snapshot(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy, with tensors on the CPU, that no later step changes."""
    # `deepcopy` takes for a copy what it is told is one.
    copies: dict[int, Any] = {
        id(tensor): tensor.detach().to("cpu", copy=True)
        for tensor in _tensors(checkpoint)
    }
    return copy.deepcopy(checkpoint, copies)


def _tensors(part: Any) -> Iterator[Tensor]:
    """All tensors in a part of a checkpoint."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict | list | tuple):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _tensors(inner)
