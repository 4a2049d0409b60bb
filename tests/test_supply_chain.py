"""What is installed, and that no file from elsewhere can run code."""

import ast
import functools
import importlib.metadata
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # those that torch 2.11 has packages for
SYSTEMS = ("linux", "darwin", "win32")
PIN = re.compile(
    r"(?P<requirement>[a-z0-9-]+==[\w.]+( ; [^#@]+?)?)( --hash=sha256:[0-9a-f]{64})+"
)


def lines(name: str) -> list[str]:
    """The requirements of a file, one each, without comments."""
    text = (PROJECT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    bare = (re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())
    return [" ".join(line.split()) for line in bare if line.strip()]


def requirements(name: str) -> dict[str, Requirement]:
    """Direct requirements by distribution."""
    found = [Requirement(line) for line in lines(name) if not line.startswith("-r ")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins() -> list[Requirement]:
    """What the lock holds."""
    matches = map(PIN.fullmatch, lines("requirements.lock"))
    return [Requirement(match["requirement"]) for match in matches if match]


RUNTIME = requirements("requirements.txt")
EXTRAS = requirements("requirements-extras.txt")
ALL = RUNTIME | EXTRAS | requirements("requirements-dev.txt")


def modules() -> list[Path]:
    """The project's Python files, relative to it."""
    folders = [path.parent for path in PROJECT.glob("*/*.py")]
    found = {*PROJECT.glob("*.py"), *(p for f in folders for p in f.rglob("*.py"))}
    return sorted(path.relative_to(PROJECT) for path in found)


def is_test(module: Path) -> bool:
    return module.parts[0] in ("tests", "conftest.py")


def imports(tree: ast.AST) -> dict[str, str]:
    """Full name of everything imported, by the name that it has in the module."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def parse(module: Path) -> ast.Module:
    return ast.parse((PROJECT / module).read_text(encoding="utf-8"), str(module))


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """Distributions by the name of what they let one import."""
    return importlib.metadata.packages_distributions()


def distributions(module: Path) -> Iterator[set[str]]:
    """For every third-party import, the distributions that may provide it."""
    own = {path.stem for path in (PROJECT / module).parent.glob("*.py")}
    own |= {path.stem for path in PROJECT.glob("*.py")}
    own |= {path.parent.name for path in PROJECT.glob("*/*.py")}
    tops = {name.split(".")[0] for name in imports(parse(module)).values()}
    for top in sorted(tops - own - sys.stdlib_module_names):
        yield {canonicalize_name(name) for name in installed().get(top, [top])}


@pytest.mark.parametrize("requirement", ALL.values(), ids=str)
def test_every_requirement_has_a_lower_and_an_upper_bound(
    requirement: Requirement,
) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {">=", ">", "==", "~="}
    assert operators & {"<", "<=", "==", "~="}
    assert requirement.url is None


@pytest.mark.parametrize("module", modules(), ids=str)
def test_every_imported_package_is_required(module: Path) -> None:
    is_for_developers = is_test(module) or module.parts[0] == "benchmarks"
    required = set(ALL if is_for_developers else RUNTIME | EXTRAS)
    assert [names for names in distributions(module) if not names & required] == []


def test_every_requirement_is_imported() -> None:
    used = set[str]().union(*itertools.chain(*map(distributions, modules())))
    assert set(RUNTIME) - used == set()


def test_every_line_of_the_lock_is_a_pin_with_hashes() -> None:
    locked = lines("requirements.lock")
    assert [line for line in locked if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("name", RUNTIME)
def test_the_lock_pins_every_requirement_once_within_its_bounds(name: str) -> None:
    pinned = [pin for pin in pins() if pin.name == name]
    for pin in pinned:
        (specifier,) = pin.specifier
        assert RUNTIME[name].specifier.contains(specifier.version), pin
    for python, system in itertools.product(PYTHONS, SYSTEMS):
        where = {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": system,
        }
        met = [pin for pin in pinned if not pin.marker or pin.marker.evaluate(where)]
        assert len(met) == 1, where


def test_pytorch_lightning_comes_without_the_distribution_lightning() -> None:
    # Its 2.6.2 and 2.6.3 were malicious: GHSA-w37p-236h-pfx3.
    assert "lightning" not in {*ALL, *(pin.name for pin in pins())}


# Keyword that a call must have, by full name; a leading dot stands for any object.
NEEDED = {
    "torch.load": ("weights_only", True),
    ".load_from_checkpoint": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    ".extractall": ("filter", "data"),
}
TRAINER = ("fit", "validate", "test", "predict")  # these read `ckpt_path`
FORBIDDEN = {
    *("eval", "exec", "os.system"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load"),
    *("marshal.loads", "shelve.open", "yaml.load", "yaml.load_all"),
    *("yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load"),
    *("yaml.unsafe_load_all", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader"),
}


def unsafe(tree: ast.AST) -> list[str]:
    """What in a module could run code from a file, with its line."""
    known = imports(tree)

    def full_name(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{full_name(node.value)}.{node.attr}"
        return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and full_name(node) in FORBIDDEN:
            found.append(f"{full_name(node)} in line {node.lineno}")
        if not isinstance(node, ast.Call):
            continue
        name = full_name(node.func)
        method = name.rpartition(".")[2]
        needed = NEEDED.get(name) or NEEDED.get(f".{method}")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if method in TRAINER and "ckpt_path" in keywords:
            needed = ("weights_only", True)
        if needed is None:
            continue
        keyword, value = needed
        given = keywords.get(keyword)
        if not isinstance(given, ast.Constant) or given.value != value:
            found.append(f"{name} without {keyword}={value!r} in line {node.lineno}")
    return found


@pytest.mark.parametrize(
    "module", [module for module in modules() if not is_test(module)], ids=str
)
def test_no_file_can_run_code(module: Path) -> None:
    assert unsafe(parse(module)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "from torch import load; load(path)",
        "from torch import load as read; read(path)",
        "Net.load_from_checkpoint(path)",
        "trainer.fit(module, ckpt_path=path)",
        "import numpy as np; np.load(path)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "with tarfile.open(path) as tar: tar.extractall(folder)",
        "import pickle; pickle.load(file)",
        "import pickle as p; read = p.loads",
        "import yaml; yaml.load(text, Loader=loader)",
        "from yaml import unsafe_load; unsafe_load(text)",
        "eval(text)",
    ],
)
def test_unsafe_code_is_found(code: str) -> None:
    assert unsafe(ast.parse(code))
