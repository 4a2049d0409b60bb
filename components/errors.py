"""What ends a run with one line instead of a traceback."""


class InputError(Exception):
    """Bad input: what was wrong, what came, what to do. Exit code 2."""


class DivergedError(Exception):
    """The loss is no longer a number: where, and what to do. Exit code 3."""
