"""The command line: flags, help, and one line for each wrong input."""

import importlib
import json
import logging
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning.utilities import rank_zero_only

from common import cli
from common.errors import InputError
from common.text import as_typed
from config import Config
from run_files import Payload
from sweep import Sweep
from train import main
from training.checkpoint import AtomicCheckpointIO

PROJECT = Path(__file__).resolve().parent.parent
QUICK = ["--accelerator", "cpu", "--devices", "1", "--base_width", "4"]


def command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python train.py ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


SYNTHETIC = ["--data", "synthetic"]
WRONG = {
    "unknown flag": (["--warp", "9"], "unknown flag --warp; see --help"),
    "positional": (["gpu"], "'gpu' belongs to no flag; see --help"),
    "mistyped": (
        ["--max_epoch", "3"],
        "unknown flag --max_epoch; did you mean --max_epochs?\n",
    ),
    "mistyped with =": (["--epochs=3"], "--epochs; did you mean --max_epochs?\n"),
    "missing value": (["--batch_size"], "--batch_size needs a value: a whole n"),
    "wrong type": (["--batch_size", "many"], "--batch_size must be a whole number"),
    "broken number": (["--batch_size", "1.5"], "got '1.5'"),
    "accelerator": (
        ["--accelerator", "warp"],
        "must be auto, cpu, gpu, cuda or mps, g",
    ),
    "precision": (["--precision", "7"], "--precision must be auto, 32-true, 16-mi"),
    "data": (["--data", "nosuch"], "--data must be auto, cifar10, folder or syn"),
    "finder": (["--lr_finder", "dice"], "--lr_finder must be"),
    "fp16 on CPU": (
        ["--precision", "16-mixed", *QUICK],
        "--precision 16-mixed needs a GPU",
    ),
    "shared statistics": (
        ["--sync_batchnorm", *QUICK],
        "--sync_batchnorm needs NVIDIA GPUs, the device is a cpu",
    ),
    "strategy": (["--strategy", "warp"], "--strategy warp: not possible here"),
    "package": (
        ["--strategy", "xla"],
        "--strategy xla: not possible here (Requi",
    ),
    "batch size 0": (["--batch_size", "0"], "--batch_size must be a whole number, at"),
    "large batch": (
        [*SYNTHETIC, "--batch_size", "4501"],
        "--batch_size 4501 is more than the 4500 training images, 500 held out; give",
    ),
    "lr 0": (["--lr", "0"], "--lr must be a finite number above 0, or auto, got 0"),
    "lr nan": (["--lr", "nan"], "--lr must be a number or auto, got 'nan'"),
    "lr inf": (["--lr", "inf"], "--lr must be a number or auto, got 'inf'"),
    "lr -1": (["--lr", "-1"], "--lr must be a finite number above 0"),
    "lr word": (["--lr", "high"], "--lr must be a number or auto, got 'high'"),
    "lr steps": (["--lr_steps", "5"], "--lr_steps must be a whole number, at least 40"),
    "devices": (["--devices", "0"], "--devices must be from 1 to 1024"),
    "minus devices": (["--devices", "-2"], "--devices must be from 1 to 1024"),
    "a billion devices": (["--devices", "1000000000"], "from 1 to 1024, a list such"),
    "epochs": (["--max_epochs", "-1"], "--max_epochs must be a whole number, at least"),
    "no epochs": (["--max_epochs", "0"], "--max_epochs must be a whole number, at le"),
    "seed": (["--seed", "-1"], "--seed must be a whole number, from 0 to 4294967295"),
    "val size": (["--val_size", "-1"], "--val_size must be a whole number, at least 0"),
    "large val size": (
        [*SYNTHETIC, "--val_size", "5000"],
        "--val_size 5000 leaves too few of 5000 images for 10 classes; give",
    ),
    "smoothing": (["--label_smoothing", "2"], "--label_smoothing must be from 0 to be"),
    "decay": (["--weight_decay", "-0.1"], "--weight_decay must be a finite number"),
    "cutout": (["--cutout", "33"], "--cutout must be a whole number, from 0 to 32"),
    "limit": (
        ["--limit_train_batches", "1.5"],
        "--limit_train_batches must be a whole",
    ),
    "small share": (
        [*SYNTHETIC, "--limit_test_batches", "0.1"],
        "--limit_test_batches 0.1 of 4 batches is less than one; give at least 0.25",
    ),
    "no batches": (["--limit_train_batches", "0"], "--limit_train_batches must be"),
    "no config": (["--config", "nosuch.yaml"], "nosuch.yaml: no such file; give"),
    "name": (["--name", "a/b"], "--name 'a/b' is not the name of a folder"),
    "name up": (["--name", ".."], "--name '..' is not the name of a folder"),
    "both": (["--overwrite", "--ckpt_path", "last"], "contradict each other"),
    "no data": ([], "CIFAR-10 is not there and cannot be downloaded"),
    "no checkpoint": (["--ckpt_path", "nosuch.ckpt"], "nosuch.ckpt: no such file"),
    "checkpoint elsewhere": (
        ["--ckpt_path", "http://a/b.ckpt"],
        "b.ckpt: no such file",
    ),
    "no address": (
        ["--download_url", "ftp://a/b"],
        "--download_url 'ftp://a/b' is not",
    ),
    "minus steps": (
        ["--ckpt_every_n_steps", "-1"],
        "--ckpt_every_n_steps must be a whole number, at least 0",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, error = command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert error.count("\n") == 1, error
    assert error.startswith("train.py: error: ")
    assert message in error
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = command(monkeypatch, capsys, "--accelerator", "gpu")
    assert code == 2
    assert error.count("\n") == 1
    assert "--accelerator gpu" in error
    assert "--accelerator cpu" in error


def truncated(path: Path) -> None:
    torch.save({"state_dict": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[:4000])


def foreign(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path)


def not_a_dict(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint([1, 2], path)  # type: ignore[arg-type]


def text(path: Path) -> None:
    path.write_text("hello")


def empty(path: Path) -> None:
    path.touch()


def hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def hostile_within(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"config": Payload()}, path)


@pytest.mark.parametrize(
    "make", [truncated, foreign, not_a_dict, text, empty, hostile, hostile_within]
)
def test_unusable_checkpoint(
    make: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(Path("bad.ckpt"))
    arguments = [*SYNTHETIC, "--ckpt_path", "bad.ckpt"]
    code, _, error = command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert error.count("\n") == 1, error
    assert re.search("--ckpt_path bad.ckpt: (damaged|not a checkpoint)", error)
    assert not Path("payload-ran").exists()
    assert not Path("runs").exists()


def test_the_hostile_pickle_is_a_real_one() -> None:
    hostile(Path("bad.ckpt"))
    pickle.loads(Path("bad.ckpt").read_bytes())
    assert Path("payload-ran").exists()


@pytest.mark.parametrize("output_dir", ["a-file", "a-file/below"])
def test_unwritable_output_folder(
    output_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("a-file").touch()
    arguments = [*SYNTHETIC, "--output_dir", output_dir]
    code, _, error = command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert error.count("\n") == 1, error
    assert f"--output_dir {Path(output_dir)}: cannot be written" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "batch_sise: 3",
            "--config: unknown flag batch_sise; did you mean batch_size?",
        ),
        ("batch_size: many", "--batch_size must be a whole number"),
        ("lr: .nan", "--lr must be a finite number above 0, or auto, got nan"),
        ("[1, 2]", "config"),
        ("a: [", "config"),
    ],
)
def test_wrong_configuration(
    content: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("my.yaml").write_text(content)
    code, _, error = command(monkeypatch, capsys, "--config", "my.yaml")
    assert code == 2
    assert error.count("\n") == 1, error
    assert message in error


def test_a_null_is_a_value_of_no_flag_but_of_those_that_take_it() -> None:
    def sample(size: int = 3, path: str | None = "a") -> None:
        """Do nothing."""

    Path("my.yaml").write_text("path: null\n")
    assert cli.parse(sample, ["--config", "my.yaml"]) == {"size": 3, "path": None}
    Path("my.yaml").write_text("size: null\n")
    with pytest.raises(InputError, match="--size must be a whole number, got null"):
        cli.parse(sample, ["--config", "my.yaml"])


@pytest.mark.parametrize("name", ["#1", "20240101", "007", "1e3", "yes", "&a", "Übung"])
def test_a_name_is_text_whatever_it_looks_like(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.parse(Config, ["--name", name])["name"] == name
    assert cli.parse(Config, [f"--name={name}", "--devices", "2"])["devices"] == 2
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--name", name, "--print_config"])
    Path("printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert cli.parse(Config, ["--config", "printed.yaml"])["name"] == name


def test_a_name_in_a_configuration_needs_no_quotes() -> None:
    content = "name: 20240101 # für heute\nlr: 1e-3\ndevices: 2\ndata_dir: 2024-01-01\n"
    for start in ("", "\ufeff"):  # as editors on Windows put first
        Path("my.yaml").write_text(start + content, encoding="utf-8")
        flags = cli.parse(Config, ["--config", "my.yaml"])
        assert (flags["name"], flags["data_dir"]) == ("20240101", "2024-01-01")
        assert (flags["lr"], flags["devices"]) == (0.001, 2)
    for empty in ("name:", "name: null", "name: ~"):
        Path("my.yaml").write_text(f"seed: 1\n{empty}\n")
        assert cli.parse(Config, ["--config", "my.yaml"])["name"] is None
    Path("my.yaml").write_bytes("name: Übung".encode("latin-1"))
    with pytest.raises(InputError, match="utf-8"):
        cli.parse(Config, ["--config", "my.yaml"])


def test_paths_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Path("mine.yaml").write_text("data_dir: ~/images\n")
    flags = cli.parse(Config, ["--config=~/mine.yaml", "--output_dir=~/runs"])
    assert flags["data_dir"] == str(tmp_path / "images")
    assert flags["output_dir"] == str(tmp_path / "runs")


def test_flags_may_stand_bare_and_overrule_the_configuration() -> None:
    Path("my.yaml").write_text("batch_size: 64\nlr: 0.5\n")
    flags = cli.parse(
        Config,
        ["--config", "my.yaml", "--lr", "0.25", "--fast_dev_run", "--compile"],
    )
    assert (flags["batch_size"], flags["lr"]) == (64, 0.25)
    assert flags["fast_dev_run"] is True
    assert flags["compile"] is True
    assert flags["overwrite"] is False
    assert cli.parse(Config, ["--fast_dev_run", "3"])["fast_dev_run"] == 3
    assert cli.parse(Config, ["--report=false", "--lr", "auto"])["report"] is False
    assert cli.parse(Config, ["--devices", "0,1"])["devices"] == "0,1"


def test_the_command_to_go_on_with_contradicts_no_file() -> None:
    Path("own.yaml").write_text("overwrite: true\nname: a\n")
    typed = ["train.py", "--config", "own.yaml", "--overwrite", "--seed=3"]
    python, script, *flags = shlex.split(cli.resume_command(typed, "a"))
    assert (python, script) == ("python", "train.py")
    config = Config(**cli.parse(Config, flags))
    assert (config.overwrite, config.ckpt_path, config.seed) == (False, "last", 3)


def test_the_command_to_go_on_with_does_not_begin_anew() -> None:
    typed = ["train.py", "--overwrite", "--ckpt_path", "old.ckpt", "--seed=3"]
    _, _, *flags = shlex.split(cli.resume_command(typed, "a"))
    config = Config(**cli.parse(Config, flags))
    assert (config.overwrite, config.ckpt_path, config.seed) == (False, "last", 3)


def test_help_explains_every_flag_with_its_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(Config, ["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    sections = re.findall("^([a-z ]+):$", printed, re.M)
    assert sections == [
        *("options", "hardware", "training", "learning rate", "images"),
        *("augmentation", "results", "run folder", "resume", "quick tries"),
    ]
    help_text = " ".join(printed.split())
    for flag in cli.parse(Config, []):
        assert f"--{flag}" in help_text
    assert help_text.count("default: ") == len(cli.parse(Config, []))
    assert "Maximum learning rate of the one cycle" in help_text
    assert help_text.count("torch-lr-finder") == 1  # choices, once
    for of_python in ("Literal", "Union", "int", "str", "bool", "None"):
        assert not re.search(rf"\b{of_python}\b", help_text)


PROGRAMS = {
    path.stem: path.parent.name
    for path in (*PROJECT.glob("*.py"), *PROJECT.glob("benchmarks/*.py"))
    if "cli.run(" in path.read_text(encoding="utf-8")
}

DATACLASSES = {"train": Config, "sweep": Sweep}  # whose flags are not of a function


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_help_in_words_with_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = "benchmarks." if PROGRAMS[name] == "benchmarks" else ""
    function = getattr(importlib.import_module(package + name), name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        cli.run(f"{name}.py", function, flags=DATACLASSES.get(name))
    assert not end.value.code
    options, examples = capsys.readouterr().out.split("\nexamples:\n")
    assert max(map(len, options.splitlines())) <= 80
    assert f"{name}.py" in examples
    assert not re.search("Literal|Union|NoneType|<class", options)


def test_a_missing_argument_is_named_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("predict").main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "predict.py: error: images missing; give at least one, as in: python "
        "predict.py cat.jpg photos/ --ckpt_path runs/NAME/checkpoints/last.ckpt\n"
    )


def test_printed_configuration_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--batch_size", "64", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config == cli.parse(Config, ["--batch_size", "64"])


def test_a_command_is_quoted_for_the_shells_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["tensorboard", "--logdir", "C:\\Users\\me and you\\runs"]
    assert as_typed(command) == "tensorboard --logdir 'C:\\Users\\me and you\\runs'"
    monkeypatch.setattr("common.text.os", SimpleNamespace(name="nt"))
    assert as_typed(command) == 'tensorboard --logdir "C:\\Users\\me and you\\runs"'


def test_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cli.set_up_messages()
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank, raising=False)
        logging.getLogger("images").warning("from %s", rank)
    assert caplog.messages == ["from 0"]


def test_in_a_pipe_there_are_plain_lines_from_plan_to_report(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, output, errors = command(
        monkeypatch,
        capsys,
        *QUICK,
        *("--data_dir", str(image_folder), "--batch_size", "32", "--max_epochs", "2"),
        *("--lr", "0.01", "--name", "run", "--precision", "32-true"),
    )
    assert (code, errors) == (0, "")
    assert not re.search(r"[^\n -~]", output)
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("device   ")
    assert lines[0].endswith(" threads, 32-true")
    assert lines[1:5] == [
        "images   own: 108 training, 12 validation, 30 test, 3 classes",
        "network  CustomResNet, 26,116 parameters",
        "plan     2 epochs of 3 steps, batches of 32",
        "max LR   0.01, as given",
    ]
    header, first, second = (line.split() for line in lines[5:8])
    names = "epoch LR train loss train acc val loss val acc seconds"
    assert " ".join(header) == names
    assert [first[0], second[0]] == ["1/2", "2/2"]
    assert len({len(line) for line in lines[5:8]}) == 1
    metrics = json.loads(Path("runs/run/metrics.json").read_text())
    accuracy = f"{100 * metrics['val/acc']:.2f}"
    assert second[2] == f"{metrics['train/loss']:.4f}"
    assert second[6:8] == [accuracy, "%"]
    for name in ("train accuracy", "val accuracy", "test accuracy", "images/s"):
        assert output.count(name) == 1
    assert f"val accuracy     {accuracy} %" in lines
    assert lines[-3:] == [
        f"report           {Path('runs/run/report.html')}",
        "TensorBoard      tensorboard --logdir runs",
        f"run folder       {Path('runs/run')}",
    ]


def test_layers_are_shown_where_they_are_asked_for(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data_dir", str(image_folder), "--fast_dev_run", "--show_layers"]
    arguments += ["--batch_size", "32"]
    code, output, _ = command(monkeypatch, capsys, *QUICK, *arguments)
    assert code == 0
    assert output.count("Conv2d-1 ") == 1
    assert output.index("Linear-29") < output.index("device   ")


def test_divergence_is_one_line_and_exit_code_3(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, error = command(
        monkeypatch,
        capsys,
        *QUICK,
        *("--data_dir", str(image_folder), "--batch_size", "32", "--max_epochs", "40"),
        *("--lr", "1e30", "--precision", "32-true"),
    )
    assert code == 3
    assert "train.py: error: the loss or a weight was not finite at step" in error
    assert "Traceback" not in error


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_script_runs(image_folder: Path) -> None:
    done = run_script(
        *QUICK,
        *("--data_dir", str(image_folder), "--batch_size", "32", "--fast_dev_run"),
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    lines = done.stdout.splitlines()
    meaning = "nothing is written, the figures mean nothing"
    assert lines[0] == f"fast_dev_run: a trial of 1 batch; {meaning}"
    assert lines[-1] == f"fast_dev_run: every stage works; {meaning}"
    assert "Traceback" not in done.stderr
    assert "arning" not in done.stderr
    assert not Path("runs").exists()


def test_script_refuses() -> None:
    done = run_script("--lr", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "train.py: error: --lr must be a finite number above 0, or auto, got 0.0\n"
    )
