"""The progress bar."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm


class RunProgressBar(Callback):
    """One bar over all epochs.

    The remaining time comes from the mean pace so far, validation included, so it does
    not jump back at every epoch. Nothing in it waits for the device.

    Args:
        name: What it is a bar of.
    """

    def __init__(self, name: str = "Training") -> None:
        self.name = name
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Open the bar where the training starts, or goes on."""
        if trainer.is_global_zero:
            self.bar = tqdm(
                total=int(trainer.estimated_stepping_batches),
                initial=trainer.global_step,
                desc=self.name,
                unit="step",
                smoothing=0,
                mininterval=0.5 if sys.stderr.isatty() else 30,
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.update()

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that a message begins on a line of its own."""
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
