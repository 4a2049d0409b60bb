"""The short runs of small networks: what is recorded, and what is said about it."""

import json
from pathlib import Path

import pytest

from benchmarks import lr_small as script
from benchmarks.lr_small import (
    LRS,
    PAGE,
    Comparison,
    Setting,
    compare,
    lr_small,
    read_picks,
    summary,
    table,
    verdict,
)
from benchmarks.rows import read_rows
from benchmarks.tables import with_table

ONLY = Setting(4, "real", 32, 0)


@pytest.fixture
def quick(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the images of a single setting, with a record of its own."""
    for name, value in {
        "CURVES": Path("curves.jsonl"),
        "RUNS": Path("runs.csv"),
        "EPOCHS": {"real": {32: 1}},
        "HELD_OUT": {"real": 30},
    }.items():
        monkeypatch.setattr(script, name, value)
    return str(image_folder)


def test_what_is_missing_is_recorded_and_no_more(
    quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr_small(quick, (4,), (32,), seeds=1, curves_only=True)
    assert not script.RUNS.exists()
    [curve] = map(json.loads, script.CURVES.read_text().splitlines())
    assert (len(curve["lrs"]), curve["classes"]) == (100, 3)
    lr_small(quick, (4,), (32,), seeds=1)
    assert len(script.CURVES.read_text().splitlines()) == 1
    rates = list(dict.fromkeys([*LRS, read_picks()[ONLY]]))  # a run of each, once
    rows = read_rows(script.RUNS)
    assert [float(row["lr"]) for row in rows] == rates
    assert {row["seed"] for row in rows} == {"0"}
    assert all(0 <= float(row["val/acc"]) <= 1 for row in rows)
    script.RUNS.write_text("".join(script.RUNS.read_text().splitlines(True)[:-1]))
    trained = []
    monkeypatch.setattr(script, "put_on_record", lambda *given: trained.append(given))
    lr_small(quick, (4,), (32,), seeds=1)
    [(setting, flags)] = trained
    assert (setting, flags["lr"]) == (ONLY, rates[-1])


def test_the_pick_is_compared_with_the_best_fixed_rate_of_its_seed() -> None:
    fixed = dict(zip(LRS, (0.2, 0.3, 0.5, 0.4), strict=True))
    other = ONLY._replace(seed=1)
    accuracies = {(ONLY, lr): share for lr, share in fixed.items()}
    accuracies |= {(other, lr): share / 2 for lr, share in fixed.items()}
    accuracies |= {(ONLY, 0.007): 0.45, (other, 0.002): 0.3}
    picks = {ONLY: 0.007, other: 0.002, ONLY._replace(seed=2): 0.01}
    found = compare(accuracies, picks)
    assert found == {(4, "real", 32): [(0.007, 0.45, 0.5), (0.002, 0.3, 0.25)]}
    shown = ["2", "0.002 to 0.007", "37.5", "37.5", "90.0", "105.0"]
    assert summary(found[4, "real", 32]) == shown
    assert summary([]) == ["0", *[""] * 5]
    assert compare(accuracies, {ONLY: 0.008}) == {}  # no run with this pick


def test_where_a_pick_falls_short_is_said() -> None:
    good, bad = Comparison(0.01, 0.96, 1.0), Comparison(0.01, 0.94, 1.0)
    found = {
        (4, "real", 64): [good],
        (8, "real", 64): [bad, good, good],
        (16, "shapes", 64): [bad, bad, good],
    }
    assert verdict(found).splitlines() == [
        "Rows with less than 95 % of the best of four in the mean of its seeds: "
        "base width 16, shapes, batch 64.",
        "Rows with less than 95 % of the best of four in one seed or more: "
        "base width 8, real, batch 64; base width 16, shapes, batch 64.",
    ]
    assert verdict({}).count(": none.") == 2


def test_the_page_is_what_is_on_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, table(), "lr_small") == page
