"""Types and errors of flags in words."""

import difflib
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
WORDS |= {str: "text", Path: "a path", type(None): "null"}
# What stands for a value in the help; the first that fits.
PLACEHOLDERS = {bool: "[true]", Path: "PATH", int: "N", float: "X"}


def describe(kind: Any) -> str:
    """A type in words, such as "a number or auto"."""
    found = list(parts(kind))
    if Path in found and str in found:
        found.remove(str)
    if bool in found and len(found) > 1:
        found = ["true", "false", *(part for part in found if part is not bool)]
    words = [part if isinstance(part, str) else _name(part) for part in found]
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def placeholder(kind: Any) -> str:
    """What stands for a value of a type in the help."""
    found = [*parts(kind)]
    return next((name for part, name in PLACEHOLDERS.items() if part in found), "NAME")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as a command line would read it.

    A whole number is a number, too; true and false are none.
    """
    if typing.get_origin(kind) is list:
        [item] = typing.get_args(kind)
        return isinstance(value, list) and all(fits(one, item) for one in value)
    found = [*parts(kind)]
    if len(found) > 1:
        return any(
            value == part if isinstance(part, str) else fits(value, part)
            for part in found
        )
    return type(value) is kind or (type(value), kind) == (int, float)


def parts(kind: Any) -> Iterator[Any]:
    """The types of a union, and choices as they are typed."""
    if typing.get_origin(kind) is Literal:
        yield from map(str, typing.get_args(kind))
    elif typing.get_origin(kind) in (typing.Union, types.UnionType):
        for part in typing.get_args(kind):
            yield from parts(part)
    else:
        yield kind


def _name(part: Any) -> str:
    if typing.get_origin(part) in (list, tuple):
        [item, *_] = typing.get_args(part)
        return f"a list, each item {describe(item)}"
    if typing.get_origin(part) is dict:
        return "a list for each name"
    return WORDS[part]


class Known(NamedTuple):
    """What is known of the flags of a program.

    Attributes:
        types: Of each.
        examples: Commands that use them.
    """

    types: dict[str, Any]
    examples: Sequence[str]


def explain(message: str, known: Known) -> str:
    """What jsonargparse finds wrong, in words and in one line."""
    message = " ".join(message.split()).replace('Parser key "config":', "--config:")
    for pattern, words in EXPLANATIONS.items():
        if found := re.search(pattern, message, re.IGNORECASE):
            return words(known, *found.groups())
    return f"{message}; see --help"


def _wrong(known: Known, name: str, value: str) -> str:
    return f"--{name} must be {describe(known.types[name])}, got {value!r}"


def _unknown(known: Known, text: str) -> str:
    name = text.split("=")[0]
    return f"unknown flag {name}; {_meant(name, ['config', 'help', *known.types])}"


def _meant(name: str, flags: Collection[str]) -> str:
    dashes = name[: len(name) - len(name.lstrip("-"))]
    close = difflib.get_close_matches(name.lstrip("-"), flags, 1)
    return f"did you mean {dashes}{close[0]}?" if close else "see --help"


def _unknown_in_file(known: Known, name: str) -> str:
    return f"--config: {_unknown(known, name)}"


def _stray(known: Known, text: str) -> str:
    return f"{text!r} belongs to no flag; see --help"


def _bare(known: Known, name: str) -> str:
    return f"--{name} needs a value: {describe(known.types.get(name, Path))}"


def _missing(known: Known, name: str) -> str:
    example = f"as in: {known.examples[0]}" if known.examples else "see --help"
    if typing.get_origin(known.types.get(name)) is list:
        return f"{name} missing; give at least one, {example}"
    return f"--{name} missing; give it, {example}"


def _no_file(known: Known, path: str) -> str:
    return (
        f"--config {path}: no such file; give a YAML file of flags, such as the "
        "config.yaml of a run"
    )


EXPLANATIONS: dict[str, Callable[..., str]] = {
    r'Parser key "(\w+)".*(?:Got|Given) value: (.*)': _wrong,
    r"unrecognized arguments: (-\S*)": _unknown,
    r"unrecognized arguments: (\S+)": _stray,
    r"option '([\w.]+)' is not accepted": _unknown_in_file,
    r"argument --(\w+): expected": _bare,
    r"arguments are required: (?:--)?(\w+)": _missing,
    r"--config: (?:file does not exist|path is not a file): '(.*)'": _no_file,
}
