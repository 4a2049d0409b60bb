"""Flags: the parameters of a function, or the fields of a dataclass, in words."""

import dataclasses
import inspect
import itertools
import os
import re
import sys
import textwrap
import typing
from argparse import HelpFormatter
from collections.abc import Callable, Sequence
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
from common.wording import Known, describe, explain, placeholder

NULLS = ("", "~", "null", "Null", "NULL")  # of YAML
HELP = "Show this help and exit."
CONFIG = "Read flags from a YAML file; those after it overrule it."
PRINT = "Print all flags as such a file and exit; =skip_default leaves out defaults."


class Formatter(HelpFormatter):
    """Breaks no line within a value such as torch-lr-finder."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(ArgumentParser):
    """Says in words what flags there are, and what is wrong with what came."""

    known: Known

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Groups of flags, and examples of commands."""
        examples = [f"\n  {example}" for example in self.known.examples]
        last = ["\nexamples:", *examples, "\n"] if examples else []
        return super().format_help(formatter) + "".join(last)

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
            texts = [name for name, kind in self.known.types.items() if _is_text(kind)]
            for key, value in root.value:
                if isinstance(value, yaml.ScalarNode) and key.value in texts:
                    _make_text(value)
            content = yaml.serialize(root, allow_unicode=True)
        return super().parse_string(content, *arguments, **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what was wrong, what came and what is expected."""
        raise InputError(explain(message, self.known)) from ex


def parse(
    function: Callable[..., Any],
    arguments: list[str],
    program: str = "train.py",
    examples: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the keyword arguments of a function, or a dataclass, from a command line.

    Every parameter is a flag of its name, explained by the function's docstring, or by
    that of the field; a list without a default stands without a flag. `--config
    FILE.yaml` reads flags from a file and `--print_config` writes them. A flag that may
    be true is on when it stands alone. A field may hold metadata for the help: what
    its value is in `words`, and `section`, the title above it and those after it.

    Args:
        function: Whose arguments are wanted.
        arguments: Of the command line.
        program: Its name.
        examples: Commands for the help.

    Raises:
        InputError: A flag is unknown, missing, or wrong.
    """
    set_loader("flags", _load, (yaml.YAMLError,))
    set_dumper("flags", _dump)
    parser = Parser(
        description=(function.__doc__ or "").split("\n")[0],
        allow_abbrev=False,
        parser_mode="flags",
        formatter_class=Formatter,
    )
    parser.known = known = Known(typing.get_type_hints(function), examples)
    parser.add_argument("--config", action="config", metavar="PATH")
    bare = _add_bare_arguments(parser, function)
    parser.prog = " ".join([program, *(f"{str(name).upper()} ..." for name in bare)])
    parser.usage = "%(prog)s [flags]"
    _add_flags(parser, function, bare)
    _put_into_words(parser, function)
    switches = {f"--{name}" for name, kind in known.types.items() if _allows_true(kind)}
    spelled_out = [
        f"{flag}=true" if flag in switches and _stands_alone(follower, bare) else flag
        for flag, follower in itertools.pairwise([*arguments, "-"])
    ]
    try:
        values: dict[str, Any] = parser.parse_args(spelled_out).as_dict()
    except (OSError, RecursionError, ValueError) as error:  # of odd configuration files
        parser.error(f"--config is not a readable YAML file ({error})")
    del values["config"]
    for name, kind in known.types.items():
        # A null in a configuration file passes for any type.
        if values.get(name, "") is None and type(None) not in typing.get_args(kind):
            parser.error(f"--{name} must be {describe(kind)}, got null")
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


def _add_flags(
    parser: ArgumentParser, function: Callable[..., Any], bare: set[str | int]
) -> None:
    """Add a flag a parameter, or a field, under the title of its section."""
    flags = parser.add_argument_group("flags")
    if not dataclasses.is_dataclass(function):
        flags.add_function_arguments(function, as_group=False, skip=bare)
        return
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    flags.add_class_arguments(function, as_group=False)
    # To add them section by section takes a second: it reads the source each time.
    actions = {action.dest: action for action in flags._group_actions}
    flags._group_actions.clear()
    title, sections = "flags", {"flags": flags}
    for one in dataclasses.fields(function):
        title = one.metadata.get("section", title)
        if title not in sections:
            sections[title] = parser.add_argument_group(title)
        sections[title]._group_actions.append(actions[one.name])


def _put_into_words(parser: Parser, function: Callable[..., Any]) -> None:
    """Explain each flag by what it does, what its value may be, and its default."""
    words = {"help": HELP, "config": CONFIG, "print_config": PRINT}
    marked = getattr(function, "__dataclass_fields__", {})
    for action in parser._actions:
        kind = parser.known.types.get(action.dest)
        if kind is None:
            action.help = words.get(action.dest, action.help)
            continue
        field = marked.get(action.dest)
        value = field.metadata.get("words") if field else None
        if action.option_strings:
            action.metavar = placeholder(kind)
            default = "" if action.required else f"; default: {_shown(action.default)}"
            action.help = f"{action.help or ''} ({value or describe(kind)}{default})"
        action.help = (action.help or "").strip().replace("%", "%%")


def _shown(default: Any) -> str:
    """A default as it is typed."""
    if default is None:
        return "null"
    return str(default).lower() if isinstance(default, bool) else str(default)


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
