"""Ctrl-C, SIGTERM and SIGHUP, and that they end a program cleanly."""

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn

from common.errors import StoppedError

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # not on Windows
    SIGNALS.append(signal.SIGHUP)  # the terminal was closed

Handler = Callable[[int, FrameType | None], Any] | int | None


def current() -> dict[int, Handler]:
    """What each signal does now."""
    return {signum: signal.getsignal(signum) for signum in SIGNALS}


def install(handlers: Mapping[int, Handler]) -> None:
    """Have signals do something else, where this thread may say so: the main one."""
    if threading.current_thread() is threading.main_thread():
        for signum, handler in handlers.items():
            if handler is not None:  # one that was not installed from Python
                signal.signal(signum, handler)


def handle_signals() -> None:
    """Have signals end the program, but those that whoever started it ignores."""
    for signum, handler in current().items():
        if handler != signal.SIG_IGN:  # as SIGHUP under nohup
            signal.signal(signum, stop_at_once)


def stop_at_once(signum: int, _: FrameType | None) -> NoReturn:
    """Handle a signal outside the training: clean up and end.

    Raises:
        StoppedError: Always.
    """
    raise StoppedError(signum)
