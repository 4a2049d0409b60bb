"""The notebook: it runs from top to bottom, and what is committed with it is clean."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from torchvision.datasets import CIFAR10

from images import sources
from images.synthetic import draw_shapes
from published import CLASSES, checksums, make_archive, make_files

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOK = PROJECT / "notebooks" / "cifar10.ipynb"
# What is written otherwise in the cells so that they take seconds.
QUICK = {"(128, 16, 2)": "(64, 4, 1)", '"lightning", 100,': '"lightning", 40,'}
FIGURES = 6  # batch, range test, curves, confusion, mistakes, drawing


def cells() -> list[Any]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def source(cell: Any) -> str:
    """The code of a cell, without IPython's own commands."""
    return re.sub(r"^%.*", "", "".join(cell["source"]), flags=re.M)


def run_cell(code: str, names: dict[str, Any]) -> Any:
    """What a cell shows: the value of its last line."""
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    tree.body.pop()
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the notebook needs, in a folder to write to; it starts in its own."""
    for path in (*PROJECT.glob("*.py"), PROJECT / "requirements.txt"):
        shutil.copy(path, tmp_path)
    for room in ("analysis", "common", "images", "machine", "training"):
        shutil.copytree(PROJECT / room, tmp_path / room)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_it_runs_from_top_to_bottom(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sources, "draw_shapes", lambda count, seed: draw_shapes(count // 10, seed)
    )
    names: dict[str, Any] = {}
    shown = []
    for cell in cells():
        code = source(cell).replace("cli.set_up_messages()", "")
        for long, short in QUICK.items():
            code = code.replace(long, short)
        shown.append(run_cell(code, names))
    assert [type(value) for value in shown if value is not None] == FIGURES * [Figure]
    assert (project / "runs" / "notebook" / "checkpoints" / "last.ckpt").exists()
    assert (names["WIDTH"], len(names["test"].lrs)) == (4, 40)
    assert names["metrics"]["max_lr"] == names["test"].lr
    assert int(names["evaluation"].counts.sum()) == 100
    assert float(names["shares"].sum()) == pytest.approx(1)


def test_it_runs_on_the_published_cifar10(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_files(60)
    for name, value in checksums(files, make_archive(files)).items():
        monkeypatch.setattr(CIFAR10, name, value)
    folder = project / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names: dict[str, Any] = {}
    changes = {'DATA = "synthetic"': 'DATA = "cifar10"', "(256, 64, 24)": "(64, 4, 1)"}
    for cell in cells():
        code = source(cell).replace("cli.set_up_messages()", "")
        for long, short in (QUICK | changes).items():
            code = code.replace(long, short)
        run_cell(code, names)
    assert names["images"].source == "cifar10"
    assert names["model"].hparams["classes"] == CLASSES
    assert int(names["evaluation"].counts.sum()) == 60


@pytest.mark.slow  # starts a kernel and runs for a minute
def test_it_runs_in_a_kernel_as_it_is(project: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, 4)
    Path.home().mkdir()  # where Jupyter keeps its settings
    where = {"metadata": {"path": str(project / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    assert pictures(notebook.cells) == FIGURES
    metrics = json.loads((project / "runs/notebook/metrics.json").read_text())
    assert metrics["test/acc"] > 0.95  # with the pick as it is


def pictures(among: Sequence[Any]) -> int:
    outputs = [output for cell in among for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_what_is_committed_was_run_on_drawn_images_and_is_clean() -> None:
    assert 'DATA = "synthetic"' in source(cells()[0])
    assert 'REPOSITORY = ""' in source(cells()[0])
    assert [cell["execution_count"] for cell in cells()] == [
        number + 1 for number in range(len(cells()))
    ]
    assert pictures(cells()) == FIGURES
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    text = "".join(part for output in outputs for part in output.get("text", ()))
    assert "1000 test images of 10 classes\nbar, circle, crescent" in text
    assert not re.search(r"warning|error|(?<!\w)/\w+/\w+", text, re.IGNORECASE)
    assert NOTEBOOK.stat().st_size < 500_000


def set_up(**names: str) -> None:
    run_cell(source(cells()[1]), {"REPOSITORY": "", **names})


def test_without_the_project_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="set REPOSITORY to its address"):
        set_up()


def test_it_clones_the_project(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *command], check=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    set_up(REPOSITORY=project.as_uri())
    assert Path.cwd() == elsewhere / "project"
    assert Path("train.py").exists()
    assert sys.path[0] == str(elsewhere / "project")


def test_it_installs_only_what_is_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [
        package
        for package in importlib.metadata.distributions()
        if package.metadata["Name"] not in ("jsonargparse", "torchmetrics")
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: there)
    commands: list[list[str]] = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: commands.append(command)
    )
    set_up()
    lines = (project / "requirements.txt").read_text().splitlines()
    wanted = [
        line.split("#")[0].strip()
        for line in lines
        if line.startswith(("jsonargparse", "torchmetrics"))
    ]
    assert commands == [[sys.executable, "-m", "pip", "install", "-q", *wanted]]
