"""The pages: every command in them runs, in reduced form, or says why it does not."""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed.run import get_args_parser

import train
from analysis.report import lr_schedule
from benchmarks.pictures import pictures
from common import cli
from config import Config
from export import needed_packages
from lightning_module import LitCustomResNet
from run_files import LAST

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("analysis", "common", "images", "machine", "training")
FILES = {path.name: path for path in sorted((PROJECT / "docs").rglob("*.md"))}
FILES |= {name: PROJECT / name for name in ("README.md", "CONTRIBUTING.md")}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}

# What is added to each script's flags so that it takes a second, without a GPU.
QUICK = {
    "train.py": "--accelerator cpu --devices 1 --num_nodes 1 --strategy auto "
    "--precision 32-true --base_width 4 --batch_size 32 --max_epochs 2 --lr 0.01 "
    "--limit_train_batches 3",
    "sweep.py": "--accelerator cpu --precision 32-true --base_width 4 --batch_size 32 "
    "--max_epochs 1 --limit_train_batches 3 --val_size 12 --trials 1",
}
# Pages on which a command needs what one before it has left; others get a dry run.
KEEP_RUNS = ("README.md", "own_images.md", "exports.md")
# What is written otherwise in Python, to the same end, and for names in capitals.
SUBSTITUTIONS = {
    "batch_size=128, max_epochs=2)": "batch_size=128, max_epochs=2, base_width=4, "
    "limit_train_batches=3, accelerator='cpu', precision='32-true', lr=0.01)",
    "runs/NAME": "runs/long",
    # A network of the width of the commands above it.
    "--init_from weights/cifar10.safetensors": "--init_from "
    "runs/mine/checkpoints/last.ckpt",
}
GIVEN = {"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}  # to all Python code
# What scripts need of requirements-extras.txt; without it they are left out.
EXTRAS = {"app.py": "gradio", "export.py": "onnxruntime", "report.py": "jinja2"}
EXTRAS |= {"sweep.py": "optuna", "exports.md": "onnxruntime"}
# What cannot be run here, and why; what it names must exist all the same.
NOT_RUN = {
    "pip": "downloads",
    "pre-commit": "changes the repository",
    "pytest": "is what runs this test",
    "tensorboard": "serves until it is stopped",
    "torchrun": "needs several hosts; see test_torchrun_on_two_hosts",
    "sbatch": "needs Slurm; see test_the_slurm_script_saves_requeues_and_goes_on",
    "scontrol": "needs Slurm",
}
STAND_INS = ("python", "srun", *NOT_RUN)

Done = tuple[int, str, str]  # exit code, stdout, stderr


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str


def blocks(page: str) -> list[Block]:
    fenced = re.findall(r"^```(bash|sh|python)\n(.*?)^```$", page, re.DOTALL | re.M)
    return [Block(*found) for found in fenced]


def inline_commands(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.M)
    programs = "|".join(STAND_INS)
    return re.findall(rf"`((?:{programs}) [^`]+)`", prose)


def call(command: list[str], *extra: str) -> Done:
    """Do in this process, where torch is loaded, what a command would do."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            _call(command, extra)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def _call(command: list[str], extra: tuple[str, ...]) -> None:
    match command:
        case ["srun", *rest]:
            _call(rest, extra)
        case (
            ["python", "-m", "pytest", *_]
            | ["tensorboard", "--logdir", _]
            | ["pre-commit", "install"]
        ):
            pass
        case ["pip", "install", *rest]:
            missing = [name for name in rest if "." in name and not Path(name).exists()]
            assert not missing
        case ["sbatch", name]:
            assert f"Save this as `{name}`" in PAGES["several_machines.md"]
        case ["torchrun", *rest]:
            rest = ["0" if part == "N" else part for part in rest]
            launch = get_args_parser().parse_args(rest)
            assert Path(launch.training_script).exists()
            cli.parse(Config, launch.training_script_args)
        case ["python", "app.py", *flags] if find_spec(EXTRAS["app.py"]):
            serve(flags)
        case ["python", script, *flags] if script.startswith("benchmarks/"):
            parse_measurement(script, flags)
        case ["python", script, *flags]:
            if find_spec(EXTRAS.get(script, "torch")) is None:
                return
            dry = extra if script == "train.py" else ()
            sys.argv = [script, *flags, *QUICK.get(script, "").split(), *dry]
            runpy.run_path(script, run_name="__main__")
        case _:
            raise ValueError(f"no stand-in for {command}")


def parse_measurement(script: str, flags: list[str]) -> None:
    """Read the command line of a measurement, which would take too long."""
    module = runpy.run_path(script)
    main = module[Path(script).stem]
    if script == "benchmarks/compare.py" and not flags:
        return  # the report
    for values in cli.parse(main, flags).values():
        for value in values if isinstance(values, list) else ():
            assert not str(value).endswith(".yaml") or Path(value).exists(), value


def serve(flags: list[str]) -> None:
    """Start app.py, wait for its address, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "app.py", *flags, "--port", port],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert server.returncode == 130


