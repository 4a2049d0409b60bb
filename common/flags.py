"""Flags: the parameters of a function, or the fields of a dataclass, in words."""

import inspect
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import (
    ArgumentParser,
    get_loader,
    set_dumper,
    set_loader,
    set_parsing_settings,
)

from common.errors import InputError
from common.files import expanded

NULLS = ("", "~", "null", "Null", "NULL")  # of YAML


class Parser(ArgumentParser):
    """Reports an error as one line on stderr and ends with exit code 2."""

    types: dict[str, Any]

    def parse_path(self, path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Read a configuration file, which is UTF-8 on every machine."""
        if path == "-":
            content = sys.stdin.buffer.read()
        else:
            content = expanded(path).read_bytes()
        return self.parse_string(content.decode("utf-8-sig"), *arguments, **keywords)

    def parse_string(self, content: str, *arguments: Any, **keywords: Any) -> Any:
        """Read a configuration, in which `name: 20240101` is text as any other name."""
        try:
            root = yaml.compose(content, yaml.SafeLoader)
        except yaml.YAMLError:
            root = None  # jsonargparse says what is wrong
        if isinstance(root, yaml.MappingNode):
            texts = [name for name, kind in self.types.items() if _is_text(kind)]
            for key, value in root.value:
                if isinstance(value, yaml.ScalarNode) and key.value in texts:
                    _make_text(value)
            content = yaml.serialize(root, allow_unicode=True)
        return super().parse_string(content, *arguments, **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what was wrong, what came and what is expected."""
        raise InputError(self._explain(message)) from ex

    def _explain(self, message: str) -> str:
        key = re.search(r'Parser key "(\w+)"', message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if key and value and key[1] in self.types:
            expected = _describe(self.types[key[1]])
            return f"--{key[1]} must be {expected}, got {value[1]!r}"
        return f"{' '.join(message.split())}; see --help"


def parse(
    function: Callable[..., Any], arguments: list[str], program: str = "train.py"
) -> dict[str, Any]:
    """Read the keyword arguments of a function, or a dataclass, from a command line.

    Every parameter is a flag of its name, explained by the function's docstring, or by
    that of the field; a
    list without a default stands without a flag. `--config FILE.yaml` reads flags from
    a file and `--print_config` writes them. A flag that may be true is on when it
    stands alone.
    """
    summary = (function.__doc__ or "").split("\n")[0]
    set_loader("flags", _load, (yaml.YAMLError,))
    set_dumper("flags", _dump)
    parser = Parser(
        prog=program, description=summary, allow_abbrev=False, parser_mode="flags"
    )
    parser.types = typing.get_type_hints(function)
    parser.add_argument("--config", action="config", help="YAML file of flags.")
    bare = _add_bare_arguments(parser, function)
    if inspect.isclass(function):
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        parser.add_class_arguments(function, as_group=False)
    else:
        parser.add_function_arguments(function, as_group=False, skip=bare)
    switches = {
        f"--{name}" for name, kind in parser.types.items() if _allows_true(kind)
    }
    spelled_out = [
        f"{flag}=true" if flag in switches and _stands_alone(follower, bare) else flag
        for flag, follower in itertools.pairwise([*arguments, "-"])
    ]
    try:
        values: dict[str, Any] = parser.parse_args(spelled_out).as_dict()
    except (OSError, RecursionError, ValueError) as error:  # of odd configuration files
        parser.error(f"--config is not a readable YAML file ({error})")
    del values["config"]
    for name, kind in parser.types.items():
        # A null in a configuration file passes for any type.
        if values.get(name, "") is None and type(None) not in typing.get_args(kind):
            parser.error(f"--{name} must be {_describe(kind)}, got null")
    return {name: _at_home(value) for name, value in values.items()}


def _add_bare_arguments(
    parser: ArgumentParser, function: Callable[..., Any]
) -> set[str | int]:
    """Add the lists without a default, which take one value or more, by their names."""
    bare: set[str | int] = set()
    for name, parameter in inspect.signature(function).parameters.items():
        is_list = typing.get_origin(parameter.annotation) is list
        if is_list and parameter.default is inspect.Parameter.empty:
            [kind] = typing.get_args(parameter.annotation)
            text = re.search(rf"^ +{name}: (.*)", function.__doc__ or "", re.M)
            explained = text and text[1]  # not under `python -OO`
            parser.add_argument(name, nargs="+", type=kind, help=explained)
            bare.add(name)
    return bare


def _stands_alone(follower: str, bare: set[str | int]) -> bool:
    """Whether what follows a switch is not its value."""
    if bare and follower.lower() not in ("true", "false"):
        return True
    return follower.startswith("-")


def _allows_true(kind: Any) -> bool:
    return kind is bool or bool in typing.get_args(kind)


def _is_text(kind: Any) -> bool:
    """Whether a flag is text, or null, and nothing else."""
    return kind is str or {*typing.get_args(kind)} == {str, type(None)}


def _make_text(value: yaml.ScalarNode) -> None:
    """Have YAML take a value for what it says, whatever it looks like."""
    if value.style is not None or value.value not in NULLS:
        value.tag, value.style = "tag:yaml.org,2002:str", "'"


def _load(text: str) -> Any:
    """Read a value; text that YAML passes over, such as #1, is itself."""
    value = get_loader("yaml")(text)
    return text if value is None and text.strip() not in NULLS else value


def _dump(values: dict[str, Any]) -> str:
    """Write a configuration that is UTF-8 whatever the encoding of the output."""
    is_utf8 = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=is_utf8)
    return text


def _at_home(value: Any) -> Any:
    """Expand `~` in paths; no other text begins so."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    if isinstance(value, str):
        return os.path.expanduser(value)
    return expanded(value) if isinstance(value, Path) else value


def _describe(kind: Any) -> str:
    """A type in words: "a number or 'auto'"."""
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    names |= {str: "text", type(None): "null"}
    if kind in names:
        return names[kind]
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(part) for part in parts)
    if typing.get_origin(kind) in (list, tuple):
        return f"a list, each item {_describe(parts[0])}"
    return " or ".join(_describe(part) for part in parts)
