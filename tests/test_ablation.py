"""The ablation: steps from two files, each measured, and a table from the record."""

import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation as script
from benchmarks import recipe
from benchmarks.ablation import (
    PROJECT,
    STEPS,
    Row,
    ablation,
    changed_flags,
    find_steps,
    gain_and_p,
    read_both,
    section,
)
from benchmarks.compare import paired
from benchmarks.tables import Run, read_runs, with_table
from common import cli
from record import held_out, runs_of, write_recipe, write_runs

OUTPUT = Path("out/runs.csv")
NAMES = ["plain", "label smoothing", "crop_padding"]


def test_every_step_keeps_those_before_it_in_the_order_of_the_table() -> None:
    own = {"data_dir": "images", "max_epochs": None}
    later = {"crop_padding": 2, "lr": 0.02, "label_smoothing": 0.1, "lr_steps": 50}
    files = (
        write_recipe("plain", seed=1),
        write_recipe("best", seed=2, tta="flip", **later),
    )
    first, last = read_both(*files, own, select=True)
    steps = find_steps("plain", first, last)
    assert [name for name, _ in steps] == [
        "plain",
        "label smoothing",
        "batch size and learning rate",
        "crop_padding",
    ]
    settled: dict[str, Any] = {}
    expected: list[dict[str, Any]] = [
        {},
        {"label_smoothing": 0.1},
        {"lr": 0.02, "lr_steps": 50},
        {"crop_padding": 2},
    ]
    for (_, flags), changes in zip(steps, expected, strict=True):
        settled |= changes
        assert flags == first | settled
    read = first["data_dir"], first["max_epochs"], first["tta"]
    assert read == ("images", 1, "none")


def test_the_steps_lead_from_the_first_recipe_of_the_project_to_the_last() -> None:
    seed, best = (
        str(PROJECT / "configs" / name) for name in ("seed.yaml", "best.yaml")
    )
    first, last = read_both(seed, best, {"max_epochs": 8}, select=False)
    steps = find_steps("seed", first, last)
    assert len(steps) > 2
    assert recipe.recipe_name("x", steps[-1][1]) == recipe.recipe_name("x", last)
    assert {flag for flags in STEPS.values() for flag in flags} <= {*first}


def test_the_table_has_means_gains_and_p_for_each_step() -> None:
    """The expectations are computed by hand, from the seeds that both rows have.

    Smoothing gains 1, 2 and 3 points, so t = 2 sqrt(3), and with two degrees of freedom
    p = 1 - t / sqrt(2 + t ** 2) = 0.0742.
    """
    start = "on cifar10, 8 epochs"
    runs = [
        *held_out(f"seed {start}, flip none", [0.90, 0.91, 0.92]),
        *held_out(
            f"smooth {start}, flip none, label_smoothing 0.1", [0.91, 0.93, 0.95]
        ),
        *held_out(f"flip {start}, label_smoothing 0.1", [0.90, 0.92]),
        *held_out(f"rate {start}, lr 0.02, label_smoothing 0.1", [0.95]),
    ]
    assert section(runs).splitlines() == [
        "cifar10, 8 epochs, held-out accuracy, CPU, 32-true:",
        "",
        "| step | changes | accuracy | n | gain, points | p | gain in all | p |",
        "|---|---|---|---|---|---|---|---|",
        "| seed | `--flip none` | 91.00 ± 1.00 % (90.00 to 92.00) | 3 |  |  |  |  |",
        "| smooth | `--label_smoothing 0.1` | 93.00 ± 2.00 % (91.00 to 95.00) | 3 "
        "| +2.00 ± 1.00 | 0.074 | +2.00 ± 1.00 | 0.074 |",
        "| flip | `--flip random` | 91.00 ± 1.41 % (90.00 to 92.00) | 2 "
        "| -1.00 ± 0.00 |  | +0.50 ± 0.71 |  |",
        "| rate | `--lr 0.02` | 95.00 % | 1 | +5.00 |  | +5.00 |  |",
    ]


def test_rows_without_a_seed_in_common_have_no_gain() -> None:
    rows = [Row("a", {}, {"0": 0.9, "2": 0.7}), Row("b", {}, {"1": 0.8})]
    assert gain_and_p(*rows) == ("", "")
    assert gain_and_p(rows[0], Row("b", {}, {"2": 0.8, "3": 0.1})) == ("+10.00", "")


