"""The command line of a function: its flags, one line an error, exit codes."""

import errno
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import torch
from pytorch_lightning.utilities import rank_zero_only

from common import streams
from common.errors import (
    DivergedError,
    InputError,
    StoppedError,
    is_out_of_memory,
    show_traceback,
)
from common.flags import parse as parse
from common.signals import handle_signals
from common.text import as_typed, one_line

EXPECTED_WARNINGS = (
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*LeafSpec.*",
    # `find_checkpoint` has decided what becomes of an old checkpoint.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/5209
    "Checkpoint directory .* exists",
    # A run may go on in another folder.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/12225
    "The dirpath has changed",
    # Our loader does go on within an epoch, see `Guard`.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/20550
    ".*your dataloader is not resumable",
    # Nothing is held out.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/9785
    "Total length of `list` across ranks is zero",
)
# Errors of files that come from the disk, the network drive or somebody's hand; any
# other is one of the program.
OF_SURROUNDINGS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.EISDIR, errno.EEXIST, errno.ELOOP),
    *(errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
SPENDERS = ("batch_size", "base_width")  # flags that memory depends on


def run(
    program: str,
    function: Callable[..., Any],
    *,
    flags: Callable[..., Any] | None = None,
    outlasts_readers: bool = False,
) -> None:
    """Call a function with what the command line says.

    Whatever ends it early is one line on stderr and an exit code: 2 for what the user
    can put right, 3 for a loss that is not finite, 129, 130 and 143 for signals.
    TRACEBACK=1 in the environment shows what is behind the line. An error of the
    program itself is a traceback.

    Args:
        program: Its name.
        function: What it does.
        flags: A dataclass whose fields are the flags, if they are not the parameters of
            the function.
        outlasts_readers: Whether it goes on when nobody reads its standard output any
            more, because its work is worth it; otherwise it ends with exit code 141.
    """
    flags = flags or function
    streams.set_up(lasting=outlasts_readers)
    set_up_messages()
    handle_signals()
    try:
        try:
            function(**parse(flags, sys.argv[1:], program, _examples(function)))
        finally:
            sys.stdout.flush()
    except InputError as error:
        fail(program, str(error))
    except DivergedError as error:
        end_together(program, f"error: {error}", code=3)
    except StoppedError as stop:
        end_together(program, describe_stop(stop, sys.argv), stop.exit_code)
    except Exception as error:
        reason = explain(error, inspect.signature(flags).parameters)
        if reason is None:
            kill_other_processes()
            raise
        fail(program, reason)


def _examples(function: Callable[..., Any]) -> list[str]:
    """The commands that stand in the docstring of a program, for its help."""
    lines = (sys.modules[function.__module__].__doc__ or "").splitlines()
    commands = [line.split("#")[0].strip() for line in lines]
    return [
        command
        for command in commands
        if command.startswith("python ") and not command.endswith("--help")
    ]


def explain(error: Exception, flags: Collection[str]) -> str | None:
    """What the user can do about an error; None for one of the program itself.

    Args:
        error: Any but those that have a line of their own.
        flags: Those of the program.
    """
    reason = one_line(str(error).strip().split("\n")[0]) or type(error).__name__
    again = "start again"
    again += ", with --ckpt_path last" if "ckpt_every_n_steps" in flags else ""
    if is_out_of_memory(error):
        lower = " or ".join(f"--{flag}" for flag in SPENDERS if flag in flags)
        lower = f"lower {lower}, or " if lower else ""
        return (
            f"there is not enough memory ({reason}); {lower}close other programs; "
            "checkpoints that are written stay"
        )
    if isinstance(error, torch.AcceleratorError) and "assert" not in reason:
        return f"the GPU failed ({reason}); {again}; TRACEBACK=1 shows where"
    if isinstance(error, OSError) and error.errno in OF_SURROUNDINGS:
        return (
            f"a file cannot be read or written ({one_line(error)}); put that right, "
            f"then {again}; TRACEBACK=1 shows where"
        )
    return None


def kill_other_processes() -> None:
    """End the processes of a training that its first one has started by Lightning.

    They may wait for this one, and would for ever.
    """
    for thread in threading.enumerate():  # one of them watches the processes
        for process in getattr(thread, "_child_processes", ()):
            process.kill()


def set_up_messages() -> None:
    """Let our own messages through to the terminal, and of Lightning's the warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_first_process)  # the others would say the same
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no hints and adverts
    for name in ("pytorch_lightning.utilities.rank_zero", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ignore_expected_warnings()
    threading.excepthook = _report_thread


def is_first_process(*_: object) -> bool:
    """Whether this is the first of all processes, as far as that is known yet."""
    return getattr(rank_zero_only, "rank", 0) == 0


def ignore_expected_warnings() -> None:
    """Keep warnings from the user that are untrue here, or about what is meant."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _report_thread(thread: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's writer raises again in the main thread."""
    if not issubclass(thread.exc_type, OSError):
        threading.__excepthook__(thread)


def fail(program: str, message: str) -> NoReturn:
    """End with one line on stderr; exit code 2 stands for bad input."""
    show_traceback()
    kill_other_processes()
    print(f"{program}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def end_together(program: str, message: str, code: int) -> NoReturn:
    """End for a reason that all processes know; the first one says it for all."""
    if not is_first_process():
        sys.exit(0)  # or Lightning's launcher would kill the first one for it
    show_traceback()
    # On a line of its own: a bar may be on this one.
    print(f"\n{program}: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def describe_stop(stop: StoppedError, argv: list[str]) -> str:
    """What a signal left of a run, and the command to go on with it."""
    if not stop.checkpoints:
        return f"stopped by {stop.name}; nothing is saved yet"
    newest = stop.checkpoints[0]
    command = resume_command(argv, name=newest.parent.parent.name)
    return f"stopped by {stop.name}; {newest} is saved; resume with: {command}"


def without_flags(argv: Sequence[str], *flags: str) -> list[str]:
    """The words of a command line, without some flags and what follows them."""
    kept, is_kept = [], True
    for word in argv:
        if word.startswith("--"):
            is_kept = word.split("=")[0] not in flags
        if is_kept:
            kept.append(word)
    return kept


def resume_command(argv: list[str], name: str) -> str:
    """The command that goes on with the run of a command line."""
    kept = without_flags(argv, "--overwrite", "--ckpt_path", "--name")
    if "--config" in {argument.split("=")[0] for argument in kept}:
        kept += ["--overwrite", "false"]  # the file may say otherwise
    return as_typed(["python", *kept, "--name", name, "--ckpt_path", "last"])
