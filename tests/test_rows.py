"""What has been measured stays on record, whatever file a measurement is given."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    ablation,
    compare,
    lr_sweep,
    recipe,
    scale,
    ship,
    small_maps,
    throughput,
    unknown_images,
)
from benchmarks.rows import add_row, read_rows
from common import cli
from common.errors import InputError

PROGRAMS: list[tuple[Callable[..., Any], str]] = [
    (recipe.recipe, "small.yaml --output FILE"),
    (lr_sweep.lr_sweep, "small.yaml --output FILE"),
    (ablation.ablation, "--output FILE"),
    (ablation.ablation, "--page --output FILE"),
    (compare.compare, "seed best --runs FILE"),
    (ship.ship, "--runs FILE"),
    (throughput.throughput, "--output FILE"),
    (small_maps.small_maps, "--output FILE"),
    (scale.scale, "--output FILE"),
    (unknown_images.unknown_images, "--output FILE --ckpt_path none.ckpt"),
]


def test_rows_may_differ_in_their_columns() -> None:
    file = Path("new/rows.csv")
    assert read_rows(file, "a") == []
    add_row(file, {"a": 1, "b, c": 'x "y"\nz'})
    add_row(file, {"d": None, "a": 0.1})
    assert read_rows(file, "a", "d") == [
        {"a": "1", "b, c": 'x "y"\nz', "d": ""},
        {"a": "0.1", "b, c": "", "d": ""},
    ]
    content = file.read_bytes()
    assert content == b'a,"b, c",d\n1,"x ""y""\nz",\n0.1,,\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'a'"),
        (b"# A page\n\nof text, with a comma\n", "has no column 'a'"),
        (b"a,b\n1,2\n3\n", "row 2 does not have the 2 cells"),
        (b"a,b\n1,2,3\n", "row 1 does not have the 2 cells"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no CSV file"),
    ],
)
def test_another_file_is_refused(content: bytes, message: str) -> None:
    file = Path("file.csv")
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(file, "a")


@pytest.mark.parametrize(("function", "flags"), PROGRAMS)
def test_every_measurement_refuses_it_at_once(
    function: Callable[..., Any],
    flags: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And leaves it as it was, in one line with exit code 2."""
    Path("small.yaml").write_text("accelerator: cpu\nmax_epochs: 1\nlr: 0.01\n")
    Path("notes.md").write_text("# Notes\n\nof mine\n")
    arguments = flags.replace("FILE", "notes.md").split()
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.run("program.py", function)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("program.py: error: notes.md has no column")
    assert said.count("\n") == 1
    assert Path("notes.md").read_text() == "# Notes\n\nof mine\n"
