"""Standard output and error of a program, whose reader may be gone before it ends."""

import errno
import io
import os
import sys
from typing import Any, TextIO

BROKEN_PIPE = 141  # the exit code of a program that SIGPIPE ends


class Outlet(io.FileIO):
    """A standard stream that cannot fail twice: then it leads nowhere.

    Args:
        fd: The stream's number, 1 or 2.
        lasting: Whether the program goes on when its words are lost, as a training
            does; otherwise it ends, without a word if nobody reads any more.

    Raises:
        SystemExit: Nobody reads any more, as after `| head`.
        OSError: The stream cannot be written for another reason, once.
    """

    def __init__(self, fd: int, *, lasting: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self.lasting = lasting

    def write(self, data: Any, /) -> int:
        """Write what the system takes of some bytes, and return their number."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            # A program that is ending already, by a signal, has its exit code.
            if self.lasting or error.__context__ is not None:
                return len(data)
            if error.errno in (errno.EPIPE, errno.EINVAL):  # the latter on Windows
                sys.exit(BROKEN_PIPE)
            raise


def set_up(*, lasting: bool) -> None:
    """Take over the standard streams of a program.

    What their encoding lacks is escaped. Nothing that goes wrong with the standard
    error ends a program.

    Args:
        lasting: Whether the program goes on when nobody reads its standard output.
    """
    if sys.stdout is sys.__stdout__:  # or somebody has put another in its place
        sys.stdout = _through_outlet(sys.stdout, lasting=lasting)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _through_outlet(sys.stderr, lasting=True)


def _through_outlet(stream: TextIO | None, *, lasting: bool) -> TextIO | Any:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if os.name == "nt" and stream.isatty():  # a console takes no bytes
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), lasting=lasting)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )
