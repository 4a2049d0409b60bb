"""Text for one line of a terminal."""

import unicodedata


def one_line(text: object) -> str:
    """Escape line breaks, control characters and bytes that are no characters."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in str(text)
    )
