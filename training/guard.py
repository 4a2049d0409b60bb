"""Ends a run in time, with a checkpoint from which it goes on exactly."""

import contextlib
import os
import signal
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from common import signals
from common.cli import is_first_process
from common.errors import DivergedError, StoppedError
from common.signals import SIGNALS
from training.history import History
from training.run_folder import RunFolder

STEP_METRICS = ("losses", "accuracies")  # of the module: of each step of an epoch
ASK_EVERY = 16  # steps after which several processes agree whether a signal came


class Guard(Checkpoint):
    """Ends a run whose loss is not finite, or that a signal asks to stop.

    *Finite*: the losses stay on the device, and the first bad one is looked for once an
    epoch, so no step waits for it, and before any checkpoint is written.

    *Signals*: the step is finished and saved. Lightning 2.6.6 would end with exit code
    0 on SIGTERM, with 1 on Ctrl-C, and save nothing:
    https://github.com/Lightning-AI/pytorch-lightning/issues/19916. At a second Ctrl-C
    the run ends at once. Signals that were ignored stay ignored. Several processes stop
    at the same step: they ask each other every 16 steps, and when an epoch ends, for
    each time all have to wait for the last one.

    *`step.ckpt`*: saved within an epoch, at a signal and every so often. A run goes on
    exactly there: with the next batch, and with the loss and accuracy of each step.
    At the end of an epoch `last.ckpt` is saved instead, and `step.ckpt` goes.

    Put it last: what it saves is what the other callbacks have done.

    Args:
        run: Where `step.ckpt` goes; of a trial nothing is saved.
        every_n_steps: How often to save it; 0 for at a signal only.
        history: Knows the learning rates.
    """

    def __init__(self, run: RunFolder, every_n_steps: int, history: History) -> None:
        self.run, self.every_n_steps, self.history = run, every_n_steps, history
        self.path = None if run.is_trial else run.checkpoints / "step.ckpt"
        self.signum, self.ask_every = 0, 1
        self.ignored: dict[int, signals.Handler] = {
            signum: handler
            for signum, handler in signals.current().items()
            if handler == signal.SIG_IGN
        }

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Take the signals from Lightning; go on with the batch after the last one."""
        signals.install(dict.fromkeys(SIGNALS, self._note_signal))
        signals.install(self.ignored)
        self.ask_every = ASK_EVERY if trainer.world_size > 1 else 1
        loader: Any = trainer.train_dataloader
        epoch, batch = divmod(trainer.global_step, int(trainer.num_training_batches))
        loader.resume_at(epoch, batch)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Take the signals from Lightning again.

        One process ends at once. Several agree first: Lightning has the one that gets
        SIGTERM send something to the others, which wait for something else by then.
        """
        if trainer.world_size > 1:
            signals.install(dict.fromkeys(SIGNALS, self._note_signal))
        signals.install(self.ignored)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop, if a signal came to one of several processes.

        Raises:
            StoppedError: A signal came.
        """
        if trainer.world_size > 1:
            signum = self._agreed_signal(trainer)
            if signum:
                _stop(trainer, signum)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Save, if it is time to; stop, if a signal came.

        Raises:
            DivergedError: A loss was not finite, so nothing is saved.
            StoppedError: A signal came.
        """
        if not steps_in_epoch(trainer):  # the epoch is over: `last.ckpt` is next
            self._check_finite(trainer)
            return
        is_asked = trainer.global_step % self.ask_every == 0
        signum = self._agreed_signal(trainer) if is_asked else 0
        is_due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if self.path is not None and (signum or is_due):
            self._check_finite(trainer)
            trainer.save_checkpoint(self.path)
        if signum:
            _stop(trainer, signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Drop what `last.ckpt` has overtaken; stop, if a signal came.

        Raises:
            StoppedError: A signal came.
        """
        if self.path is not None:
            trainer.strategy.remove_checkpoint(self.path)
        signum = self._agreed_signal(trainer)
        if signum:
            _stop(trainer, signum)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Do not begin the test before the last checkpoint is on the disk.

        Raises:
            InputError: It cannot be written.
        """
        _wait_for_checkpoints(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Within an epoch, add the metrics of its steps, of every process."""
        if steps_in_epoch(trainer):
            checkpoint["epoch_metrics"] = {
                name: pl_module.all_gather(torch.stack(getattr(pl_module, name)))
                for name in STEP_METRICS
            }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Give every process the metrics of its steps back."""
        for name, values in checkpoint.get("epoch_metrics", {}).items():
            own = values.reshape(trainer.world_size, -1)[trainer.global_rank]
            setattr(pl_module, name, [*own.to(trainer.strategy.root_device)])

    def _check_finite(self, trainer: pl.Trainer) -> None:
        """End a run whose loss or weights are not finite, in every process alike."""
        module: Any = trainer.lightning_module
        step = trainer.global_step - len(module.losses)  # of the first of them
        noted = first_bad(torch.stack(module.losses), step)
        bad_step = int(trainer.strategy.reduce(noted, reduce_op="max"))
        weights = trainer.lightning_module.parameters()
        are_finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        # A step can spoil the weights and still have had a loss.
        if bad_step < 0 and not are_finite:
            bad_step = trainer.global_step - 1
        if bad_step >= 0:
            lr = self.history.lrs[bad_step - trainer.global_step]
            _wait_for_checkpoints(trainer)
            good = (*self.run.newest_checkpoints(), "none")[0]
            raise DivergedError(
                f"the loss or a weight was not finite at step {bad_step}, where the LR "
                f"was {lr:.3g}; last good checkpoint: {good}; try a lower --lr, or "
                "--precision 32-true"
            )

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        """The signal that any process got; 0 for none. All processes must ask."""
        if trainer.world_size == 1:
            return self.signum
        signum = torch.tensor(self.signum, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(signum, reduce_op="max"))

    def _note_signal(self, signum: int, _: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signum:
            raise StoppedError(signum)
        self.signum = signum
        if is_first_process():
            # Not through `print`, which the signal may have interrupted. The terminal
            # may be gone.
            with contextlib.suppress(OSError):
                when = b"after this step" if self.ask_every == 1 else b"in a few steps"
                os.write(2, b"\nstopping %s (Ctrl-C again: at once)\n" % when)


def _stop(trainer: pl.Trainer, signum: int) -> NoReturn:
    _wait_for_checkpoints(trainer)
    raise StoppedError(signum)


def _wait_for_checkpoints(trainer: pl.Trainer) -> None:
    checkpoint_io: Any = trainer.strategy.checkpoint_io
    checkpoint_io.wait()


def first_bad(losses: Tensor, step: int) -> Tensor:
    """The first step whose loss is not finite; -1 if there is none.

    Args:
        losses: Those of steps that follow each other.
        step: The first of these.
    """
    is_bad = ~losses.isfinite()
    return torch.where(is_bad.any(), step + is_bad.int().argmax(), -1)


def steps_in_epoch(trainer: pl.Trainer) -> int:
    """Steps since the last whole epoch."""
    return int(trainer.global_step % trainer.num_training_batches)
