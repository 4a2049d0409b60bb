"""Errors that end a program with one line, and the traceback behind the line."""

import os
import re
import signal
import sys
import traceback
from pathlib import Path

NO_MEMORY = re.compile("out of memory|can't allocate memory|bad_alloc|ALLOC_FAILED")


class InputError(Exception):
    """Bad input: what was wrong, what came, what to do. Exit code 2."""


class DivergedError(Exception):
    """The loss is no longer a number: where, and what to do. Exit code 3."""


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


def show_traceback() -> None:
    """Print all that is behind the error in hand, if TRACEBACK=1 is in the environment.

    Errors of users come without the errors that led to them; here they are shown, too.
    """
    if os.environ.get("TRACEBACK", "0") in ("", "0"):
        return
    error = cause = sys.exception()
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of this machine or a GPU.

    torch.OutOfMemoryError, torch.AcceleratorError and what PyTorch raises on a CPU are
    all RuntimeErrors.
    """
    is_torchs = isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))
    return bool(is_torchs) or isinstance(error, MemoryError)