def run_bash(code: str, do: Callable[[list[str]], Done]) -> tuple[int, list[list[str]]]:
    """Run a block in bash, where programs are stand-ins that hand over to `do`.

    Returns:
        Its exit code, and the commands that it called.
    """
    tools = Path("tools")
    commands: list[list[str]] = []
    with Listener(family="AF_UNIX") as listener:
        stand_in = f"""#!{sys.executable} -IS
import os, sys
from multiprocessing.connection import Client
with Client({listener.address!r}) as link:
    link.send([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    code, out, err = link.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
        tools.mkdir(exist_ok=True)
        for name in (*STAND_INS, "end"):
            (tools / name).write_text(stand_in)
            (tools / name).chmod(0o755)
        bash = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"trap end EXIT\n{code}"],
            env=os.environ | {"PATH": f"{tools.resolve()}:/usr/bin:/bin"},
            stdout=subprocess.DEVNULL,
        )
        while True:
            with listener.accept() as link:
                command = link.recv()
                done = (0, "", "") if command == ["end"] else do(command)
                link.send(done)
            if command == ["end"]:
                return bash.wait(), commands
            commands.append(command)


@pytest.fixture
def project(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of what commands name, with small images in the place of CIFAR-10."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    for path in (*PROJECT.glob("*.py"), *PROJECT.glob("*.txt")):
        shutil.copy(path, tmp_path)
    for name in ("README.md", "requirements.lock"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in ("benchmarks", *ROOMS, "configs", "docs"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.copytree(image_folder / "test", tmp_path / "photos")
    shutil.copy(image_folder / "test" / "red" / "0.png", tmp_path / "photo.jpg")
    return tmp_path


def reduced(code: str) -> str:
    for long, short in SUBSTITUTIONS.items():
        code = code.replace(long, short)
    return code


@pytest.mark.skipif(sys.platform == "win32", reason="bash and Unix sockets")
@pytest.mark.parametrize("page", [name for name, page in PAGES.items() if blocks(page)])
def test_every_block_of_a_page_runs(page: str, project: Path) -> None:
    if page in EXTRAS:
        pytest.importorskip(EXTRAS[page])
    extra = [] if page in KEEP_RUNS else ["--fast_dev_run"]
    for language, code in blocks(PAGES[page]):
        if language == "python":
            Path("block.py").write_text(reduced(code))
            with needed_packages("torch"):  # what it silences
                runpy.run_path("block.py", init_globals=GIVEN)
            continue
        exit_code, commands = run_bash(
            reduced(code), lambda command: call(command, *extra)
        )
        assert (exit_code, bool(commands)) == (0, True), code
    if page == "own_images.md":
        assert Path("runs/mine/metrics.json").exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_inline_command_of_a_page_runs(page: str, project: Path) -> None:
    shutil.copytree(project / "data", project / "my_images")
    if "runs/NAME" in "".join(inline_commands(PAGES[page])):
        assert call(["python", "train.py", "--name", "NAME"])[0] == 0
    for command in inline_commands(PAGES[page]):
        extra = ["--fast_dev_run"] if "train.py" in command else []
        code, _, err = call(shlex.split(command), *extra)
        assert code == 0, f"{command}: {err}"


def test_nothing_in_the_tables_of_this_test_is_left_over() -> None:
    everything = "\n".join(PAGES.values())
    for name in (*SUBSTITUTIONS, *QUICK, *NOT_RUN):
        assert name in everything, name
    assert len(inline_commands(PAGES["README.md"])) > 8


def test_every_link_between_pages_leads_somewhere() -> None:
    for name, page in PAGES.items():
        folder = FILES[name].parent
        for target, part in re.findall(r"\]\((?!http)([^)#]+)#?([^)]*)\)", page):
            assert (folder / target).exists(), f"{name}: {target}"
            if part:
                titles = re.findall(r"^#+ (.*)", PAGES[Path(target).name], re.M)
                assert part in [title.lower().replace(" ", "-") for title in titles]


def test_the_messages_about_images_are_as_shown(project: Path) -> None:
    shown = PAGES["own_images.md"]
    Path("draw.py").write_text(blocks(shown)[0].code)
    runpy.run_path("draw.py")
    flags = shlex.split("python train.py --data_dir my_images --fast_dev_run")
    messages = [call(flags, "--batch_size", "512")]
    torn = Path("my_images/train/sun/7.png")
    torn.write_text("no image")
    messages.append(call(flags))
    shutil.rmtree("my_images/test/sun")
    messages.append(call(flags))
    for code, _, err in messages:
        assert code == 2
        assert err.replace(f"{project}{os.sep}", "") in shown


def test_the_pictures_are_drawn_from_what_is_on_record(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    for path in (tmp_path / "pictures").iterdir():
        drawn, kept = path.read_text(), (PROJECT / "docs/pictures" / path.name)
        assert f"pictures/{path.name})" in "".join(PAGES.values())
        # Other versions of Matplotlib may draw otherwise, but not say something else.
        words = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
        assert words.findall(drawn) == words.findall(kept.read_text())


def test_the_schedule_is_as_described() -> None:
    lrs, betas = lr_schedule(0.5, steps=240)
    assert lrs[0] == pytest.approx(0.5 / 25)
    peak = lrs.index(max(lrs))
    assert peak == 5 / 24 * 240 - 1
    assert max(lrs) == pytest.approx(0.5)
    assert lrs[-1] < 1e-5
    assert (betas[0], betas[peak], betas[-1]) == pytest.approx((0.95, 0.85, 0.95))


def slurm_task(rank: int, port: int, argv: list[str], stop_at: int) -> None:
    """A process as Slurm starts it on one of two hosts; sleeps at a step."""
    os.environ |= {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "cifar10",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NNODES": "2",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURM_LOCALID": "0",
        "MASTER_PORT": str(port),
    }
    plain_step = LitCustomResNet.training_step

    def step(module: LitCustomResNet, *arguments: Any) -> Any:
        if module.global_step == stop_at:
            Path(f"task{rank}").touch()
            time.sleep(2)  # and is signalled
        return plain_step(module, *arguments)

    setattr(LitCustomResNet, "training_step", step)  # noqa: B010 - mypy refuses the plain form
    sys.argv = argv
    train.main()


@pytest.mark.slow
def test_the_slurm_script_saves_requeues_and_goes_on(
    project: Path, fork: Callable[..., Any]
) -> None:
    [script] = [c for _, c in blocks(PAGES["several_machines.md"]) if "#SBATCH" in c]
    flags = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script))
    assert (
        f"--devices {flags['ntasks-per-node']} --num_nodes {flags['nodes']} " in script
    )
    assert flags["signal"].startswith("TERM@")  # without B:, so to the tasks
    stop_at, codes = 14, []  # they ask at step 16, which is within an epoch

    def srun(command: list[str]) -> Done:
        if command[0] != "srun":
            return 0, "", ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [*command[2:], *QUICK["train.py"].split(), "--num_nodes", "2"]
        argv += ["--strategy", "ddp", "--batch_size", "8"]
        argv += ["--limit_train_batches", "12"]
        tasks = [
            fork(project, slurm_task, rank, port, argv, stop_at) for rank in (0, 1)
        ]
        if stop_at > 0:
            while not (Path("task0").exists() and Path("task1").exists()):
                time.sleep(0.01)
            for task in tasks:
                os.kill(task.pid, signal.SIGTERM)
        for task in tasks:
            task.join(120)
        codes.append([task.exitcode for task in tasks])
        return max(codes[-1]), "", ""

    script = f"export SLURM_JOB_ID=1\n{script}"
    code, commands = run_bash(script, srun)
    assert (code, codes) == (143, [[143, 0]])
    assert commands[1:] == [["scontrol", "requeue", "1"]]
    assert Path("runs/slurm/checkpoints/step.ckpt").exists()
    stop_at = -1
    code, commands = run_bash(script, srun)
    assert (code, codes[1]) == (0, [0, 0])
    assert len(commands) == 1
    saved = torch.load(
        Path("runs/slurm") / LAST.relative_to("runs/run"), weights_only=True
    )
    assert saved["global_step"] == 24
