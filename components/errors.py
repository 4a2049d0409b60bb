"""The one exception for everything a user can put right."""


class InputError(Exception):
    """Bad input. Its text is one line: what was wrong, what came, what to do."""
