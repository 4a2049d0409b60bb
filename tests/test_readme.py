"""Tables of the pages against the code. Commands of pages are in test_docs.py."""

import re
from pathlib import Path

from common import cli
from config import Config
from custom_resnet import CustomResNet, layer_table
from export import SUFFIXES

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
DESIGN = (PROJECT / "docs" / "design.md").read_text(encoding="utf-8")
PROGRAMS = (PROJECT / "docs" / "programs.md").read_text(encoding="utf-8")


def test_every_format_of_an_export_is_in_the_table() -> None:
    for name, suffix in SUFFIXES.items():
        assert f"| `{name}` | `{suffix}`" in PROGRAMS


def test_every_flag_is_in_the_table_of_flags() -> None:
    section = README.split("## Flags by task")[1].split("###")[0]
    named = set(re.findall(r"--(\w+)", section)) - {"help", "config", "print_config"}
    assert named == set(cli.parse(Config, []))


def test_the_table_of_layers_is_the_network() -> None:
    assert layer_table(CustomResNet()) in DESIGN


def test_every_file_of_the_table_exists_and_no_module_is_left_out() -> None:
    section = DESIGN.split("## Which file to open")[1].split("##")[0]
    named = set(re.findall(r"`([\w./]+(?:\.py|/))`", section))
    for name in named:
        assert (PROJECT / name).exists(), name
    modules = {path.name for path in PROJECT.glob("*.py")} - {"conftest.py"}
    for room in ("analysis", "common", "images", "machine", "training"):
        modules |= {f"{room}/{path.name}" for path in PROJECT.glob(f"{room}/[!_]*.py")}
    assert modules <= named
