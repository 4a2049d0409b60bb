"""The command line of a function: one flag a parameter, one line an error."""

import inspect
import itertools
import logging
import re
import shlex
import signal
import sys
import threading
import typing
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from pytorch_lightning.utilities import rank_zero_only

from components.errors import DivergedError, InputError
from components.stop import SIGNALS, StoppedError, stop_at_once

EXPECTED_WARNINGS = (
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*LeafSpec.*",
    # `find_checkpoint` has decided what becomes of an old checkpoint.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/5209
    "Checkpoint directory .* exists",
    # A run may go on in another folder.
    # https://github.com/Lightning-AI/pytorch-lightning/pull/12225
    "The dirpath has changed",
    # Our loader does go on within an epoch, see `StepCheckpoint`.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/20550
    ".*your dataloader is not resumable",
    # Nothing is held out.
    # https://github.com/Lightning-AI/pytorch-lightning/issues/9785
    "Total length of `list` across ranks is zero",
)


class Parser(ArgumentParser):
    """Reports an error as one line on stderr and ends with exit code 2."""

    types: dict[str, Any]

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


def run(program: str, function: Callable[..., Any]) -> None:
    """Call a function with what the command line says.

    Whatever ends it early is one line on stderr and an exit code: 2 for what the user
    can put right, 3 for a loss that is not finite, 130 and 143 for signals.
    """
    set_up_messages()
    for signum in SIGNALS:
        signal.signal(signum, stop_at_once)
    try:
        function(**parse(function, sys.argv[1:], program))
    except InputError as error:
        fail(program, str(error))
    except OSError as error:  # a full disk, a network drive that went away
        fail(
            program,
            f"a file cannot be read or written ({error}); put that right, then start "
            "again, a training with --ckpt_path last",
        )
    except DivergedError as error:
        end_together(program, f"error: {error}", code=3)
    except StoppedError as stop:
        end_together(program, describe_stop(stop, sys.argv), stop.exit_code)


def parse(
    function: Callable[..., Any], arguments: list[str], program: str = "train.py"
) -> dict[str, Any]:
    """Read the keyword arguments of a function from a command line.

    Every parameter is a flag of its name, explained by the function's docstring; a
    list without a default stands without a flag. `--config FILE.yaml` reads flags from
    a file and `--print_config` writes them. A flag that may be true is on when it
    stands alone.
    """
    summary = (function.__doc__ or "").split("\n")[0]
    parser = Parser(prog=program, description=summary, allow_abbrev=False)
    parser.types = typing.get_type_hints(function)
    parser.add_argument("--config", action="config", help="YAML file of flags.")
    bare = _add_bare_arguments(parser, function)
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
    return values


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
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)


def end_together(program: str, message: str, code: int) -> NoReturn:
    """End for a reason that all processes know; the first one says it for all."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        sys.exit(0)  # or Lightning's launcher would kill the first one for it
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
            [text] = re.findall(rf"^ +{name}: (.*)", function.__doc__ or "", re.M)
            parser.add_argument(name, nargs="+", type=kind, help=text)
            bare.add(name)
    return bare


def _stands_alone(follower: str, bare: set[str | int]) -> bool:
    """Whether what follows a switch is not its value."""
    if bare and follower.lower() not in ("true", "false"):
        return True
    return follower.startswith("-")


def _allows_true(kind: Any) -> bool:
    return kind is bool or bool in typing.get_args(kind)


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