def test_runs_that_do_not_compare_are_in_tables_of_their_own() -> None:
    runs = [
        *held_out("a on x, 8 epochs", [0.90]),
        *held_out("a on x, 9 epochs", [0.91]),
        *held_out("b on x, 9 epochs, lr 0.1", [0.92]),
        *runs_of("b on x, 8 epochs, lr 0.1", [0.93]),
        *(run | {"device": "GPU"} for run in held_out("b on x, 8 epochs", [0.94])),
        *held_out("a on x, 8 epochs", [0.80]),  # of the same seed, and newer
    ]
    heads, tables = (section(runs).split("\n\n")[start::2] for start in (0, 1))
    found = [
        [line.split(" | ")[2] for line in rows.splitlines()[2:]] for rows in tables
    ]
    assert dict(zip(heads, found, strict=True)) == {
        "x, 8 epochs, held-out accuracy, CPU, 32-true:": ["80.00 %"],
        "x, 9 epochs, held-out accuracy, CPU, 32-true:": ["91.00 %", "92.00 %"],
        "x, 8 epochs, test accuracy, CPU, 32-true:": ["93.00 %"],
        "x, 8 epochs, held-out accuracy, GPU, 32-true:": ["94.00 %"],
    }


def test_changes_are_those_of_the_row_above() -> None:
    before = {"lr": "0.02", "flip": "none", "cutout": "4"}
    after = {"flip": "none", "cutout": "6", "ema_decay": "0.9"}
    changed = "`--lr auto` `--cutout 6` `--ema_decay 0.9`"
    assert changed_flags(before, after) == changed
    assert changed_flags(after, after) == ""


def test_an_ablation_that_was_stopped_goes_on(
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recipe, "commit_of_code", lambda: "clean")
    plain_train, trained = recipe.quietly_train, []

    def train_until_stopped(flags: dict[str, Any]) -> dict[str, Any]:
        trained.append((flags["name"], flags["label_smoothing"], flags["crop_padding"]))
        if len(trained) == 5:
            raise KeyboardInterrupt
        return plain_train(flags)

    monkeypatch.setattr(recipe, "quietly_train", train_until_stopped)
    arguments: dict[str, Any] = {
        "first": write_recipe("plain"),
        "last": write_recipe("best", crop_padding=2, label_smoothing=0.1),
        "seeds": 2,
        "select": True,
        "data_dir": str(image_folder),
        "output": str(OUTPUT),
    }
    with pytest.raises(KeyboardInterrupt):
        ablation(**arguments)
    rows = [(row["seed"], row["recipe"].split(" on ")[0]) for row in read_runs(OUTPUT)]
    assert rows == [("0", name) for name in NAMES] + [("1", NAMES[0])]
    ablation(**arguments)
    assert trained == [
        ("plain_seed0", 0.0, 4),
        ("label_smoothing_seed0", 0.1, 4),
        ("crop_padding_seed0", 0.1, 2),
        ("plain_seed1", 0.0, 4),
        ("label_smoothing_seed1", 0.1, 4),  # stopped
        ("label_smoothing_seed1", 0.1, 4),
        ("crop_padding_seed1", 0.1, 2),
    ]
    runs = read_runs(OUTPUT)
    assert len(runs) == 6
    assert {run["test/acc"] for run in runs} == {run["seconds"] for run in runs} == {""}
    shown = capsys.readouterr().out
    assert shown.endswith(f"{section(runs)}\n")
    assert f"crop_padding | `--crop_padding 2` | {shares(runs, 2)} | 2 | " in shown


def shares(runs: list[Run], step: int) -> str:
    low, high = sorted(100 * float(run["val/acc"]) for run in runs[step::3])
    spread = (high - low) / math.sqrt(2)
    return f"{(low + high) / 2:.2f} ± {spread:.2f} % ({low:.2f} to {high:.2f})"


