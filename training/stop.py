"""Ctrl-C, SIGTERM and SIGHUP: the step is finished and saved before the run ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # not on Windows
    SIGNALS.append(signal.SIGHUP)  # the terminal was closed


Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class StoppedError(SystemExit):
    """A signal ended the run: exit code 130 for Ctrl-C, 143 SIGTERM, 129 SIGHUP.

    It is a `SystemExit`, so a script that trains several times ends with it.

    Attributes:
        name: The signal in words.
        exit_code: 128 and the signal's number, as shells count.
        checkpoints: What the run can go on from, the best first.
    """

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(self.exit_code)
        name = signal.Signals(signum).name
        self.name = "Ctrl-C" if name == "SIGINT" else name
        self.checkpoints: list[Path] = []


class StopSignal(Callback):
    """Notes a signal while the training runs, for `StepCheckpoint` to act on.

    Lightning 2.6.6 would end with exit code 0 on SIGTERM, with 1 on Ctrl-C, and save
    nothing: https://github.com/Lightning-AI/pytorch-lightning/issues/19916. At a second
    Ctrl-C the run ends at once. Signals that were ignored stay ignored.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.ignored = [signum for signum in SIGNALS if is_ignored(signum)]

    def on_train_start(self, *_: Any) -> None:
        """Take the signals over from Lightning, which gives them back at the end."""
        self._handle({signum: self._note for signum in SIGNALS})

    def on_test_start(self, *_: Any) -> None:
        """Ignore those again that Lightning has taken over."""
        self._handle({})

    def _handle(self, handlers: dict[int, Handler]) -> None:
        if threading.current_thread() is threading.main_thread():
            ignoring = dict.fromkeys(self.ignored, signal.SIG_IGN)
            for signum, handler in (handlers | ignoring).items():
                signal.signal(signum, handler)

    def agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any process got; 0 for none. All processes must ask."""
        if trainer.world_size == 1:
            return self.signum
        signum = torch.tensor(self.signum, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signum, reduce_op="max"))

    def _note(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signum:
            raise StoppedError(signum)
        self.signum = signum
        if getattr(rank_zero_only, "rank", 0) == 0:
            # Not through `print`, which the signal may have interrupted. The terminal
            # may be gone.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")


def is_ignored(signum: int) -> bool:
    """Whether a signal is ignored, as SIGHUP is under nohup."""
    return signal.getsignal(signum) == signal.SIG_IGN


def handle_signals() -> None:
    """Have signals end the program, but those that whoever started it ignores."""
    for signum in SIGNALS:
        if not is_ignored(signum):
            signal.signal(signum, stop_at_once)


def stop_at_once(signum: int, _: FrameType | None) -> NoReturn:
    """Handle a signal outside the training: clean up and end.

    Raises:
        StoppedError: Always.
    """
    raise StoppedError(signum)
