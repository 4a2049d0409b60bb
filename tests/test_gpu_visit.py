"""The visit of a GPU: a valid plan, and steps that are run, recorded and compared."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import gpu_visit as gpu_visit_module
from benchmarks import measure as measuring
from benchmarks import pace as pace_module
from benchmarks import recipes
from benchmarks.choose import choose
from benchmarks.gpu_visit import (
    RECORD,
    Visit,
    checksum,
    commands,
    find_values,
    gpu_visit,
    listing,
    shown,
)
from benchmarks.measure import measure
from benchmarks.pace import pace
from benchmarks.paces import ForgetsFirstEpoch, Setting, own_flags, train_briefly
from benchmarks.recipes import read_recipe
from benchmarks.rows import RESULTS, add_row, read_rows
from benchmarks.runs import read_runs
from benchmarks.scale import scale
from benchmarks.studies import airbench as airbench_module
from benchmarks.studies.airbench import airbench
from benchmarks.visit_plan import REAL, Stage, Step, plan
from common import cli
from common.errors import DivergedError, InputError
from config import Config
from machine import provenance
from machine.provenance import PROJECT
from record import cells, held_out, runs_of, together, write_recipe, write_runs

PROGRAMS: dict[str, Callable[..., Any]] = {
    "train.py": Config,
    "benchmarks/measure.py": measure,
    "benchmarks/pace.py": pace,
    "benchmarks/scale.py": scale,
    "benchmarks/choose.py": choose,
    "benchmarks/studies/airbench.py": airbench,
}


# --- The plan. ---


@pytest.fixture(params=[False, True], ids=["visit", "dry run"])
def planned(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Stage]:
    """All stages, with a space in the name of each folder."""
    data = "--data synthetic" if request.param else "--data_dir 'my images'"
    folders = tmp_path / "of records", tmp_path / "of runs"
    return plan(find_values(request.param, data, *folders, None))


def lines(planned: dict[str, Stage]) -> Iterator[list[str]]:
    """All command lines."""
    for _, steps in planned.values():
        for step in steps:
            yield from commands(step)


def values(flags: list[str], name: str) -> list[str]:
    """What a command line gives to a flag."""
    return [flags[n + 1] for n, flag in enumerate(flags[:-1]) if flag == f"--{name}"]


def test_every_flag_that_is_typed_is_one_and_every_value_is_valid(
    planned: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)  # where the commands run
    count = 0
    for script, *flags in lines(planned):
        count += 1
        if script == "-m":
            assert flags[0] == "pytest"
            continue
        assert (PROJECT / script).is_file()
        found = cli.parse(PROGRAMS[script], flags, script)
        if script == "train.py":
            Config(**found)
        for flag, value in (found.get("train") or {}).items():  # of pace.py
            assert flag in own_flags(f"--{flag}={value}")
        if found.get("select"):
            own = {"data_dir": found["data_dir"]}
            every = measuring.plan(
                found["configs"], own, found["sweep"], steps=False, select=True
            )
            assert every
    assert count > 25


def test_no_two_steps_have_a_name_in_common(planned: dict[str, Stage]) -> None:
    for _, steps in planned.values():
        names = [step.name for step in steps]
        assert len({*names}) == len(names)


def test_nothing_is_chosen_on_the_test_set(planned: dict[str, Stage]) -> None:
    selected, chosen_from = set(), set()
    for script, *flags in lines(planned):
        if script == "benchmarks/measure.py":
            is_sweep = any(flag.startswith("--sweep.") for flag in flags)
            assert is_sweep == ("--select" in flags)
            if is_sweep:
                selected |= {*values(flags, "output")}
            else:
                [file] = values(flags, "output")
                assert Path(file).name == "runs.csv"
        if script == "benchmarks/choose.py":
            chosen_from |= {*values(flags, "runs")}
    assert chosen_from
    assert chosen_from <= selected
    assert "runs.csv" not in {Path(file).name for file in selected}


def test_the_lean_recipe_is_the_best_without_sharpness_aware_steps() -> None:
    folders = Path("records"), Path("runs")
    real = find_values(False, "--data synthetic", *folders, None)
    best, lean = (
        read_recipe(str(PROJECT / real[name]), {}, select=False)
        for name in ("best", "lean")
    )
    assert best.sam_radius > 0
    assert lean == replace(best, sam_radius=0.0, sam_share=Config().sam_share)


def test_what_is_timed_runs_alone(planned: dict[str, Stage]) -> None:
    for _, steps in planned.values():
        for step in steps:
            assert step.alone == (values(step.command, "timed") != ["false"])


def test_a_dry_run_writes_into_its_own_folders(tmp_path: Path) -> None:
    folders = tmp_path / "records", tmp_path / "runs"
    dry = plan(find_values(True, "--data synthetic", *folders, None))
    for script, *flags in lines(dry):
        for name in ("output", "profile", "output_dir", "runs", "recipe"):
            for path in values(flags, name):
                assert Path(path).is_relative_to(tmp_path)
        if script == "benchmarks/measure.py":
            configs = [flag for flag in flags if flag.endswith(".yaml")]
            assert configs
            for config in configs:
                if Path(config).is_relative_to(folders[1]):
                    small = read_recipe(config, {}, select=False)
                    assert Path(small.output_dir).is_relative_to(tmp_path)
                    assert (small.data, small.accelerator) == ("synthetic", "cpu")


def test_paths_on_record_are_as_seen_from_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_visit_module, "PROJECT", tmp_path)
    Path("elsewhere").mkdir()
    Path("my images").symlink_to("elsewhere")
    assert shown(Path("my images")) == "'my images'"
    assert shown(tmp_path.parent) == str(tmp_path.parent)


# --- The runner. ---


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path / "records", tmp_path / "runs", 2, None, True)


def python(name: str, code: str, **marks: Any) -> Step:
    return Step(name, ["-c", f"import os, sys, time\n{code}"], **marks)


def record() -> list[dict[Any, Any]]:
    return read_rows(Path("records") / RECORD).to_dict("records")


def test_a_step_that_fails_is_said_and_recorded_and_the_others_go_on(
    visit: Visit, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        python("bad", "print('much'); sys.exit('b.py: error: a reason')"),
        python("good", f"open({str(Path('ran').resolve())!r}, 'a').write('x')"),
    ]
    visit.run("stage", steps)
    assert visit.failed == ["stage/bad"]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "stage/bad: failed with exit code 1: b.py: error: a reason"
    assert second.startswith("stage/good: done in ")
    bad, good = record()
    assert (bad["step"], bad["exit_code"]) == ("bad", 1)
    assert bad["said"] == "b.py: error: a reason"
    assert (good["step"], good["exit_code"]) == ("good", 0)
    assert good["device"] == visit.circumstances["device"]
    assert good["command"].startswith("python -c ")
    assert Path("runs/logs/stage_bad.log").read_text().startswith("much\n")

    visit.run("stage", steps)  # goes on with what has not succeeded
    assert "stage/good: on record already\n" in capsys.readouterr().out
    assert [row["step"] for row in record()] == ["bad", "good", "bad"]
    assert Path("ran").read_text() == "x"


MEET = """
mine, other = sys.argv[1:]
open(mine, "w").close()
for _ in range(3000):
    if os.path.exists(other):
        sys.exit(0)
    time.sleep(0.01)
