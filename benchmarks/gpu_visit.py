"""Measure all that only a GPU can say, in one visit.

    python benchmarks/gpu_visit.py
    python benchmarks/gpu_visit.py all --minutes 9
    python benchmarks/gpu_visit.py all --dry_run

The first lists the stages of `visit_plan.py`, what each fills and which steps are not
on record yet. The second runs them, or those that are named. A step is a command; timed
ones run alone, of the others `--jobs` at a time. One that fails is said in one line and
recorded, and the others go on; the exit code is 1 then. What has succeeded on this
device is on record in `gpu_visit.csv` and not run again, so after an interruption the
same command goes on, also within a sweep. The dry run walks through all of it on a CPU,
with a narrow network and few images, and leaves the project's records alone.
"""

import contextlib
import hashlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pandas as pd
import yaml

from analysis.finished_run import read_run
from benchmarks.recipes import CONFIGS
from benchmarks.rows import RESULTS, add_row, markdown, read_rows, today
from benchmarks.runs import add_run
from benchmarks.visit_plan import DRY, REAL, SMALL, Step, plan
from common import cli
from common.errors import InputError, StoppedError
from common.files import expanded
from common.text import one_line
from config import Config
from machine import provenance
from machine.hardware import choose_hardware
from machine.provenance import PROJECT
from training.resume import read_checkpoint

RECORD = "gpu_visit.csv"
FIGURES = ("test/acc", "test/acc_tta", "fit_seconds", "images_per_second")
SAM = ("sam_radius", "sam_share")
STOPPED = 128 + signal.SIGTERM  # exit code of a program that was asked to stop
PATIENCE = 60  # seconds that it has to do so


def gpu_visit(
    stages: list[str],
    data_dir: str = "data",
    output: str | None = None,
    runs: str | None = None,
    airbench: str | None = None,
    jobs: int = 4,
    minutes: float | None = None,
    dry_run: bool = False,
) -> None:
    """Run stages of a visit, and put on record what they say.

    Args:
        stages: Their names, or all.
        data_dir: Folder of the images.
        output: Folder of the records; null for the project's own.
        runs: Folder of run folders, logs and recipes; null for runs/gpu_visit.
        airbench: Folder of a clone of KellerJordan/cifar10-airbench; null for none.
        jobs: Steps at a time that are not timed.
        minutes: When to stop, with what is left for the next call; null for never.
        dry_run: Try all of it on a CPU, with a narrow network and few images.

    Raises:
        InputError: A value is wrong, or there is no GPU.
    """
    known = [*plan(REAL)]
    names = known if stages == ["all"] else stages
    for name in names:
        if name not in known:
            raise InputError(f"{name} is no stage; give all or {', '.join(known)}")
    if jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    records, folder = RESULTS, PROJECT / "runs" / "gpu_visit"
    if dry_run:
        temporary = Path(tempfile.mkdtemp(prefix="gpu_visit_"))
        records, folder = temporary / "results", temporary / "runs"
    records = expanded(output or records).resolve()
    folder = expanded(runs or folder).resolve()
    if dry_run and records.is_relative_to(RESULTS):
        raise InputError(f"--output {output} is for visits; give another folder")
    visit = Visit(records, folder, jobs, minutes, dry_run)
    data = "--data synthetic" if dry_run else f"--data_dir {shown(expanded(data_dir))}"
    planned = plan(find_values(dry_run, data, records, folder, airbench))
    for name in names:
        if name == "rivals" and airbench is None:
            print("rivals: left out; it needs --airbench", flush=True)
        else:
            visit.run(name, planned[name].steps)
    print(f"records: {records}, logs: {folder / 'logs'}")
    if visit.failed:
        print(f"failed: {', '.join(visit.failed)}")
        sys.exit(1)


