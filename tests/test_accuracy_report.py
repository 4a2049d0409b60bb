"""The dated report of what is on record."""

import datetime
from pathlib import Path

import pytest

from benchmarks import accuracy_report as script
from benchmarks.accuracy_report import accuracy_report, page
from benchmarks.tables import Run, results_table
from common.errors import InputError
from record import runs_of

TODAY = datetime.date(2026, 11, 23)


def dated(recipe: str, shares: list[float], **others: str) -> list[Run]:
    same = {"date": "2026-11-22", "commit": "0123456789abcdef", "max_lr": "0.01"}
    same |= {"command": f"python train.py --name {recipe}", "versions": "torch 2"}
    return runs_of(recipe, shares, **(same | others))


def test_the_report_has_every_run_and_what_can_be_compared() -> None:
    runs = dated("new", [0.93, 0.94, 0.95]) + dated("plain", [0.90, 0.91, 0.92])
    runs += dated("rare", [0.5], device="GPU")
    runs += dated("plain", [0.91], date="2026-11-23")  # seed 0 again
    text = page(runs, TODAY)
    assert text.startswith("# Accuracy, 2026-11-23\n")
    assert results_table(runs) in text
    assert (
        "plain -> new\n- test accuracy: +2.67 points, p = 0.025, from "
        "91.33 ± 0.58 % (91.00 to 92.00), n = 3, to 94.00 ± 1.00 %" in text
    )
    assert text.count(" -> ") == 1
    assert (
        "\nplain on CPU:\n\n"
        "| seed | test accuracy | with flip TTA | val accuracy | max LR | date | "
        "commit |\n|---|---|---|---|---|---|---|\n"
        "| 0 | 91.00 % |  |  | 0.01 | 2026-11-23 | 0123456789 |\n"
        "| 1 | 91.00 % |  |  | 0.01 | 2026-11-22 | 0123456789 |\n"
        "| 2 | 92.00 % |  |  | 0.01 | 2026-11-22 | 0123456789 |\n" in text
    )
    assert "\nrare on GPU:\n" in text
    assert text.count("- `python train.py --name plain`\n") == 1
    assert text.count("- torch 2\n") == 1


def test_each_accuracy_of_a_comparison_is_an_item_of_a_list() -> None:
    shares = {"plain": [0.90, 0.91, 0.92], "new": [0.93, 0.94, 0.95]}
    runs = [run for name in shares for run in dated(name, shares[name])]
    text = page([run | {"test/acc_tta": run["test/acc"]} for run in runs], TODAY)
    [compared] = [part for part in text.split("\n\n") if " -> " in part]
    assert [line[:16] for line in compared.splitlines()] == [
        "plain -> new",
        "- test accuracy:",
        "- with flip TTA:",
    ]


def test_too_few_runs_are_not_compared() -> None:
    text = page(dated("a", [0.9, 0.91, 0.92]) + dated("b", [0.9, 0.91]), TODAY)
    assert "\nNo two recipes have.\n" in text


def test_the_command_writes_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = dated("a", [0.9])
    monkeypatch.setattr(script, "runs_of_configs", lambda: runs)
    accuracy_report("report.md")
    text = Path("report.md").read_text(encoding="utf-8")
    assert text == page(runs, datetime.date.today())
    with pytest.raises(InputError, match=r"--output no/report\.md: no such folder"):
        accuracy_report("no/report.md")
