"""The pace of the training, measured small."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paces import NoiseDataset, operations
from benchmarks.small_maps import small_maps
from benchmarks.step_profile import step_profile
from benchmarks.tables import with_table
from benchmarks.throughput import (
    PAGE,
    RESULTS,
    pace_table,
    ratios,
    summary,
    throughput,
)
from common.errors import InputError

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "32-true", "base_width": 4}


@pytest.mark.slow  # measures for a minute
def test_a_row_and_a_line_for_each_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "pace.csv"
    throughput(**SMALL, steps=2, repeats=2, output=str(file))
    with file.open() as opened:
        [row] = csv.DictReader(opened)
    assert row["batch_size"] == "16"
    assert row["device"].startswith("cpu: ")
    number = r"\d+\.\d+"
    for name in ("trainer", "loop", "course", "limit"):
        interval = rf"({number}) \(({number})-({number})\)"
        found = re.fullmatch(interval, row[f"{name} images/s"])
        assert found is not None
        middle, low, high = map(float, found.groups())
        assert 0 < low <= middle <= high
    lines = capsys.readouterr().out.splitlines()
    for name in ("trainer/loop", "trainer/course", "trainer/limit"):
        assert f"ratio {name} {row[name]}" in lines
    loop, limit = (
        float(row[f"{name} images/s"].split()[0]) for name in ("loop", "limit")
    )
    assert loop < limit


def test_the_page_shows_what_is_on_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, pace_table()) == page


def test_the_page_shows_the_profiles_and_the_small_maps_on_record() -> None:
    text = PAGE.read_text(encoding="utf-8")
    steps = sorted(RESULTS.glob("2026-11-22_profile_cpu_512_*.md"))
    assert len(steps) == 3
    for step in steps:
        profile = step.read_text(encoding="utf-8")
        time = re.search(r"ms a step: (.+), n = 10", profile)
        pace = re.search(r"images/s: (\d+) ", profile)
        assert time is not None
        assert pace is not None
        assert f"| {time[1]} | {pace[1]} | " in text
        assert f"results/{step.name})" in text
    with (RESULTS / "2026-11-22_small_maps_cpu.csv").open() as opened:
        for row in csv.DictReader(opened):
            names = ("isa", "precision", "convolution")
            figures = ("one by one, ms", "side by side, ms", "ratio")
            assert f"| {' | '.join(row[name] for name in names + figures)} |" in text


def test_small_maps_are_timed_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom_resnet.SMALL_MAP", 0)  # and back at the end
    with pytest.raises(InputError, match="must be at least 1"):
        small_maps("maps.csv", batch_size=2, repeats=0)
    file = tmp_path / "maps.csv"
    small_maps(str(file), batch_size=2, repeats=2)
    with file.open() as opened:
        few, more = csv.DictReader(opened)
    assert few["convolution"] == "512 to 512, 3x3"
    assert more["convolution"] == "256 to 512, 7x7"
    for row in (few, more):
        middle, low, high = map(float, re.findall(r"\d+\.\d+", row["ratio"]))
        assert 0 < low <= middle <= high


def test_ratios_are_those_of_the_same_round() -> None:
    paces = {"trainer": [10.0, 30.0, 20.0], "loop": [20.0, 30.0, 10.0]}
    assert ratios(paces) == {"trainer/loop": [0.5, 1.0, 2.0]}
    assert summary(ratios(paces)["trainer/loop"], 2) == "1.00 (0.50-2.00)"


def test_operations_of_the_network() -> None:
    # Multiplications and additions of an image: 0.6217 billion forward; backward twice
    # as many, but the first convolution needs no gradient of its input.
    assert operations(64) == pytest.approx(1.8615e9, rel=1e-4)


def test_course_way_gives_normalised_images() -> None:
    image, label = NoiseDataset()[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert -1 <= image.min() < image.max() <= 1
    assert 0 <= label < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"repeats": 0}, "must be at least 1"),
        ({"steps": 0}, "must be at least 1"),
        ({"batch_size": 50_001}, "--batch_size must be at most 50000, got 50001"),
        ({"precision": "64-true"}, "--precision must be auto, 32-true, bf16-mixed"),
    ],
)
def test_wrong_flags(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        throughput(**(SMALL | flags))


def test_profile_names_the_operations(tmp_path: Path) -> None:
    page = tmp_path / "results" / "profile.md"
    step_profile(str(page), **SMALL, steps=2)
    text = page.read_text()
    assert re.search(r"ms a step: \d+\.\d \(\d+\.\d-\d+\.\d\), n = 2", text)
    shares = [float(share) for share in re.findall(r"\| (\d+\.\d) % \|", text)]
    assert len(shares) == 20
    assert 50 < sum(shares) <= 100
    assert "`aten::convolution_backward` | 8 |" in text
    with pytest.raises(InputError, match="--steps 3000 --batch_size 16: 6003 batches"):
        step_profile(str(page), **SMALL, steps=3000)