def find_values(
    dry_run: bool, data: str, records: Path, folder: Path, airbench: str | None
) -> dict[str, Any]:
    """What `plan` fills in; recipes that the project has not are written.

    Args:
        dry_run: Whether recipes are small ones for a CPU.
        data: Flags that say where the images are.
        records: Folder of the records.
        folder: That of runs, logs and recipes.
        airbench: That of airbench's scripts.
    """
    values = (DRY if dry_run else REAL) | {
        "data": data,
        "data_of_recipes": "" if dry_run else data,  # small ones say it themselves
        "records": shown(records),
        "runs": shown(folder),
        "airbench": shown(expanded(airbench or "airbench")),
    }
    small = SMALL | {"output_dir": str(folder)} if dry_run else {}
    recipes: dict[str, dict[str, Any]] = {
        name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("best", "seed")
    }
    recipes["lean"] = {
        flag: value for flag, value in recipes["best"].items() if flag not in SAM
    }
    recipes["default"] = {}
    for name, flags in recipes.items():
        path = CONFIGS / f"{name}.yaml"
        if small or not path.exists():
            path = folder / "recipes" / path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(flags | small), encoding="utf-8")
        values[name] = shown(path)
    return values


def shown(path: Path) -> str:
    """A path as seen from the project, where commands run, quoted as for a shell."""
    path = Path(os.path.abspath(path))  # links stay: it will be on record
    inside = path.is_relative_to(PROJECT)
    return shlex.quote(str(path.relative_to(PROJECT) if inside else path))


def show(output: str = str(RESULTS)) -> None:
    """List the stages, what each fills, and which steps are not on record yet.

    Args:
        output: Folder of the records.
    """
    print(listing(Path(output) / RECORD))


def listing(record: Path) -> str:
    """The stages, and what is not on record in a file yet."""
    done, lines = done_steps(record), []
    for name, (fills, steps) in plan(REAL).items():
        empty = [step.name for step in steps if (name, step.name) not in done]
        count = f"{len(steps) - len(empty)} of {len(steps)} steps on record"
        lines.append(f"{name}: {fills}: {count}")
        lines += [f"    empty: {', '.join(empty)}"] if empty else []
    return "\n".join(lines)


def done_steps(record: Path, device: str | None = None) -> dict[tuple[str, str], str]:
    """Stage and name of each step that has succeeded, with the weights that it left.

    Args:
        record: CSV file of the steps.
        device: Where; None for anywhere.
    """
    needed = ("stage", "step", "exit_code", "device", "weights")
    rows = read_rows(record, *needed, text=["weights"]).fillna({"weights": ""})
    rows = rows[rows["exit_code"] == 0]
    rows = rows if device is None else rows[rows["device"] == device]
    cells = rows[["stage", "step", "weights"]].to_numpy(dtype=str).tolist()
    return {(stage, step): weights for stage, step, weights in cells}


def table() -> str:
    """What the checks of a visit have found, in Markdown."""
    if not (RESULTS / RECORD).exists():
        return "Nothing is on record yet."
    rows = read_rows(RESULTS / RECORD, "stage", "step").astype("object").fillna("")
    rows = rows[rows["stage"] == "checks"]
    rows = rows.drop_duplicates(["step", "device"], keep="last")
    shown = {
        "check": rows["step"],
        "outcome": rows["said"].where(rows["exit_code"] != 0, "passed"),
        "test accuracy": rows["test/acc"].map(lambda share: share and f"{share:.2%}"),
        "training, s": rows["fit_seconds"].astype("str"),
        "weights": rows["weights"],
        "on": rows["device"],
    }
    return markdown(pd.DataFrame(shown))


