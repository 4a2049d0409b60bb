"""How time and memory grow: the measurement runs, and its page shows the record."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("resource", reason="peak memory as POSIX systems tell it")

from benchmarks import scale
from benchmarks.noise import RandomImages
from benchmarks.rows import RESULTS, add_row, read_rows
from benchmarks.scale import (
    scale_table,
    sizes,
    tables,
)
from benchmarks.scale_run import scale_run

FILES = sorted(RESULTS.glob("*_scale_*.csv"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_size_on_record_was_measured_three_times(file: Path) -> None:
    sizes = read_rows(file)[[*scale.GROWING, *scale.FIXED]]
    assert sizes.value_counts().min() >= 3


def test_one_thing_is_changed_at_a_time() -> None:
    assert sizes({"images": (50, 10, 90), "epochs": (1, 2), "processes": (1,)}) == [
        {"images": 50, "epochs": 1, "processes": 1},
        {"images": 10, "epochs": 1, "processes": 1},
        {"images": 90, "epochs": 1, "processes": 1},
        {"images": 50, "epochs": 2, "processes": 1},
    ]


def measured(seconds: float = 10, **others: Any) -> dict[str, Any]:
    row = {"images": 100, "epochs": 1, "batch_size": 8, "processes": 1}
    row |= {"images_per_epoch": 16, "base_width": 4, "on_host": False}
    times = {"set_up_seconds": 0.5, "fit_seconds": 2.0, "seconds": seconds}
    figures = {"images_trained": 16, "peak_mib": 300.0, "device_peak_mib": ""}
    names = {"device": "CPU", "precision": "32-true", "versions": "python 3"}
    return {**row, **times, **figures, **names, **others}


def on_record(file: str, *rows: dict[str, Any]) -> Path:
    for row in rows:
        add_row(Path(file), row)
    return Path(file)


def test_the_table_has_medians_and_exponents() -> None:
    longer = {"epochs": 2, "fit_seconds": 4.0, "images_trained": 32}
    file = on_record(
        "a.csv",
        measured(),
        measured(seconds=30),
        measured(seconds=12),
        measured(**longer, seconds=24, peak_mib=1200.0),
        measured(**longer, base_width=8),  # is of another series
    )
    table = scale_table(read_rows(file)).splitlines()
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table
    ]
    assert head[:5] == ["what grows", "to", "n", "set-up, s", "training, s"]
    assert head[5:] == ["an image, µs", "process, s", "memory, MiB"]
    assert rows == [
        ["epochs", "1", "3", "0.50", "2.00", "125,000", "12.0", "300"],
        ["epochs", "2", "1", "0.50", "4.00", "125,000", "24.0", "1,200"],
        ["epochs", "exponent", "", "0.00", "1.00", "0.00", "1.00", "2.00"],
    ]


def test_a_gpu_has_a_column_more() -> None:
    figures = [measured(device_peak_mib=50.0 * size, images=size) for size in (100, 4)]
    lines = scale_table(read_rows(on_record("a.csv", *figures))).splitlines()
    assert lines[0].endswith("| memory, MiB   | GPU memory, MiB   |")
    last = [line.split("|")[-2].strip() for line in lines[2:]]
    assert last == ["200", "5,000", "1.00"]


def test_a_table_says_what_it_was_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "RESULTS", Path())
    others = measured(epochs=2)
    on_record("a_scale_.csv", measured(), others)
    on_record("b_scale_.csv", measured(on_host=True), others | {"on_host": True})
    text = tables()
    assert text.count("On CPU, 32-true, python 3, with images ") == 2
    assert "images 100, batch size 8, processes 1, width 4, 16 images an epoch" in text
    words = ("on the device", "[a_scale_.csv]", "in host memory", "[b_scale_.csv]")
    places = [text.index(word) for word in words]
    assert places == sorted(places)


@pytest.mark.parametrize("on_host", [False, True])
def test_images_stay_in_host_memory_when_asked(on_host: bool) -> None:
    data = RandomImages(20, 4, on_host=on_host)
    data.setup()
    assert data.sizes() == {"train": 20, "val": 0, "test": 10}
    assert data.stays_on_host(torch.device("cpu")) == on_host


@pytest.mark.parametrize("on_host", [False, True])
def test_a_training_is_measured(on_host: bool, tmp_path: Path) -> None:
    found = scale_run(
        str(tmp_path),
        images=100,
        epochs=2,
        batch_size=8,
        images_per_epoch=20,
        on_host=on_host,
    )
    assert found["images_trained"] == 2 * 16  # whole batches
    assert found["set_up_seconds"] > 0
    assert found["fit_seconds"] > 0
    assert found["peak_mib"] > 100  # PyTorch alone takes more
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_every_size_gets_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def train_once(flags: dict[str, Any]) -> dict[str, Any]:
        asked.append(flags)
        return measured() | flags

    monkeypatch.setattr(scale, "train_once", train_once)
    scale.scale(
        "out/a.csv",
        images=(100, 300),
        epochs=(1, 2),
        batch_sizes=(8,),
        processes=(1,),
        on_host=True,
        repeats=2,
    )
    with Path("out/a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["images"], row["epochs"]) for row in rows] == 2 * [
        ("100", "1"),
        ("300", "1"),
        ("100", "2"),
    ]
    assert all(flags["on_host"] is True for flags in asked)
    assert "| training images | exponent |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_of_its_own(processes: int) -> None:
    flags = {"images": 100, "epochs": 1, "batch_size": 8, "images_per_epoch": 16}
    found = scale.train_once({**flags, "processes": processes, "device": "cpu"})
    assert found["processes"] == processes
    assert found["images_trained"] == 16
    assert found["seconds"] > found["set_up_seconds"] + found["fit_seconds"]
    assert found["command"].startswith("python ")
    assert str(Path(sys.executable)) not in found["command"]