sys.exit(1)
"""
BOTH_ARE_OVER = """
import csv
rows = [*csv.DictReader(open(sys.argv[1]))]
sys.exit(0 if [row["exit_code"] for row in rows] == ["0", "0"] else 1)
"""


def test_untimed_steps_run_together_and_timed_ones_alone(visit: Visit) -> None:
    a, b = (str(Path(name).resolve()) for name in ("a", "b"))
    steps = [python(name, MEET, alone=False) for name in ("a", "b")]
    steps[0].command.extend([a, b])
    steps[1].command.extend([b, a])
    alone = python("alone", BOTH_ARE_OVER)
    alone.command.append(str(Path("records").resolve() / RECORD))
    visit.run("stage", [*steps, alone])
    assert visit.failed == []
    assert len(record()) == 3


def test_when_time_is_up_the_rest_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    visit = Visit(tmp_path / "records", tmp_path / "runs", 2, 0.01, True)
    visit.run("stage", [python("long", "time.sleep(60)"), python("next", "")])
    assert capsys.readouterr().out == (
        "stage/long: out of time; the next call goes on\n"
        "stage/next: left for the next call\n"
    )
    assert visit.failed == []
    [row] = record()
    assert row["exit_code"] != 0
    assert row["seconds"] < 30


def test_a_run_that_ends_before_it_is_stopped_has_failed(visit: Visit) -> None:
    visit.run("stage", [python("quick", "", is_stopped=True)])
    assert visit.failed == ["stage/quick"]
    assert record()[0]["said"] == "not stopped within an epoch"


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_that_should_be_the_same_are_compared(
    seed: int, visit: Visit, capsys: pytest.CaptureFixture[str], quick_train: Any
) -> None:
    for name, own in (("first", 0), ("again", seed)):
        quick_train(name=name, seed=own, max_epochs=1)
    Path("has_trained.py").touch()
    command = [str(Path("has_trained.py").resolve()), "--data", "synthetic"]
    steps = [
        Step("first", command, leaves_run=True, recipe="mine"),
        Step("again", command, leaves_run=True, same_as="first"),
    ]
    visit.run("stage", steps)
    assert visit.failed == ([] if seed == 0 else ["stage/again"])
    weights = [
        checksum(Path(f"runs/{n}/checkpoints/last.ckpt")) for n in ("first", "again")
    ]
    assert (weights[0] == weights[1]) == (seed == 0)
    if seed:
        said = f"weights {weights[1]}; first has {weights[0]}"
        assert said in capsys.readouterr().out
    first = record()[0]
    assert first["weights"] == weights[0]
    [run] = read_runs(Path("records/runs.csv")).to_dict("records")
    flags = ["recipe", "images", "lr", "val_size"]  # as given, not as settled
    assert [run[flag] for flag in flags] == ["mine", "shapes", "auto", "auto"]
    assert run["test/acc"] == first["test/acc"]


def test_the_list_shows_what_is_not_on_record() -> None:
    stages = plan(REAL)
    names = [step.name for step in stages["host"].steps]
    file = Path("records") / RECORD
    assert listing(file).count("    empty: ") == len(stages)
    for name, code in zip(names, (0, 2, 0, 0), strict=True):
        row = {"stage": "host", "step": name, "exit_code": code, "device": "H100"}
        add_row(file, row | {"weights": ""})
    shown = listing(file)
    assert f"beside it: 3 of 4 steps on record\n    empty: {names[1]}" in shown
    add_row(file, row | {"step": names[1], "weights": ""})
    assert listing(file).endswith("beside it: 4 of 4 steps on record")


def test_tables_show_what_a_visit_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu_visit_module, airbench_module, pace_module):
        monkeypatch.setattr(module, "RESULTS", Path())
    assert gpu_visit_module.table() == airbench_module.table()
    assert airbench_module.table() == "Nothing is on record yet."
    step = {"stage": "checks", "step": "nccl", "device": "H100"}
    for own in (
        {"exit_code": 1, "said": "no NCCL"},
        {"exit_code": 0, "test/acc": 0.925, "fit_seconds": 1.5, "weights": "a1"},
        {"step": "half", "exit_code": 3, "said": "it diverged"},
        {"stage": "pace", "exit_code": 0},
    ):
        add_row(Path(RECORD), step | own)
    assert cells(gpu_visit_module.table()) == [
        ["nccl", "passed", "92.50%", "1.5", "a1", "H100"],
        ["half", "it diverged", "", "", "", "H100"],
    ]
    rival = {"script": "a.py", "device": "H100", "test/acc_tta": 0.94}
    for seconds in (1.0, 2.0):
        own = {"test/acc": 0.9, "fit_seconds": seconds, "seconds": seconds + 1}
        add_row(Path("2026_airbench_cuda.csv"), rival | own)
    assert cells(airbench_module.table()) == [
        [
            *("a.py", "90.00 ± 0.00 % (90.00 to 90.00)"),
            *("94.00 ± 0.00 % (94.00 to 94.00)", "2"),
            *("1.50 (1.00-2.00)", "2.50 (2.00-3.00)", "H100"),
        ]
    ]
    kept = {"device": "cuda: H100", "precision": "bf16-mixed", "batch_size": 512}
    kept |= {"compile": False, "repeats": 5, "trainer images/s": "9 (9-9)"}
    kept |= {"loop images/s": "9 (8-9)", "trainer/loop": "1.00 (1.00-1.12)"}
    add_row(Path("2026_throughput_cuda.csv"), kept)
    own = {"flags": "--compile=default", "on_host": True}
    add_row(Path("2026_throughput_cuda.csv"), kept | own)
    first, second = cells(pace_module.table())
    assert first[2:5] == ["no", "", "9 (9-9)"]
    assert second[3] == "--compile=default images on the host"
    assert second[6:9] == ["", "", "1.00 (1.00-1.12)"]


def test_without_a_stage_it_lists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_visit.py", "--output", "none"])
    runpy.run_path(str(PROJECT / "benchmarks/gpu_visit.py"), run_name="__main__")
    assert capsys.readouterr().out == listing(Path("none") / RECORD) + "\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"stages": ["nothing"]},
            "nothing is no stage; give all or checks, lean, ",
        ),
        ({"stages": ["all"], "jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"stages": ["pace"], "output": str(RESULTS)}, "is for visits; give another"),
    ],
)
def test_bad_input(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gpu_visit(**flags, dry_run=True)


@pytest.mark.weekly  # walks through everything
def test_a_dry_run_does_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "airbench"
    (folder / "legacy").mkdir(parents=True)
    for name in ("legacy/airbench94.py", "airbench94_muon.py"):
        (folder / name).write_text(RIVAL)
    command = [sys.executable, str(PROJECT / "benchmarks/gpu_visit.py"), "all"]
    flags = ["--dry_run", "--output", "records", "--runs", "runs", "--jobs", "2"]
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    done = subprocess.run(
        [*command, *flags, "--airbench", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    planned = plan(REAL)
    steps = {(row["stage"], row["exit_code"]) for row in record()}
    assert steps == {(name, 0) for name in planned}
    weights = {row["step"]: row["weights"] for row in record()}
    assert weights["deterministic"] == weights["again"] == weights["stopped"]
    names = {row["recipe"] for _, row in read_runs(Path("records/runs.csv")).iterrows()}
    assert names == {"best", "seed", "default", "fast_16", "lean", "long"}
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before
    again = subprocess.run(
        [*command, *flags, "--airbench", str(folder)], capture_output=True, text=True
    )
    assert again.stdout.count("on record already") == len(record())


# --- What it runs. ---


def test_the_most_accurate_recipe_is_chosen_of_those_with_most_seeds() -> None:
    base = write_recipe("base", lr=0.01, max_epochs=24, base_width=64, batch_size=512)
    given: dict[str, Any] = {"recipe": base, "runs": "sweep.csv"}
    given["output"] = "out/new.yaml"
    runs = together(
        held_out("base", [0.93, 0.94], lr="0.02", max_epochs="12"),
        held_out("base", [0.95, 0.95], lr="0.03", max_epochs="18", cutout="4"),
        held_out("base", [0.94, 0.95], lr="0.03", max_epochs="18"),
        held_out("base", [0.96], lr="0.04", max_epochs="12"),  # one seed
        held_out("other", [0.99, 0.99], max_epochs="12"),
    )
    write_runs(Path("sweep.csv"), runs)
    old = yaml.safe_load(Path(base).read_text())
    reached: tuple[tuple[float | None, dict[str, Any]], ...] = (
        (None, {"lr": 0.03, "max_epochs": 18, "cutout": 4}),
        (0.935, {"lr": 0.02, "max_epochs": 12}),
        (0.94, {"lr": 0.03, "max_epochs": 18, "cutout": 4}),
    )
    for reach, changed in reached:
        choose(**given, reach=reach)
        assert yaml.safe_load(Path("out/new.yaml").read_text()) == old | changed
    head, *_ = Path("out/new.yaml").read_text().splitlines()
    assert head == (
        "# Chosen from sweep.csv: 95.00 ± 0.00 % (95.00 to 95.00) of the held-out "
        "images, n = 2, of 4 recipes on CPU."
    )
    with pytest.raises(
        InputError, match=r"0\.99: none of 3 recipes does; the best has"
    ):
        choose(**given, reach=0.99)
    with pytest.raises(InputError, match="no runs of 'base' to choose from"):
        choose(**given, batch_size=128)
    write_runs(Path("sweep.csv"), runs_of("base", [0.9]))
    with pytest.raises(InputError, match="nothing is chosen on the test set"):
        choose(**given)


def test_recipes_are_chosen_by_the_same_images_and_on_one_device() -> None:
    base = write_recipe("base", lr=0.01)
    given: dict[str, Any] = {"recipe": base, "output": "new.yaml"}
    # Seed 1 holds out hard images: ahead on what both have seen is the lower mean.
    first = held_out("base", [0.95, 0.91, 0.94], lr="0.02").drop(index=2)
    other = held_out("base", [0.94, 0.90, 0.94], lr="0.03").drop(index=1)
    write_runs(Path("seeds.csv"), together(first, other))
    choose(**given, runs="seeds.csv")
    assert yaml.safe_load(Path("new.yaml").read_text())["lr"] == 0.02
    write_runs(Path("apart.csv"), together(first.drop(index=0), other.drop(index=0)))
    with pytest.raises(InputError, match="the recipes share no seed"):
        choose(**given, runs="apart.csv")
    elsewhere = held_out("base", [0.99], device="GPU")
    write_runs(Path("two.csv"), together(first, elsewhere))
    with pytest.raises(InputError, match=r"several devices \(CPU, 32-true; GPU, 32-"):
        choose(**given, runs="two.csv")
    easier = held_out("base", [0.99], images="shapes")
    write_runs(Path("easy.csv"), together(first, easier))
    with pytest.raises(InputError, match=r"several sets \(cifar10; shapes\)"):
        choose(**given, runs="easy.csv")


def test_only_the_best_go_on_with_further_seeds(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, Any]] = []

    def fake_train(config: Config, _: Any) -> dict[str, Any]:
        trained.append(asdict(config))
        if config.lr == 0.5:
            raise DivergedError("the loss was not finite")
        accuracy = {0.01: 0.5, 0.02: 0.7, 0.03: 0.6}[float(config.lr)]
        metrics = {"val/acc": accuracy, "fit_seconds": 1.0, "seed": config.seed}
        place = Path(config.output_dir) / str(config.name)
        place.mkdir(parents=True)
        content = metrics | {"max_lr": config.lr} | recipes.place(config)
        (place / "metrics.json").write_text(json.dumps(content))
        return metrics

    monkeypatch.setattr(recipes, "quietly_train", fake_train)
    monkeypatch.setattr(provenance, "commit", lambda: "same")
    given: dict[str, Any] = {"configs": [write_recipe("a")], "output": "a.csv"}
    given |= {"sweep": {"lr": [0.5, 0.01, 0.02, 0.03]}, "data_dir": str(image_folder)}
    with pytest.raises(DivergedError, match=r"for they diverged: a_seed0_lr0.5$"):
        measure(**given, seeds=3, select=True, best=2)
    assert [(one["lr"], one["seed"]) for one in trained] == [
        *((0.5, 0), (0.01, 0), (0.02, 0), (0.03, 0)),
        *((0.02, 1), (0.03, 1), (0.02, 2), (0.03, 2)),
    ]
    with pytest.raises(DivergedError):  # it alone is not on record
        measure(**given, seeds=3, select=True, best=2)
    assert [(one["lr"], one["seed"]) for one in trained[8:]] == [(0.5, 0)]
    with pytest.raises(InputError, match="--best must be at least 1, and is for --sel"):
        measure(**given, best=2)


RIVAL = """
import torch
def print_training_details(variables, is_final_entry):
    raise AssertionError
