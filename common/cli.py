"""The command line of a function: one flag a parameter, one line an error."""

import errno
import inspect
import itertools
import logging
import os
import re
import shlex
import sys
import threading
import typing
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import (
    ArgumentParser,
    get_loader,
    set_dumper,
    set_loader,
    set_parsing_settings,
)
from pytorch_lightning.utilities import rank_zero_only

from common import streams
from common.errors import (
    DivergedError,
    InputError,
    StoppedError,
    is_out_of_memory,
    show_traceback,
)
from common.files import expanded
from common.signals import handle_signals
from common.text import one_line

EXPECTED_WARNINGS = (
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*LeafSpec.*",
    # `find_checkpoint` has decided what becomes of an old checkpoint.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/5209
    "Checkpoint directory .* exists",
    # A run may go on in another folder.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/12225
    "The dirpath has changed",
    # Our loader does go on within an epoch, see `Guard`.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/20550
    ".*your dataloader is not resumable",
    # Nothing is held out.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/9785
    "Total length of `list` across ranks is zero",
)
# Errors of files that come from the disk, the network drive or somebody's hand; any
# other is one of the program.
OF_SURROUNDINGS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.EMFILE, errno.ENFILE),
    *(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
SPENDERS = ("batch_size", "base_width")  # flags that memory depends on
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
        fail(self.prog, self._explain(message))

    def _explain(self, message: str) -> str:
        key = re.search(r'Parser key "(\w+)"', message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if key and value and key[1] in self.types:
            expected = _describe(self.types[key[1]])
            return f"--{key[1]} must be {expected}, got {value[1]!r}"
        return f"{' '.join(message.split())}; see --help"


def run(
    program: str,
    function: Callable[..., Any],
    *,
    flags: Callable[..., Any] | None = None,
    outlasts_readers: bool = False,
) -> None:
    """Call a function with what the command line says.

    Whatever ends it early is one line on stderr and an exit code: 2 for what the user
    can put right, 3 for a loss that is not finite, 129, 130 and 143 for signals.
    TRACEBACK=1 in the environment shows what is behind the line. An error of the
    program itself is a traceback.

    Args:
        program: Its name.
        function: What it does.
        flags: A dataclass whose fields are the flags, if they are not the parameters of
            the function.
        outlasts_readers: Whether it goes on when nobody reads its standard output any
            more, because its work is worth it; otherwise it ends with exit code 141.
    """
    flags = flags or function
    streams.set_up(lasting=outlasts_readers)
    set_up_messages()
    handle_signals()
    try:
        try:
            function(**parse(flags, sys.argv[1:], program))
        finally:
            sys.stdout.flush()
    except InputError as error:
        fail(program, str(error))
    except DivergedError as error:
        end_together(program, f"error: {error}", code=3)
    except StoppedError as stop:
        end_together(program, describe_stop(stop, sys.argv), stop.exit_code)
    except Exception as error:
        reason = explain(error, inspect.signature(flags).parameters)
        if reason is None:
            kill_other_processes()
            raise
        fail(program, reason)


def explain(error: Exception, flags: Collection[str]) -> str | None:
    """What the user can do about an error; None for one of the program itself.

    Args:
        error: Any but those that have a line of their own.
        flags: Those of the program.
    """
    reason = one_line(str(error).strip().split("\n")[0]) or type(error).__name__
    again = "start again"
    again += ", with --ckpt_path last" if "ckpt_every_n_steps" in flags else ""
    if is_out_of_memory(error):
        lower = " or ".join(f"--{flag}" for flag in SPENDERS if flag in flags)
        lower = f"lower {lower}, or " if lower else ""
        return (
            f"there is not enough memory ({reason}); {lower}close other programs; "
            "checkpoints that are written stay"
        )
    if isinstance(error, torch.AcceleratorError) and "assert" not in reason:
        return f"the GPU failed ({reason}); {again}; TRACEBACK=1 shows where"
    if isinstance(error, OSError) and error.errno in OF_SURROUNDINGS:
        return (
            f"a file cannot be read or written ({one_line(error)}); put that right, "
            f"then {again}; TRACEBACK=1 shows where"
        )
    return None


def kill_other_processes() -> None:
    """End the processes of a training that its first one has started by Lightning.

    They may wait for this one, and would for ever.
    """
    for thread in threading.enumerate():  # one of them watches the processes
        for process in getattr(thread, "_child_processes", ()):
            process.kill()


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


def set_up_messages() -> None:
    """Let our own messages through to the terminal, and of Lightning's the warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no hints and adverts
    for name in ("pytorch_lightning.utilities.rank_zero", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    threading.excepthook = _report_thread


def _report_thread(thread: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's writer raises again in the main thread."""
    if not issubclass(thread.exc_type, OSError):
        threading.__excepthook__(thread)


def fail(program: str, message: str, code: int = 2) -> NoReturn:
    """End with one line on stderr; exit code 2 stands for bad input."""
    show_traceback()
    kill_other_processes()
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)


def end_together(program: str, message: str, code: int) -> NoReturn:
    """End for a reason that all processes know; the first one says it for all."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        sys.exit(0)  # or Lightning's launcher would kill the first one for it
    show_traceback()
    print(f"\n{program}: {message}", file=sys.stderr)  # a bar may be on this line
    sys.exit(code)


def describe_stop(stop: StoppedError, argv: list[str]) -> str:
    """What a signal left of a run, and the command to go on with it."""
    if not stop.checkpoints:
        return f"stopped by {stop.name}; nothing is saved yet"
    newest = stop.checkpoints[0]
    command = resume_command(argv, name=newest.parent.parent.name)
    return f"stopped by {stop.name}; {newest} is saved; go on with: {command}"


def resume_command(argv: list[str], name: str) -> str:
    """The command that goes on with the run of a command line."""
    kept, is_kept = [], True
    for argument in argv:
        if argument.startswith("--"):
            flag = argument.split("=")[0]
            is_kept = flag not in ("--overwrite", "--ckpt_path", "--name")
        if is_kept:
            kept.append(argument)
    return shlex.join(["python", *kept, "--name", name, "--ckpt_path", "last"])


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