@pytest.mark.parametrize(("select", "val_size"), [(False, 0), (True, "auto")])
def test_seeds_and_protocol_are_those_asked_for(
    select: bool, val_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(
        step: str, flags: dict[str, Any], seeds: list[int], *_: Any, **__: Any
    ) -> None:
        asked.append((step, seeds, flags["val_size"], flags["max_epochs"]))
        write_runs(OUTPUT, held_out("a on x, 8 epochs", [0.9]))

    monkeypatch.setattr(script, "put_on_record", note)
    files = write_recipe("plain"), write_recipe("best", cutout=4)
    ablation(*files, 2, 7, 5, select=select, output=str(OUTPUT))
    assert asked == [
        (step, [seed], val_size, 5) for seed in (7, 8) for step in ("plain", "cutout")
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--last", "plain.yaml"], "--first and --last are the same recipe; give two"),
        (["--last", "no.yaml"], "--last no.yaml: no such file"),
        (["--last", "long.yaml"], "--first has max_epochs 1, --last has 2; give both"),
        (["--last", "lrr.yaml"], "'lrr' is not accepted"),
        (["--last", "b.yaml", "--seeds", "0"], "--seeds must be a whole number, at le"),
        (["--last", "b.yaml", "--max_epochs", "0"], "--max_epochs must be "),
        (["--last", "b.yaml", "--output", "other.csv"], "such as 'a on x, 8 epochs'; "),
        (["--last", "b.yaml", "--output", "tested.csv"], "holds runs of another ablat"),
        (["--page"], f"--output {OUTPUT}: no such file; measure without --page"),
        (["--page", "--output", "odd.csv"], "'mine' is no recipe of ablation.py"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    reason: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_recipe("plain")
    write_recipe("b", cutout=4)
    write_recipe("long", max_epochs=2, cutout=4)
    write_recipe("lrr", lrr=1)
    started = f"plain on {image_folder.name}, 1 epochs, batch_size 32, lr 0.01"
    kept = {
        "other": held_out("a on x, 8 epochs", [0.9]),
        "tested": runs_of(f"{started}, base_width 4", [0.9]),
        "odd": held_out("mine", [0.9]),
    }
    for name, runs in kept.items():
        write_runs(Path(f"{name}.csv"), runs)
    argv = ["ablation.py", "--first", "plain.yaml", "--data_dir", str(image_folder)]
    argv += ["--select", "--output", str(OUTPUT), *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(script, "PAGE", Path("page.md"))
    Path("page.md").write_text("<!-- ablation: begin -->\nold\n<!-- ablation: end -->")
    with pytest.raises(SystemExit) as end:
        cli.run("ablation.py", ablation)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not OUTPUT.exists()
    assert "\nold\n" in Path("page.md").read_text()


def test_the_page_is_written_from_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PAGE", Path("page.md"))
    empty = "a\n<!-- ablation: begin -->\n{}\n<!-- ablation: end -->\nz"
    Path("page.md").write_text(empty.format("old"))
    runs = held_out("a on x, 8 epochs", [0.9])
    write_runs(Path("runs.csv"), runs)
    ablation(page=True, output="runs.csv")
    assert Path("page.md").read_text() == empty.format(section(runs))


def test_the_page_has_what_is_on_record() -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    if script.RUNS.exists():
        assert with_table(page, section(read_runs(script.RUNS)), "ablation") == page
    else:
        assert with_table(page, "This has not been measured yet.", "ablation") == page


def test_what_the_page_says_of_averages_at_batch_512_is_right() -> None:
    page = " ".join(script.PAGE.read_text(encoding="utf-8").split())
    trials = read_runs(script.RUNS.with_name("selection.csv"))
    lost = []
    for seed in ("0", "1"):
        before, after = (
            float(run["val/acc"])
            for runs, step in (
                (read_runs(script.RUNS), "border of the crop"),
                (trials, "averaged weights"),
            )
            for run in runs
            if run["recipe"].startswith(f"{step} on") and run["seed"] == seed
        )
        lost.append(f"{100 * (before - after):.1f}")
    assert f"they lost {' and '.join(lost)} points with seeds 0 and 1" in page
    assert f"an epoch has {45_000 // 512} of them" in page


def test_what_the_page_says_of_three_runs_is_right() -> None:
    page = " ".join(script.PAGE.read_text(encoding="utf-8").split())
    one = 100 * math.sqrt(0.9 * 0.1 / 5000)
    assert f"that is {one:.2f} points" in page
    # 97.5 % of Student's t with two and with four degrees of freedom
    three, five = 4.302653 / math.sqrt(3), 2.776445 / math.sqrt(5)
    assert f"before their mean is {three:.1f} times" in page
    assert f"with five it is {five:.1f} times" in page
    for least, count in ((three, 3), (five, 5)):
        around = [-1.0, *[0.0] * (count - 2), 1.0]
        deviation = statistics.stdev(around)
        gains = [least + number / deviation for number in around]
        assert paired(gains) == pytest.approx(0.05, abs=1e-5)