def main(run):
    kept = torch.load("cifar10/train.pt")
    assert kept["images"].dtype == torch.uint8
    assert kept["images"].shape[1:] == (32, 32, 3)
    assert len(torch.load("cifar10/test.pt")["labels"]) < len(kept["labels"])
    total_time_seconds = 10.0 if run == "warmup" else 0.25
    for epoch in range(3):
        total_time_seconds += 1.0
        val_acc = 0.25 * (epoch + 1)
        print_training_details(locals(), is_final_entry=False)
    total_time_seconds += 0.5
    print_training_details(locals(), is_final_entry=True)
    return 0.8
"""


def test_a_rival_is_measured_by_both_clocks(image_folder: Path) -> None:
    Path("rival.py").write_text(RIVAL)
    given: dict[str, Any] = {"data_dir": str(image_folder), "accelerator": "cpu"}
    airbench(["rival.py"], "out/airbench.csv", repeats=2, **given)
    rows = read_rows(Path("out/airbench.csv"))
    assert rows["run"].tolist() == [0, 1]
    measured = ["epochs", "test/acc", "test/acc_tta", "fit_seconds", "seconds"]
    assert rows[measured].to_numpy().tolist() == 2 * [[3, 0.75, 0.8, 3.25, 3.75]]
    assert set(rows["precision"]) == {"16-true"}
    with pytest.raises(InputError, match=r"none\.py: no such file; give a script"):
        airbench(["none.py"], "out/airbench.csv", **given)


def test_the_trainer_of_a_pace_has_flags_of_its_own_and_a_warm_up(
    tmp_path: Path,
) -> None:
    flags = "--label_smoothing=0.1 --ema_decay=0.9"
    assert own_flags(flags) == {"label_smoothing": 0.1, "ema_decay": 0.9}
    setting = Setting("cpu", "32-true", 16, 2, 4, False, True, flags, True)
    clock = train_briefly(setting, tmp_path, ForgetsFirstEpoch(), epochs=2)
    assert clock.images == 2 * 16  # of the second epoch
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert saved["config"]["label_smoothing"] == 0.1
    assert saved["config"]["max_epochs"] == 2


def test_a_wrong_flag_of_the_trainer_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="--cutout must be a whole number, got 'wide'"):
        pace(train={"cutout": "wide"})