class Visit:
    """Runs steps and records how they went.

    Attributes:
        failed: Those that did not succeed, as "stage/step".
    """

    def __init__(
        self, records: Path, runs: Path, jobs: int, minutes: float | None, dry_run: bool
    ) -> None:
        self.records, self.runs, self.jobs = records, runs, jobs
        # To compile takes a CPU minutes, and says nothing of a GPU.
        self.env = {"TORCHDYNAMO_DISABLE": "1"} if dry_run else {}
        self.end = time.time() + 60 * minutes if minutes is not None else float("inf")
        accelerator = "cpu" if dry_run else "gpu"
        hardware = choose_hardware(accelerator)
        self.circumstances = provenance.circumstances(hardware)
        self.failed: list[str] = []
        (runs / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, stage: str, steps: list[Step]) -> None:
        """Run the steps of a stage that are not on record."""
        for alone, some in itertools.groupby(steps, key=lambda step: step.alone):
            with ThreadPoolExecutor(1 if alone else self.jobs) as pool:
                try:
                    list(pool.map(lambda step: self.perform(stage, step), some))
                except StoppedError as stop:
                    self.end = 0.0  # what works is stopped, and what waits left
                    pool.shutdown()
                    message = f"stopped by {stop.name}; the same command goes on"
                    cli.end_together("gpu_visit.py", message, stop.exit_code)

    def perform(self, stage: str, step: Step) -> None:
        """Run a step if it is not on record, say how it went, and record it."""
        name = f"{stage}/{step.name}"
        if (stage, step.name) in self.done():
            print(f"{name}: on record already", flush=True)
            return
        if time.time() >= self.end:
            print(f"{name}: left for the next call", flush=True)
            return
        log, started = self.runs / "logs" / f"{stage}_{step.name}.log", time.time()
        found: dict[str, Any] = {"weights": ""}
        with log.open("wb") as file:
            code = self.carry_out(step, file.fileno())
        said = "" if code == 0 else last_line(log)
        seconds = round(time.time() - started, 1)
        if code == 0 and step.leaves_run:
            try:
                found = self.keep_run(stage, step)
            except InputError as error:
                code, said = 1, str(error)
        row = {"date": today(), "stage": stage, "step": step.name, "exit_code": code}
        row |= {"seconds": seconds, "said": said, **self.circumstances, **found}
        row["command"] = shlex.join(["python", *step.command])
        add_row(self.records / RECORD, row)
        if code == 0:
            print(f"{name}: done in {seconds} s", flush=True)
        elif time.time() >= self.end:
            print(f"{name}: out of time; the next call goes on", flush=True)
        else:
            self.failed.append(name)
            print(f"{name}: failed with exit code {code}: {said}", flush=True)

    def done(self) -> dict[tuple[str, str], str]:
        """What has succeeded on this device."""
        return done_steps(self.records / RECORD, self.circumstances["device"])

    def carry_out(self, step: Step, log: int) -> int:
        """Run the commands of a step, and return the exit code."""
        first, *others = commands(step)
        if not step.is_stopped:
            return self.call(first, step, log)
        saved = self.runs / step.name / "checkpoints" / "step.ckpt"
        saved.unlink(missing_ok=True)
        code = self.call(first, step, log, until=saved)
        if code != STOPPED or not saved.exists():
            os.write(log, b"not stopped within an epoch\n")
            return code or 1
        return self.call(others[0], step, log)

    def call(
        self, command: list[str], step: Step, log: int, until: Path | None = None
    ) -> int:
        """Run a command; send SIGTERM when a file is there, or time is up."""
        env = dict(self.env)
        if not step.alone:
            env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT,
            env=env | os.environ,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C is for the visit, which stops what works
        )
        try:
            while process.poll() is None:
                if time.time() >= self.end or (until is not None and until.exists()):
                    process.terminate()
                    process.wait(PATIENCE)
                time.sleep(0.01)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            with contextlib.suppress(OSError):
                process.terminate()
        return process.wait()

    def keep_run(self, stage: str, step: Step) -> dict[str, Any]:
        """What a training has left: some figures, and a checksum of its weights.

        Raises:
            InputError: It is not finished, or its weights are not what they should be.
        """
        folder = self.runs / step.name
        metrics = read_run(folder).metrics
        weights = checksum(folder / "checkpoints" / "last.ckpt")
        if step.same_as:
            theirs = self.done().get((stage, step.same_as), "none on record")
            if weights != theirs:
                raise InputError(f"weights {weights}; {step.same_as} has {theirs}")
        if step.recipe:
            given = Config(**cli.parse(Config, step.command[1:]))
            add_run(folder, step.recipe, given, self.records / "runs.csv")
        kept = {name: metrics.get(name) for name in (*FIGURES, "precision")}
        return kept | {"weights": weights}


def commands(step: Step) -> list[list[str]]:
    """The command lines of a step: one, or two where it is stopped and goes on."""
    if not step.leaves_run:
        return [step.command]
    first = [*step.command, "--overwrite", "true"]
    others = [[*step.command, "--ckpt_path", "last"]] if step.is_stopped else []
    return [first, *others]


def last_line(log: Path) -> str:
    """What a program said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((one_line(line) for line in reversed(lines) if line.strip()), "")


def checksum(checkpoint: Path) -> str:
    """The first digits of the SHA-256 of the weights in a checkpoint."""
    state, found = read_checkpoint(checkpoint)["state_dict"], hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    lists = not sys.argv[1:] or sys.argv[1].startswith("--output")
    cli.run("gpu_visit.py", show if lists else gpu_visit, outlasts_readers=True)
