"""Sweeps: what is searched, judged, pruned, shared and left behind."""

import csv
import errno
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from analysis.trials import show_trials
from common.errors import DivergedError, InputError
from config import Config
from train import train_with

optuna = pytest.importorskip("optuna")
sweep = importlib.import_module("sweep")  # needs optuna

QUICK = (
    *("--accelerator", "cpu", "--precision", "32-true", "--base_width", "2"),
    *("--batch_size", "32", "--max_epochs", "1", "--limit_train_batches", "1"),
)
NAME = ("--name", "s")
FOLDER = Path("runs/s")
Run = Callable[..., None]


@pytest.fixture
def run(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line."""

    def call(*arguments: str) -> None:
        flags = (*QUICK, "--data_dir", str(image_folder), *NAME, *arguments)
        monkeypatch.setattr(sys, "argv", ["sweep.py", *flags])
        sweep.main()

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which a command line ends."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(*arguments)
        lines = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        return lines[-1].removeprefix("sweep.py: error: ")

    return call


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Trials that take no time: a given lr is the accuracy, and each is kept."""
    seen: list[Config] = []

    def train(config: Config, callbacks: Any) -> dict[str, Any]:
        seen.append(config)
        return {"val/acc": 0.5 if config.lr == "auto" else config.lr}

    monkeypatch.setattr(sweep, "train_with", train)
    return seen


def study() -> Any:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{FOLDER / 'study.db'}")


def states() -> list[str]:
    return [trial.state.name for trial in study().trials]


def table() -> list[dict[str, str]]:
    with (FOLDER / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_trains_judges_and_says_what_was_best(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = []

    def train(config: Config, callbacks: Any) -> dict[str, Any]:
        configs.append(config)
        metrics = train_with(config, callbacks)
        assert metrics["test/acc"] is None
        return metrics

    monkeypatch.setattr(sweep, "train_with", train)
    run("--lr", "0.001:0.1:log", "--flip=none,random", "--trials", "2")
    assert states() == ["COMPLETE"] * 2
    for trial, config in zip(study().trials, configs, strict=True):
        assert trial.params == {"lr": config.lr, "flip": config.flip}
        assert (config.limit_test_batches, config.report) == (0, False)
        folder = FOLDER / f"trial_{trial.number:04}"
        assert (folder / "metrics.csv").exists()
        assert not (folder / "checkpoints").exists()
    best = study().best_trial
    recipe = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert {flag: recipe[flag] for flag in best.params} == best.params
    assert (recipe["limit_test_batches"], recipe["base_width"]) == (1.0, 2)
    out = capsys.readouterr().out
    line = f"best: trial {best.number}, val/acc {best.value:.4f}; train.py --config"
    assert line in out
    rows = table()
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert rows[0]["val/acc"] == f"{best.value:.4f}"
    for name in ("history", "parallel"):
        assert (FOLDER / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_the_best_first_by_the_last_accuracy_of_each() -> None:
    done = optuna.create_study(direction="maximize")
    rates = {"lr": optuna.distributions.FloatDistribution(0, 1)}
    for lr, accuracies in ((0.012346, (0.2, 0.9, 0.5)), (0.1, (0.6, 0.7, 0.8))):
        trial = optuna.trial.create_trial(
            params={"lr": lr},
            distributions=rates,
            value=accuracies[-1],
            intermediate_values=dict(enumerate(accuracies)),
        )
        done.add_trial(trial)
    show_trials(done, Path())
    with Path("trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["val/acc"], row["lr"]) for row in rows] == [
        ("1", "0.8000", "0.1"),
        ("0", "0.5000", "0.01235"),
    ]
    drawn = sorted(path.stem for path in Path().glob("*.png"))
    assert drawn == ["history", "parallel"]  # two trials tell no importance


def test_values_have_the_type_of_their_flag(run: Run, pretended: list[Config]) -> None:
    run(
        *("--lr", "0.001:0.01", "--cutout", "2:4", "--weight_decay=0.1,0.3"),
        *("--batch_size", "16,32", "--net", "custom_resnet,custom_resnet"),
        *("--limit_train_batches", "1,0.5", "--deterministic", "true,false"),
        *("--trials", "12"),
    )
    assert len(pretended) == 12
    for config in pretended:
        assert 0.001 <= config.lr <= 0.01  # type: ignore[operator]
        assert type(config.cutout) is int
        assert config.weight_decay in (0.1, 0.3)
        assert config.batch_size in (16, 32)
        assert config.limit_train_batches in (1, 0.5)
        assert config.deterministic in (True, False)
        assert config.cutout in (2, 3, 4)
    drawn_from = study().trials[0].distributions
    assert drawn_from["cutout"] == optuna.distributions.IntDistribution(2, 4)
    assert len({config.lr for config in pretended}) == 12
    for name in ("history", "parallel", "importance"):
        assert (FOLDER / f"{name}.png").exists()
    assert max(pretended, key=lambda config: config.lr).lr == study().best_value


def test_what_is_worse_than_the_median_is_pruned(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the sixth trial on, and not in the first quarter of the epochs."""
    accuracies = iter([0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.95])

    def train(config: Config, callbacks: Any) -> dict[str, Any]:
        accuracy = next(accuracies)
        [pruning] = callbacks
        for epoch in range(8):
            trainer = type("Trainer", (), {})()
            value = type("Value", (), {"item": lambda _: accuracy})()
            trainer.callback_metrics, trainer.current_epoch = {"val/acc": value}, epoch
            pruning.on_validation_end(trainer)
        return {"val/acc": accuracy}

    monkeypatch.setattr(sweep, "train_with", train)
    run("--lr", "0.001:0.01", "--max_epochs", "8", "--trials", "7")
    assert states() == ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE"]
    assert [*study().trials[5].intermediate_values] == [0, 1, 2]
    pruned = table()[-1]
    assert (pruned["state"], pruned["val/acc"], pruned["epochs"]) == (
        *("pruned", "0.1000"),
        "3",
    )


def test_a_pruned_training_ends_and_the_sweep_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([True, False])
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda _: next(asked))
    run("--lr", "0.001:0.01", "--trials", "2")
    assert states() == ["PRUNED", "COMPLETE"]


def test_a_failed_trial_loses_only_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter(
        [DivergedError("not\nfinite"), 0.5, InputError("no"), MemoryError(), 0.6]
    )

    def train(config: Config, callbacks: Any) -> dict[str, Any]:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return {"val/acc": outcome}

    monkeypatch.setattr(sweep, "train_with", train)
    run("--lr", "0.001:0.01", "--trials", "5")
    assert states() == ["FAIL", "COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert study().best_value == 0.6
    [first] = [row for row in table() if row["trial"] == "0"]
    assert (first["state"], first["error"]) == ("fail", r"not\nfinite")


def test_when_nothing_works_the_sweep_ends(
    run: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--lr", "0.001:0.01", "--data_dir", "nosuch")
    assert "/nosuch: no such folder" in refused(*flags)
    assert states() == ["FAIL"] * 3

    def broken(config: Config, callbacks: Any) -> dict[str, Any]:
        raise ZeroDivisionError  # an error of the program hides nowhere

    monkeypatch.setattr(sweep, "train_with", broken)
    with pytest.raises(ZeroDivisionError):
        run("--lr", "0.001:0.01", "--trials", "9")


def test_it_goes_on_up_to_the_number_of_trials(
    run: Run, pretended: list[Config], refused: Callable[..., str]
) -> None:
    flags = ("--lr", "0.001:0.01")
    run(*flags, "--trials", "2")
    run(*flags, "--trials", "3")
    run(*flags, "--trials", "3")
    assert len(pretended) == len(states()) == 3
    assert refused("--lr", "0.001:0.02").startswith("--lr is FloatDistribution(")
    assert "--cutout is 4, but the sweep was begun with 8; give the old value, or" in (
        refused(*flags, "--cutout", "4")
    )


@pytest.mark.usefixtures("pretended")
def test_a_full_disk_uses_up_no_trial(
    run: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: Config, callbacks: Any) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise InputError(f"{config.name}: cannot be written ({error})") from None

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_with", full)
        said = refused("--lr", "0.001:0.01", "--trials", "2")
        assert "No space left on device" in said
    run("--lr", "0.001:0.01", "--trials", "2")
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    stopped, again, _ = study().trials
    assert again.params == stopped.params


def test_a_sweep_whose_folder_was_renamed_goes_on(
    run: Run, pretended: list[Config]
) -> None:
    run("--lr", "0.001:0.01", "--trials", "2")
    renamed = FOLDER.rename(FOLDER.with_name("renamed"))
    run("--lr", "0.001:0.01", "--trials", "3", "--name", renamed.name)
    assert len(pretended) == 3
    with (renamed / "trials.csv").open() as file:
        assert len([*csv.DictReader(file)]) == 3


@pytest.mark.usefixtures("pretended")
def test_a_trial_that_nobody_is_at_is_given_up(run: Run) -> None:
    run("--lr", "0.001:0.01", "--trials", "1")
    study().ask()  # its process could not say that it had failed
    run("--lr", "0.001:0.01", "--trials", "2")
    assert states()[:2] == ["COMPLETE", "FAIL"]
    assert states()[2:] == ["COMPLETE"]


def test_trials_that_do_not_compare_are_not_mixed(
    run: Run, pretended: list[Config], refused: Callable[..., str], image_folder: Path
) -> None:
    flags = ("--cutout", "4,8", "--trials", "1", "--lr", "auto", "--lr_steps", "50")
    run(*flags)
    others = ("--lr_steps=40", "--lr_finder=torch-lr-finder", "--precision=64-true")
    for other in others:
        name, _, value = other.partition("=")
        assert refused(*flags, other).startswith(f"{name} is {value}, but the sweep")
    fewer = refused(*flags, "--limit_val_batches", "1")
    assert fewer.startswith("--limit_val_batches is 1, but the sweep was begun with 1.")
    shutil.copytree(image_folder, "others")
    moved = refused(*flags, "--data_dir", "others")
    assert moved.startswith(f"--data_dir is {Path('others').resolve()}, but the sweep")
    # A sweep that is older than a flag had its default.
    begun = study()
    known = begun.user_attrs["flags"]
    older = {name: value for name, value in known.items() if name != "sam_radius"}
    begun.set_user_attr("flags", older)
    sharper = refused(*flags, "--sam_radius", "0.1")
    assert sharper.startswith("--sam_radius is 0.1, but the sweep was begun with 0.0;")
    run(*flags, "--trials", "2")
    assert len(pretended) == 2
    assert study().user_attrs["flags"] == known


def test_ctrl_c_ends_it_and_the_same_flags_are_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        report = optuna.Trial.report

        def interrupted(trial: Any, value: float, step: int) -> None:
            report(trial, value, step)
            os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(optuna.Trial, "report", interrupted)
        with pytest.raises(SystemExit) as end:
            run("--lr", "0.001:0.01:log", "--trials", "1", "--max_epochs", "3")
    assert end.value.code == 130
    error = capsys.readouterr().err
    assert (
        "sweep.py: stopped by Ctrl-C after 0 trials; continue with: python sweep.py"
        in (error)
    )
    assert error.endswith("--name s --lr 0.001:0.01:log --trials 1 --max_epochs 3\n")
    run("--lr", "0.001:0.01:log", "--trials", "1", "--max_epochs", "3")
    first, again = study().trials
    assert [first.state.name, again.state.name] == ["FAIL", "COMPLETE"]
    assert again.params == first.params
    assert [row["state"] for row in table()] == ["complete", "stopped"]


def be_killed(argv: list[str]) -> None:
    """What a machine does that loses its power in the middle of a trial."""
    optuna.Trial.report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    sys.argv = argv
    sweep.main()


def test_the_flags_of_a_trial_that_was_killed_are_tried_again(
    run: Run, fork: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    flags = ("--lr", "0.001:0.01", "--trials", "2")
    argv = ["sweep.py", *QUICK, "--data_dir", str(image_folder), *NAME, *flags]
    process = fork(tmp_path, be_killed, argv)
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    with FileLock(FOLDER / ".trial_0000.lock"):  # as if it were still at work
        run(*flags[:2], "--trials", "1")
        assert states() == ["RUNNING"]
        run(*flags)
        assert states() == ["RUNNING", "COMPLETE"]
    run(*flags)
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    killed, _, again = study().trials
    assert again.params == killed.params
    assert {row["trial"]: row["state"] for row in table()}["0"] == "stopped"
    assert not list(FOLDER.glob(".trial_*.lock"))


class WindowsLock(FileLock):
    """A lock whose file goes with its release, as there."""

    def release(self, force: bool = False) -> None:
        """And take the file away."""
        super().release(force)
        if not self.is_locked:
            Path(self.lock_file).unlink(missing_ok=True)


def test_a_lock_may_be_gone_by_its_release(
    run: Run, pretended: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.study.FileLock", WindowsLock)
    run("--lr", "0.001:0.01", "--trials", "2")
    assert states() == ["COMPLETE"] * 2
    dead = study().ask()
    (FOLDER / f".trial_{dead.number:04}.lock").touch()
    run("--lr", "0.001:0.01", "--trials", "3")
    assert states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


def test_several_sweeps_share_a_database(
    run: Run, pretended: list[Config], image_folder: Path
) -> None:
    for folder in ("one", "other"):
        run(
            *("--lr", "0.001:0.01", "--output_dir", folder),
            *("--storage", "sqlite:///shared.db", "--trials", "3"),
        )
    assert len(pretended) == 3  # of which the second finds all done
    tables = [Path(f"{name}/s/trials.csv").read_text() for name in ("one", "other")]
    assert tables[0] == tables[1]


WRONG = {
    "nothing": ((), "nothing to search for; give a flag a range or a list"),
    "val_size": (("--val_size", "0"), "--val_size is 0, but a sweep chooses on held-"),
    "judging": (("--val_size", "10,20"), "--val_size decides how trials are judged"),
    "type": (("--cutout", "a:b"), "--cutout must be a whole number, got 'a'"),
    "range": (("--cutout", "4:40"), "--cutout must be a whole number, from 0 to 32"),
    "order": (("--lr", "0.1:0.01"), "--lr 0.1:0.01: no range; give LOW:HIGH of two"),
    "log": (("--weight_decay", "0:1:log"), "--weight_decay 0:1:log: no range"),
    "words": (("--flip", "none:random"), "--flip none:random: no range"),
    "three": (("--lr", "0.1:0.2:0.3"), "--lr 0.1:0.2:0.3: no range"),
    "list": (("--flip", "none,nosuch"), "--flip must be none, random or alternate"),
    "trials": (("--trials", "0"), "--trials must be at least 1, got 0"),
    "devices": (("--devices", "2"), "a trial trains on one device; leave --devices"),
    "resume": (("--ckpt_path", "last"), "--ckpt_path makes no sense in a sweep"),
    "storage": (
        ("--lr", "1:2", "--storage", "nosuch://x"),
        "--storage nosuch://x: can",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], message: str, refused: Callable[..., str]
) -> None:
    assert refused(*arguments).startswith(message)
    assert not list(Path().rglob("trial_*"))


def test_a_name_that_is_a_file_is_one_line(refused: Callable[..., str]) -> None:
    Path("runs").mkdir()
    FOLDER.touch()
    assert refused("--lr", "0.1:0.2") == "--name s: runs/s is a file; give another name"


def test_without_held_out_images_there_is_nothing_to_choose_by(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_with", lambda *_: {"val/acc": None})
    message = "a sweep chooses on held-out images, and of so few none is held out; "
    assert message in refused("--lr", "0.1:0.2")


def test_odd_folders_hold_their_own_study(run: Run, pretended: list[Config]) -> None:
    for name in ("what?a", "what?b", "50%25"):
        run("--lr", "0.1:0.2", "--trials", "1", "--output_dir", name)
        assert (Path(name) / "s" / "study.db").is_file()
    assert len(pretended) == 3


def test_text_with_commas_stays_text() -> None:
    arguments = ["--data_dir", "a,b", "--devices=0,1", "--lr=1:2", "--cutout", "1,2"]
    searched, rest = sweep.split([*arguments, "--trials", "3"])
    assert searched == {"lr": "1:2", "cutout": "1,2"}
    assert rest == ["--data_dir", "a,b", "--devices=0,1", "--trials", "3"]


def test_a_missing_extra_is_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "find_spec", lambda _: None)
    assert refused("--lr", "1:2").endswith("pip install -r requirements-extras.txt")
