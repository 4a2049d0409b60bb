"""What W&B, MLflow and CSV get to know of a run, without a network."""

import contextlib
import csv
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from common.errors import DivergedError, InputError
from config import Config
from run_files import LAST, rows
from training import loggers

Train = Callable[..., dict[str, Any]]

# MLflow uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RUN = Path("runs/run")
SCALARS = {
    *("train/loss", "train/acc", "val/loss", "val/acc"),
    *("test/loss", "test/acc", "lr"),
}
PICTURES = {
    *("images/augmented", "lr_finder", "test/confusion"),
    *("test/per_class", "test/reliability", "test/mistakes"),
}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """W&B, kept on this machine and silent."""
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it has read the environment of another test
    yield wandb
    wandb.teardown()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Reads what MLflow keeps in the folder of runs."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    pytest.importorskip("alembic")
    mlflow = pytest.importorskip("mlflow")
    return lambda: mlflow.MlflowClient(loggers.mlflow_store(Path("runs")))


def folders(pattern: str) -> list[str]:
    return sorted(path.name for path in RUN.glob(pattern))


def test_csv_has_every_metric_and_a_new_folder_at_a_resume(quick_train: Train) -> None:
    metrics = quick_train(logger="csv")
    assert not list(RUN.rglob("events.out.tfevents.*"))
    with (RUN / "csv/version_0/metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert {*logged[0]} == SCALARS | {"epoch", "step"}
    values = [float(row["val/acc"]) for row in logged if row["val/acc"]]
    assert values == pytest.approx([float(row["val/acc"]) for row in rows()])
    steps = [int(row["step"]) for row in logged if row["lr"]]
    assert steps == [2, 5]
    assert float(logged[-1]["test/acc"]) == pytest.approx(metrics["test/acc"])
    listed = yaml.safe_load((RUN / "csv/version_0/hparams.yaml").read_text())
    assert (listed["lr"], listed["batch_size"]) == (0.01, 32)
    quick_train(logger=("csv",), ckpt_path="last", report=False)
    assert folders("csv/*") == ["version_0", "version_1"]
    quick_train(logger="csv", overwrite=True, report=False, max_epochs=1)
    assert len((RUN / "csv/version_2/metrics.csv").read_text().splitlines()) == 5
    assert not list(RUN.glob("csv/version_[01]/*"))


def test_none_logs_nowhere(quick_train: Train) -> None:
    quick_train(logger="none", max_epochs=1, report=True)
    assert {path.name for path in RUN.iterdir()} == {
        *(".lock", "checkpoints", "config.yaml", "metrics.csv", "metrics.json"),
        *("confusion_matrix.png", "curves.png", "report.html", "train_batch.png"),
    }


@pytest.fixture
def logged(wandb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run and data of every call of W&B's `log`, which does its work."""
    calls: list[Any] = []
    plain = wandb.Run.log

    def log(run: Any, data: dict[str, Any], *rest: Any, **more: Any) -> None:
        calls.append((run, dict(data)))
        plain(run, data, *rest, **more)

    monkeypatch.setattr(wandb.Run, "log", log)
    return calls


def test_wandb_and_tensorboard_get_scalars_pictures_and_flags(
    quick_train: Train, wandb: ModuleType, logged: list[Any]
) -> None:
    metrics = quick_train(
        logger=["tensorboard", "wandb"], lr="auto", lr_steps=40, report=True
    )
    assert wandb.run is None  # or the next run of this process would go on with it
    assert list(RUN.glob("val/events.out.tfevents.*"))
    [folder] = RUN.glob("wandb/offline-run-*")
    assert torch.load(LAST, weights_only=True)["loggers"] == {
        "wandb": folder.name.split("-")[-1]
    }
    history: dict[str, list[Any]] = {}
    for run, data in logged:
        assert (run.project, run.name) == (loggers.PROJECT, "run")
        for name, value in data.items():
            history.setdefault(name, []).append(value)
    assert {*history} >= SCALARS | PICTURES
    expected = [float(row["val/acc"]) for row in rows()]
    assert history["val/acc"] == pytest.approx(expected)
    assert history["test/acc"] == pytest.approx([metrics["test/acc"]])
    assert run.config["lr"] == metrics["max_lr"]
    assert run.config["cutout"] == 8
    pictures = {path.parent.name for path in folder.glob("files/media/images/*/*.png")}
    assert pictures == {"images", "test"}


def test_wandb_goes_on_with_a_run_and_is_told_of_one_that_fails(
    quick_train: Train,
    wandb: ModuleType,
    logged: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    quick_train(logger="wandb", report=False)
    quick_train(logger="wandb", report=False, ckpt_path="last")
    ids = {name.split("-")[-1] for name in folders("wandb/offline-run-*")}
    assert len(ids) == 1
    assert len(folders("wandb/offline-run-*")) == 2
    assert {run.project for run, _ in logged} == {"mine"}
    shutil.copy(LAST, "fork.ckpt")
    fork = {"name": "fork", "ckpt_path": "fork.ckpt", "report": False}
    quick_train(logger="wandb", **fork)
    [folder] = Path("runs/fork").glob("wandb/offline-run-*")
    assert folder.name.split("-")[-1] not in ids  # it is another run
    with pytest.raises(DivergedError):
        quick_train(logger="wandb", lr=1e30, name="bad", max_epochs=9)
    assert wandb.run is None


@pytest.mark.slow
def test_mlflow_gets_scalars_pictures_and_flags_and_goes_on(
    quick_train: Train, client: Callable[[], Any]
) -> None:
    metrics = quick_train(logger="mlflow", lr="auto", lr_steps=40, report=True)
    quick_train(logger="mlflow", lr="auto", ckpt_path="last", report=False)
    store = client()
    experiment = store.get_experiment_by_name(loggers.PROJECT)
    [run] = store.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert {*run.data.metrics} >= SCALARS
    history = store.get_metric_history(run.info.run_id, "val/acc")
    assert [point.step for point in history] == [2, 5]
    logged = [point.value for point in history]
    assert logged == pytest.approx([float(row["val/acc"]) for row in rows()])
    assert float(run.data.params["lr"]) == metrics["max_lr"]
    assert run.data.params["flip"] == "alternate"
    artifacts = Path("runs/mlartifacts")
    pictures = {
        str(path.relative_to(path.parents[len(path.parts) - 5])).removesuffix(".png")
        for path in artifacts.rglob("*.png")
    }
    assert {name.replace("\\", "/") for name in pictures} == PICTURES


@pytest.mark.slow
def test_mlflow_has_a_database_in_each_folder_of_runs(
    quick_train: Train,
    client: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though Lightning tells all runs of a process of the first one's."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for folder in ("runs", "others"):
        quick_train(logger="mlflow", max_epochs=1, report=False, output_dir=folder)
        assert Path(folder, "mlflow.db").exists()
        assert f"{folder}/mlflow.db" in capsys.readouterr().out
    [experiment] = client().search_experiments(filter_string="name LIKE 'custom%'")
    assert len(client().search_runs([experiment.experiment_id])) == 1


@pytest.mark.slow
def test_a_store_that_fails_within_a_run_costs_no_epoch(
    quick_train: Train,
    client: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def drop_table(_: Any, trainer: Any, *__: Any) -> None:
        if trainer.current_epoch == 1:
            with contextlib.closing(sqlite3.connect("runs/mlflow.db")) as store:
                store.execute("DROP TABLE metrics")

    quick_train(logger="none", name="without", max_epochs=3, report=False)
    monkeypatch.setattr(loggers.LoggerDetails, "on_train_epoch_start", drop_table)
    quick_train(logger="mlflow", max_epochs=3, report=True)
    assert rows() == rows("without")
    assert len(rows()) == 3
    assert caplog.text.count("--logger mlflow: ") == 1
    assert "no such table: metrics" in caplog.text


@pytest.mark.slow
def test_mlflow_keeps_to_the_environment_and_says_what_it_refuses(
    quick_train: Train,
    client: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    quick_train(logger="mlflow", max_epochs=1, report=False)
    assert (tmp_path / "mine.db").exists()
    assert not Path("runs/mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(InputError, match=r"^--logger mlflow: .*not found.*; put that"):
        quick_train(logger="mlflow", max_epochs=1, ckpt_path="last")


def test_tensorboard_refuses_a_folder_that_is_not_utf_8(quick_train: Train) -> None:
    with pytest.raises(
        InputError, match=r"^--output_dir r\\udcfcns: TensorBoard cannot"
    ):
        quick_train(output_dir=os.fsdecode(b"r\xfcns"))
    assert not [*Path().iterdir()]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_read(
    name: str, quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(InputError) as caught:
        quick_train(logger=["tensorboard", name], data_dir="nosuch")
    assert str(caught.value) == (
        f"--logger {name} needs {name}; pip install -r requirements-extras.txt"
    )


def test_wandb_without_a_key_is_a_line_before_anything_is_read(
    quick_train: Train, wandb: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    with pytest.raises(InputError, match=r"^--logger wandb: .*WANDB_MODE=offline in"):
        quick_train(logger="wandb", data_dir="nosuch")


def test_what_a_logger_may_be() -> None:
    assert Config().loggers() == ["tensorboard"]
    assert Config(logger=["csv", "csv", "wandb"]).loggers() == ["csv", "wandb"]
    assert Config(logger="none").loggers() == Config(logger=[]).loggers() == []
    with pytest.raises(InputError, match=r"--logger must be tensorboard, wandb, .*'x'"):
        Config(logger="x")  # type: ignore[arg-type]
