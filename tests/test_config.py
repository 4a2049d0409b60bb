"""The typed configuration: what it takes, refuses, and is to others."""

import inspect
import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import cli
from common.errors import InputError
from config import MARKS, PATHS, SHAPING, Config, configured


def test_values_are_plain_and_paths_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = Config(
        lr=np.float64(0.5),
        data_dir=Path("~/images"),
        output_dir="~/runs",
        batch_size=np.int64(8),  # type: ignore[arg-type]
    )
    assert type(config.lr) is float
    assert type(config.batch_size) is int
    assert (config.data_dir, config.output_dir) == ("/home/me/images", "/home/me/runs")
    assert {"data_dir", "output_dir", "ckpt_path", "init_from"} == PATHS
    assert all(type(value) is not Path for value in asdict(config).values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch_size": 0}, "--batch_size must be a whole number, at least 1, got 0"),
        ({"cutout": 33}, "--cutout must be a whole number, from 0 to 32, got 33"),
        ({"lr": float("nan")}, "--lr must be a finite number above 0, or auto, got na"),
        ({"val_size": -1}, "--val_size must be a whole number, at least 0, or auto"),
        ({"limit_train_batches": 1.5}, "or a share above 0 and up to 1.0, got 1.5"),
        ({"overwrite": True, "ckpt_path": "last"}, "contradict each other"),
        ({"flip": "horizontal"}, "--flip must be none, random or alternate, got 'ho"),
        ({"flip": False}, "--flip must be none, random or alternate, got False"),
        ({"padding_mode": "zero"}, "--padding_mode must be constant or reflect, got"),
        ({"tta": True}, "--tta must be none, flip or views, got True"),
        ({"data": "cifar"}, "--data must be auto, cifar10, folder or synthetic, got"),
        ({"whiten": "no"}, "--whiten must be true, false or auto, got 'no'"),
        ({"batch_size": 25.5}, "--batch_size must be a whole number, at least 1, got"),
        ({"batch_size": True}, "--batch_size must be a whole number, .* got True"),
        ({"batch_size": "128"}, "--batch_size must be a whole number, .* got '128'"),
        ({"lr": "0.01"}, "--lr must be a finite number above 0, or auto, got '0.01'"),
        ({"data_dir": 3}, "--data_dir must be a path, got 3"),
        ({"logger": ["csv", 1]}, r"--logger must be .*, got \['csv', 1\]"),
        ({"compile": "max"}, "--compile must be .*reduce-overhead, got 'max'"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(flags: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**flags)


def test_a_whole_number_is_a_number() -> None:
    config = Config(weight_decay=0, lr=1, limit_train_batches=1, limit_val_batches=1.0)
    for flag, kind in (
        *(("weight_decay", float), ("lr", float)),
        *(("limit_train_batches", int), ("limit_val_batches", float)),
    ):
        assert type(getattr(config, flag)) is kind


def test_it_cannot_be_changed_but_copied_with_another_value() -> None:
    config = Config(seed=1)
    with pytest.raises(FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]
    assert replace(config, seed=2) == Config(seed=2)
    with pytest.raises(InputError, match="--seed must be"):
        replace(config, seed=-1)


def test_a_record_leaves_out_what_only_places_a_run() -> None:
    placing = {"output_dir", "name", "overwrite", "ckpt_path", "fast_dev_run"}
    placing.add("show_layers")
    assert asdict(Config()).keys() - Config().record().keys() == placing
    assert not placing & {*SHAPING}


def test_what_shapes_a_run() -> None:
    assert [
        *("max_epochs", "batch_size", "weight_decay", "label_smoothing", "ema_decay"),
        *("sam_radius", "sam_share", "norm_batch"),
        *(
            "net",
            "base_width",
            "whiten",
            "dirac",
            "logit_scale",
            "seed",
            "val_size",
        ),
        *("crop_padding", "padding_mode", "flip", "cutout", "photo_like", "init_from"),
        *("limit_train_batches", "sync_batchnorm"),
    ] == SHAPING
    assert MARKS["max_epochs"].reason.startswith("one cycle has one length")


def test_every_field_is_a_flag_with_an_explanation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Config(**cli.parse(Config, [])) == Config()
    with pytest.raises(SystemExit):
        cli.parse(Config, ["--help"])
    options = " ".join(capsys.readouterr().out.split()).split("options: ")[1]
    for field in fields(Config):
        names = rf"--{field.name}(?:, --\S+)?"  # Python 3.13 has all in front
        explained = re.search(rf" {names} \S+ (.*?) \([^(]+; default: ", options)
        assert explained is not None, field.name
        assert len(explained[1].split()) > 2, field.name


@pytest.mark.parametrize("devices", [-1, 1024, "0,1", [0, 1], "auto"])
def test_devices_are_a_number_or_a_list(devices: Any) -> None:
    assert Config(devices=devices).devices == devices


@pytest.mark.parametrize("devices", [0, -2, 1025, "", "-0,1", "1000000000"])
def test_no_machine_has_so_many_devices(devices: Any) -> None:
    with pytest.raises(InputError, match="--devices must be from 1 to 1024"):
        Config(devices=devices)


def test_a_function_of_a_config_takes_its_fields() -> None:
    @configured(Config)
    def double(config: Config) -> int:
        """Twice the seed."""
        return 2 * config.seed

    assert double(seed=4) == 8
    assert double.__doc__ == "Twice the seed."
    shown = inspect.signature(double)
    assert shown.return_annotation is int
    assert [*shown.parameters] == [one.name for one in fields(Config)]
    with pytest.raises(TypeError, match="sead"):
        double(sead=4)  # type: ignore[call-arg]


def test_two_ways_of_batch_norm_are_refused() -> None:
    message = "--norm_batch and --sync_batchnorm contradict each other"
    with pytest.raises(InputError, match=message):
        Config(norm_batch=32, sync_batchnorm=True)
