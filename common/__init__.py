"""Command line, files, errors, text; and fixes that must come before other imports."""

import atexit
import contextlib
import gc
import getpass
import os
import sys


def _open_missing_streams() -> None:
    """Open os.devnull for standard streams that the process was started without.

    Files would take their numbers and get what is meant for them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, stream)


def _name_user() -> None:
    """Name a user that has no name, as under `docker --user`: torch asks for it."""
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid()) if os.name == "posix" else "user"


def _set_up_matplotlib() -> None:
    """Do without the MPLBACKEND of the environment where matplotlib has none such."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
            os.environ["MPLBACKEND"] = backend


_open_missing_streams()
_name_user()
_set_up_matplotlib()
# The end of the process is the end of all garbage: Python need not look for it among
# all that Lightning imports, which takes a second.
atexit.register(gc.freeze)
