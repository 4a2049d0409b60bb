"""Text for one line of a terminal."""

import os
import shlex
import subprocess
import unicodedata
from collections.abc import Sequence


def one_line(text: object) -> str:
    """Escape line breaks, control characters and bytes that are no characters."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(text)
    )


def as_typed(command: Sequence[str]) -> str:
    """A command as it is typed in the shells of this system."""
    if os.name == "nt":  # cmd.exe takes single quotes for part of a name
        return subprocess.list2cmdline(command)
    return shlex.join(command)
