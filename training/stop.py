"""Ctrl-C, SIGTERM and SIGHUP: the step is finished and saved before the run ends."""

import contextlib
import os
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only

from common import signals
from common.errors import StoppedError
from common.signals import SIGNALS


class StopSignal(Callback):
    """Notes a signal while the training runs, for `StepCheckpoint` to act on.

    Lightning 2.6.6 would end with exit code 0 on SIGTERM, with 1 on Ctrl-C, and save
    nothing: https://github.com/Lightning-AI/pytorch-lightning/issues/19916. At a second
    Ctrl-C the run ends at once. Signals that were ignored stay ignored.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.ignored: dict[int, signals.Handler] = {
            signum: handler
            for signum, handler in signals.current().items()
            if handler == signal.SIG_IGN
        }

    def on_train_start(self, *_: Any) -> None:
        """Take the signals over from Lightning, which gives them back at the end."""
        signals.install(dict.fromkeys(SIGNALS, self._note))
        signals.install(self.ignored)

    def on_test_start(self, *_: Any) -> None:
        """Ignore those again that Lightning has taken over."""
        signals.install(self.ignored)

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
