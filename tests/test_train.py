"""`train` from end to end: what it leaves behind, and how it goes on."""

import errno
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer, seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from analysis.finished_run import open_run, read_run
from common import cli
from common.errors import DivergedError, InputError
from config import Config
from custom_resnet import whitening_filters
from datamodule import CIFAR10DataModule
from images.augmentation import Augmentation
from lightning_module import LitCustomResNet
from machine import memory
from run_files import LAST, STEP, assert_same, rows, weights
from train import build_module, load_images, train
from training.checks import check_images
from training.history import History
from training.lr_finder import range_test
from training.tensorboard import place
from training.terminal import warn_of_guessing

Train = Callable[..., dict[str, Any]]


def test_run_folder_is_complete(quick_train: Train) -> None:
    metrics = quick_train(lr="auto", lr_steps=40, report=True)
    run = Path("runs/run")
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {name for name in names if "tfevents" not in name} == {
        ".lock",
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "curves.png",
        "train_batch.png",
        "confusion_matrix.png",
        "lr_finder.png",
        "lr_finder.json",
        "report.html",
        str(Path("checkpoints/best.ckpt")),
        str(Path("checkpoints/last.ckpt")),
    }
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert set(metrics) == {
        *(
            f"{split}/{key}"
            for split in ("train", "val", "test")
            for key in ("loss", "acc")
        ),
        *("max_lr", "epochs", "seconds", "fit_seconds", "images_per_second"),
        *("seed", "device"),
        *("precision", "versions", "commit", "command"),
    }
    assert metrics["epochs"] == 2
    assert metrics["precision"] == "32-true"
    assert [row["step"] for row in rows()] == ["3", "6"]
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert float(rows()[-1][name]) == metrics[name]
    config = yaml.safe_load((run / "config.yaml").read_text())
    checkpoint = torch.load(LAST, weights_only=True)
    for picked in (
        config["lr"],
        checkpoint["hyper_parameters"]["lr"],
        checkpoint["optimizer_states"][0]["param_groups"][0]["max_lr"],
    ):
        assert picked == metrics["max_lr"]
    assert config["val_size"] == 12


def test_checkpoint_gives_the_reported_accuracy(
    quick_train: Train, image_folder: Path
) -> None:
    metrics = quick_train()
    module = LitCustomResNet.load_from_checkpoint(LAST, weights_only=True).eval()
    assert list(module.hparams["classes"]) == ["blue", "green", "red"]
    data = CIFAR10DataModule(data_dir=str(image_folder), batch_size=7)
    data.setup()
    hits = [(module(x).argmax(1) == y).sum().item() for x, y in data.test_dataloader()]
    assert sum(hits) / 30 == pytest.approx(metrics["test/acc"])


def test_picked_lr_and_typed_lr_train_bit_for_bit_alike(quick_train: Train) -> None:
    picked = quick_train(lr="auto", lr_steps=40)["max_lr"]
    quick_train(lr=picked, name="typed")
    assert_same(weights(), weights(Path("runs/typed/checkpoints/last.ckpt")))
    assert rows() == rows("typed")


def test_the_network_starts_with_the_statistics_of_the_training_images(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.WHITENED", 30)
    config = Config(
        data_dir=image_folder, batch_size=8, base_width=4, lr=0.01, dirac=False
    )
    images = load_images(config)
    started, plain = (
        build_module(one, images) for one in (config, replace(config, whiten=False))
    )
    every_fourth = images.train_set[0][::4].permute(0, 3, 1, 2)  # of 108
    expected = whitening_filters(plain.normalise(every_fourth), 4)
    first, *others = zip(started.net.parameters(), plain.net.parameters(), strict=True)
    torch.testing.assert_close(first[0].data, expected)
    assert all(torch.equal(*pair) for pair in others)


def test_batch_norm_takes_as_many_images_as_the_flag_says(image_folder: Path) -> None:
    config = Config(data_dir=image_folder, batch_size=8, base_width=4, lr=0.01)
    images = load_images(config)
    batch = images.train_set[0][:8].permute(0, 3, 1, 2)
    split, whole = (
        build_module(one, images) for one in (replace(config, norm_batch=4), config)
    )
    parts = torch.cat([whole(part) for part in batch.split(4)])
    torch.testing.assert_close(split(batch), parts)
    assert not torch.allclose(whole(batch), parts, atol=1e-3)


def test_config_runs_again(quick_train: Train) -> None:
    metrics = quick_train(lr="auto", lr_steps=40)
    arguments = ["--config", "runs/run/config.yaml", "--name", "again"]
    again = train(**cli.parse(Config, arguments))
    for key in ("train/loss", "val/loss", "test/loss", "max_lr"):
        assert again[key] == metrics[key]


def test_last_is_the_last_epoch_and_best_the_best(quick_train: Train) -> None:
    quick_train(max_epochs=4, lr=0.1)  # too high, so the accuracy jumps about
    accuracies = [float(row["val/acc"]) for row in rows()]
    best = torch.load(LAST.with_name("best.ckpt"), weights_only=True)
    assert torch.load(LAST, weights_only=True)["epoch"] == 3
    assert best["epoch"] == accuracies.index(max(accuracies))


def scale_loss(factor: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply the loss of each step by a factor."""
    plain = LitCustomResNet.objective

    def objective(module: LitCustomResNet, *batch: Any) -> Any:
        loss, accuracy = plain(module, *batch)
        return loss * factor(module.global_step), accuracy

    monkeypatch.setattr(LitCustomResNet, "objective", objective)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_loss(lambda step: math.nan if step >= 4 else 1, monkeypatch)
    with pytest.raises(DivergedError) as caught:
        quick_train(max_epochs=3)
    lr = 0.01 - (4 - 0.875) / (8 - 0.875) * 0.01  # 3 epochs of 3 steps, peak at 0.875
    assert (
        f"the loss or a weight was not finite at step 4, where the LR was {lr:.3g}"
        in str(caught.value)
    )
    assert f"last good checkpoint: {LAST}" in str(caught.value)
    assert torch.load(LAST, weights_only=True)["global_step"] == 3
    assert all(value.isfinite().all() for value in weights().values())
    assert len(rows()) == 1


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_step = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, closure: Any) -> Any:
        loss = plain_step(optimizer, closure)
        steps.append(loss)
        if len(steps) == 6:  # the last one: no loss will tell
            optimizer.param_groups[0]["params"][0].data.fill_(math.inf)
        return loss

    steps: list[Any] = []
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(DivergedError, match="a weight was not finite at step 5"):
        quick_train()
    assert torch.load(LAST, weights_only=True)["global_step"] == 3
    assert not Path("runs/run/metrics.json").exists()


def test_a_loss_that_is_not_finite_is_not_saved_within_an_epoch(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_loss(lambda step: math.inf if step == 2 else 1, monkeypatch)
    with pytest.raises(DivergedError, match=f"at step 2, .* good checkpoint: {STEP};"):
        quick_train(batch_size=16, ckpt_every_n_steps=2)
    assert torch.load(STEP, weights_only=True)["global_step"] == 2


def test_a_run_is_neither_mixed_nor_lost(quick_train: Train) -> None:
    quick_train(max_epochs=1)
    before = weights()
    with pytest.raises(InputError, match="already holds a run"):
        quick_train(max_epochs=1, seed=1)
    assert_same(weights(), before)
    (LAST.parent / "mine.txt").touch()
    quick_train(max_epochs=1, seed=1, overwrite=True)
    assert (LAST.parent / "mine.txt").exists()
    assert json.loads(Path("runs/run/metrics.json").read_text())["seed"] == 1
    assert len(rows()) == 1
    Path("runs/run/metrics.json").unlink()
    shutil.rmtree(LAST.parent)  # a folder without checkpoint and results is used
    quick_train(max_epochs=1)


def test_tensorboard_holds_what_the_readme_says(quick_train: Train) -> None:
    metrics = quick_train(lr="auto", lr_steps=40, report=True)
    scalars: dict[str, list[Any]] = {}
    images: set[str] = set()
    graphs = 0
    hparams = []
    folder = Path("runs/run")
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        part = path.parent.name
        events = EventAccumulator(str(path), {"images": 0, "scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            name = tag if path.parent == folder else f"{part}:{tag}"
            scalars.setdefault(name, []).extend(events.Scalars(tag))
        images |= set(events.Tags()["images"])
        graphs += bool(events.Tags()["graph"])
        hparams += [
            HParamsPluginData.FromString(metadata.plugin_data.content)
            for tag, metadata in events.summary_metadata.items()
            if tag.startswith("_hparams_")
        ]
    assert images == {
        *("images/augmented", "lr_finder", "test/confusion"),
        *("test/per_class", "test/reliability", "test/mistakes"),
    }
    assert graphs == 1
    assert [event.step for event in scalars["lr"]] == list(range(6))
    assert max(event.value for event in scalars["lr"]) == pytest.approx(
        metrics["max_lr"], rel=0.4
    )
    # No chart has a single point: the test is one in the charts of the epochs.
    assert set(scalars) == {
        "lr",
        *(
            f"{split}:curves/{key}"
            for split in ("train", "val", "test")
            for key in ("loss", "acc")
        ),
    }
    for split, steps in (("train", [2, 5]), ("val", [2, 5]), ("test", [6])):
        assert [event.step for event in scalars[f"{split}:curves/acc"]] == steps
        for key in ("loss", "acc"):
            final = scalars[f"{split}:curves/{key}"][-1].value
            assert final == pytest.approx(metrics[f"{split}/{key}"])
    experiment, _, _ = hparams  # and start and end of the session
    first = experiment.experiment.metric_infos[0]
    assert (first.display_name, first.name.group, first.name.tag) == (
        *("test/acc", "test"),
        "curves/acc",
    )


def test_every_flag_gets_to_what_it_is_for(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_images = {"batch_size": 17, "val_size": 9, "seed": 7}
    augmentation = Augmentation(2, "constant", "random", 6, 0.3)
    of_module = {
        **{"lr": 0.02, "weight_decay": 0.11, "label_smoothing": 0.12},
        **{"base_width": 3, "tta": "flip", "logit_scale": 0.5},
    }
    of_trainer = {
        **{"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1},
        **{"max_epochs": 1, "deterministic": True, "sync_batchnorm": True},
    }
    given: dict[str, Any] = {}
    seen: list[Any] = []

    def make_trainer(**flags: Any) -> Trainer:
        given.update(flags)
        return Trainer(**flags)

    def note(config: Config, images: CIFAR10DataModule, *others: Any) -> Any:
        seen[:] = [images, build_module(config, images, *others)]
        return seen[1]

    monkeypatch.setattr("training.trainer.pl.Trainer", make_trainer)
    monkeypatch.setattr("train.build_module", note)
    monkeypatch.setattr("train.check_processes", lambda *_: None)
    quick_train(**of_images, **augmentation._asdict(), **of_module, **of_trainer)
    images, module = seen
    _, reported = open_run(read_run(Path("runs/run")))
    for found in (images, reported):
        assert {flag: getattr(found, flag) for flag in of_images} == of_images
        assert found.augmentation == augmentation
    assert {flag: module.hparams[flag] for flag in of_module} == of_module
    assert {flag: given[flag] for flag in of_trainer} == of_trainer


def test_the_seed_decides_the_weights(image_folder: Path) -> None:
    config = Config(lr=0.02, data_dir=str(image_folder), base_width=3, batch_size=16)
    images = load_images(config)
    one, same, other = (
        build_module(replace(config, seed=seed), images).net.state_dict()
        for seed in (7, 7, 8)
    )
    assert_same(one, same)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_a_table_that_a_spreadsheet_has_open_costs_no_epoch(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Windows lets nobody replace such a file."""
    write, refused = History._write, iter([True, False])

    def write_or_not(self: History, path: Path) -> None:
        if next(refused):
            raise PermissionError(errno.EACCES, "Permission denied")
        write(self, path)

    monkeypatch.setattr(History, "_write", write_or_not)
    quick_train()
    assert "metrics.csv cannot be replaced (Permission denied); close it" in caplog.text
    assert [row["epoch"] for row in rows()] == ["0", "1"]


def test_fast_dev_run_tries_everything_and_writes_nothing(quick_train: Train) -> None:
    for flags in ({"fast_dev_run": True}, {"fast_dev_run": 2}, {"val_size": 0}):
        metrics = quick_train(**{"fast_dev_run": 1, "lr": "auto", "name": None} | flags)
        assert 0 <= metrics["test/acc"] <= 1
        assert metrics["max_lr"] == 0.01
    assert not Path("runs").exists()


def test_fast_dev_run_looks_at_the_checkpoint_and_begins_anew(
    quick_train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    quick_train(max_epochs=3)
    before = {path: path.read_bytes() for path in LAST.parent.iterdir()}
    caplog.set_level("INFO")
    metrics = quick_train(max_epochs=3, ckpt_path="last", fast_dev_run=True)
    assert (metrics["epochs"], metrics["max_lr"]) == (1, 0.01)
    assert f"{LAST} can be resumed; the trial starts without it" in caplog.messages
    with pytest.raises(InputError, match="--seed is 1, but the checkpoint was trained"):
        quick_train(max_epochs=3, ckpt_path="last", fast_dev_run=True, seed=1)
    assert {path: path.read_bytes() for path in LAST.parent.iterdir()} == before


def test_training_on_everything_has_no_best_checkpoint(quick_train: Train) -> None:
    metrics = quick_train(val_size=0, max_epochs=1)
    assert metrics["val/acc"] is None
    assert [path.name for path in LAST.parent.iterdir()] == ["last.ckpt"]


def test_a_run_that_ends_at_guessing_says_so(
    quick_train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    quick_train(lr=1e-9, name="stuck")
    [line] = caplog.messages
    assert re.match(
        r"hardly better than guessing: \d+\.\d % of the validation images are right, "
        r"and 33\.3 % would be if the most common class were named each time; .*"
        r" --lr 0\.01$",
        line,
    )
    caplog.clear()
    assert quick_train(lr=0.01, max_epochs=4, name="fine")["val/acc"] > 0.6
    quick_train(lr=1e-9, fast_dev_run=True)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("val", "train", "counts", "says"),
    [
        (0.135, 0.9, [50] * 10, "13.5 % of the validation images"),
        (0.158, 0.9, [50] * 10, "15.8 % of the validation images"),
        (0.20, 0.10, [50] * 10, None),
        (None, 0.12, [50] * 10, "12.0 % of the training images"),
        (0.021, None, [9] * 100, None),  # twice as good as guessing
        (0.80, None, [80, 20], "and 80.0 % would be"),  # names one class only
        (0.83, None, [80, 20], None),
    ],
)
def test_what_counts_as_guessing(
    val: float | None,
    train: float | None,
    counts: list[int],
    says: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    warn_of_guessing({"val/acc": val, "train/acc": train, "max_lr": 0.01}, labels)
    assert len(caplog.messages) == (says is not None)
    assert (says or "") in "".join(caplog.messages)


def test_time_spent_in_validation_is_none_of_the_training(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only stages move: a second a step, an hour a validation."""
    clock = SimpleNamespace(seconds=0.0)

    def lasting(step: Any, seconds: float) -> Any:
        def take(*call: Any) -> Any:
            clock.seconds += seconds
            return step(*call)

        return take

    for stage, seconds in (("training", 1), ("validation", 3600), ("test", 3600)):
        name = f"{stage}_step"
        slow = lasting(getattr(LitCustomResNet, name), seconds)
        monkeypatch.setattr(LitCustomResNet, name, slow)
    monkeypatch.setattr("training.history.now", lambda _: clock.seconds)
    metrics = quick_train(max_epochs=2)
    assert metrics["fit_seconds"] == 2 * 3
    assert metrics["images_per_second"] == 32


def test_limits_shorten_the_epochs(quick_train: Train, image_folder: Path) -> None:
    metrics = quick_train(
        limit_train_batches=1, limit_val_batches=0, limit_test_batches=2, batch_size=6
    )
    assert [(row["step"], row["val/acc"]) for row in rows()] == [("1", ""), ("2", "")]
    module = LitCustomResNet.load_from_checkpoint(LAST, weights_only=True).eval()
    images = CIFAR10DataModule(data_dir=str(image_folder), batch_size=6)
    images.setup()
    first, second, *_ = images.test_dataloader()
    pixels, labels = (torch.cat(pair) for pair in zip(first, second, strict=True))
    loss = torch.nn.functional.cross_entropy(module(pixels), labels)
    assert metrics["test/loss"] == pytest.approx(loss.item())


def test_a_run_without_test_or_report(quick_train: Train) -> None:
    metrics = quick_train(limit_test_batches=0, max_epochs=1, report=True)
    assert metrics["test/acc"] is metrics["test/loss"] is None
    assert metrics["val/acc"] is not None
    assert not Path("runs/run/report.html").exists()
    quick_train(report=False, max_epochs=1, overwrite=True)
    assert not Path("runs/run/report.html").exists()


def test_tta_stands_beside_the_plain_accuracy(
    quick_train: Train, image_folder: Path
) -> None:
    plain, tta = quick_train(name="plain"), quick_train(name="run", tta="flip")
    assert tta["test/acc"] == plain["test/acc"]
    assert "test/acc_tta" not in plain
    module = LitCustomResNet.load_from_checkpoint(LAST, weights_only=True).eval()
    images = CIFAR10DataModule(data_dir=str(image_folder), batch_size=30)
    images.setup()
    [(pixels, labels)] = images.test_dataloader()
    right = (module(pixels) + module(pixels.flip(3))).argmax(1) == labels
    assert tta["test/acc_tta"] == pytest.approx(right.float().mean().item())


def test_averaged_weights_are_validated_tested_and_saved(
    quick_train: Train, image_folder: Path
) -> None:
    plain = quick_train(name="plain")
    averaged = quick_train(name="averaged", ema_decay=0.6)
    assert averaged["train/loss"] == plain["train/loss"]  # the training is the same
    assert averaged["val/loss"] != plain["val/loss"]
    path = Path("runs/averaged/checkpoints/last.ckpt")
    saved = torch.load(path, weights_only=True)
    trained = weights(Path("runs/plain/checkpoints/last.ckpt"))
    assert_same(saved["current_model_state"], trained)
    module = LitCustomResNet.load_from_checkpoint(path, weights_only=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    images = CIFAR10DataModule(data_dir=str(image_folder), batch_size=32)
    [tested] = trainer.test(module, images, verbose=False)
    assert tested["test/loss"] == averaged["test/loss"] != plain["test/loss"]


def test_a_short_training_ends_with_an_average_of_its_end(quick_train: Train) -> None:
    quick_train(ema_decay=0.999)
    saved = torch.load(LAST, weights_only=True)
    seed_everything(0, verbose=False)
    start = LitCustomResNet(**saved["hyper_parameters"]).state_dict()["net.fc.weight"]
    averaged = saved["state_dict"]["net.fc.weight"]
    trained = saved["current_model_state"]["net.fc.weight"]
    assert 0 < 2 * torch.dist(averaged, trained) < torch.dist(averaged, start)


@pytest.mark.parametrize(
    ("precision", "kept"),
    [
        ("bf16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
    ],
)
def test_the_precision_is_the_one_asked_for(
    quick_train: Train, precision: Any, kept: torch.dtype
) -> None:
    usual = quick_train(max_epochs=1, name="usual")
    metrics = quick_train(max_epochs=1, precision=precision)
    assert metrics["precision"] == precision
    assert weights()["net.fc.weight"].dtype == kept
    assert metrics["train/loss"] != usual["train/loss"]
    assert metrics["train/loss"] == pytest.approx(usual["train/loss"], rel=0.05)


@pytest.mark.slow
def test_learns_shapes() -> None:
    metrics = train(
        data="synthetic",
        accelerator="cpu",
        devices=1,
        precision="32-true",
        batch_size=100,
        max_epochs=3,
        base_width=8,
        lr=0.01,
        name="shapes",
    )
    assert metrics["test/acc"] > 0.5  # guessing: 0.1


@pytest.mark.gpu
def test_gpu(quick_train: Train) -> None:
    metrics = quick_train(accelerator="gpu", precision="auto", lr="auto", lr_steps=40)
    assert metrics["device"] == torch.cuda.get_device_name()
    assert metrics["precision"] in ("bf16-mixed", "16-mixed")


def test_weights_are_averaged_with_the_share_that_is_asked(quick_train: Train) -> None:
    quick_train(ema_decay=1e-9)
    saved = torch.load(LAST, weights_only=True)
    for name, value in saved["current_model_state"].items():
        torch.testing.assert_close(saved["state_dict"][name], value)


def test_a_training_sets_what_makes_it_fast(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    keep = memory.keep_freed_memory

    def keeping() -> None:
        calls.append("kept")
        keep()

    monkeypatch.setattr(memory, "keep_freed_memory", keeping)
    torch.set_float32_matmul_precision("highest")
    quick_train(max_epochs=1)
    assert calls == ["kept"]
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


def test_what_auto_was_settled_to_is_kept(quick_train: Callable[..., Any]) -> None:
    metrics = quick_train(precision="auto", data="auto", max_epochs=1)
    config = yaml.safe_load(Path("runs/run/config.yaml").read_text())
    assert config["precision"] == metrics["precision"] != "auto"
    assert config["data"] == "folder"


def test_the_range_test_is_as_asked(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    plain = range_test

    def note(module: Any, data: Any, finder: Any, steps: int, hardware: Any) -> Any:
        asked.append((finder, steps))
        return plain(module, data, finder, steps, hardware)

    monkeypatch.setattr("train.range_test", note)
    quick_train(lr="auto", lr_steps=41, lr_finder="torch-lr-finder", max_epochs=1)
    assert asked == [("torch-lr-finder", 41)]
    assert len(json.loads(Path("runs/run/lr_finder.json").read_text())["lrs"]) == 41


def test_where_a_metric_is_drawn() -> None:
    assert place("val/acc") == ("val", "curves/acc")
    assert place("test/acc_tta") == ("test_tta", "curves/acc")
    assert place("test/acc_views") == ("test_views", "curves/acc")


def test_one_batch_is_enough_and_an_incomplete_one_counts_in_evaluation_only() -> None:
    images = {"train": 108, "val": 33, "test": 33}
    check_images(
        Config(batch_size=32, limit_train_batches=0.34, limit_val_batches=0.5),
        images,
        1,
    )
    check_images(Config(batch_size=27, limit_train_batches=0.25), images, 1)
    with pytest.raises(
        InputError, match=r"limit_train_batches 0\.3 of 3 batches is less"
    ):
        check_images(Config(batch_size=32, limit_train_batches=0.3), images, 1)
