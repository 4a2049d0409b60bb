"""What has been measured: it stays on record, and is compared honestly."""

import json
import math
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import compare, measure, pace, scale, ship, tables
from benchmarks.compare import find_recipe, page
from benchmarks.gains import comparison, gain, left_out_table, steps_tables
from benchmarks.pictures import sweep_figure
from benchmarks.recipes import read_recipe
from benchmarks.rows import RESULTS, add_row, read_rows, summary, today
from benchmarks.runs import (
    SELECTION,
    add_run,
    labels,
    median,
    percent,
    read_runs,
    results,
    results_table,
    runs_of_configs,
)
from benchmarks.studies import (
    last_epochs,
    photos,
    screening,
    small_maps,
    unknown_images,
)
from benchmarks.sweeps import (
    AUTO,
    Gap,
    Sweep,
    find_gap,
    find_sweeps,
    half_width,
    sweep_table,
    verdict,
)
from common import cli
from common.errors import InputError
from config import Config
from datamodule import DEFAULT_VAL_SIZE
from machine.provenance import PROJECT
from record import SEED, cells, held_out, runs_of, together, write_runs

# The reach of an interval in standard errors, from printed tables of the normal
# distribution.
ONE = 1.959964


def test_rows_may_differ_in_their_columns() -> None:
    file = Path("new/rows.csv")
    assert read_rows(file, "a").empty
    add_row(file, {"a": 1, "b, c": 'x "y"\nz'})
    add_row(file, {"d": None, "a": 0.1})
    assert file.read_bytes() == b'a,"b, c",d\n1,"x ""y""\nz",\n0.1,,\n'
    rows = read_rows(file, "a", "d", text=["a"])
    assert rows["a"].tolist() == ["1", "0.1"]
    assert rows["b, c"][0] == 'x "y"\nz'
    assert rows.isna().to_numpy().tolist() == [
        [False, False, True],
        [False, True, True],
    ]


def test_what_a_spreadsheet_makes_of_a_file_is_read() -> None:
    """A mark before UTF-8, other line ends, and rows without a cell."""
    file = Path("rows.csv")
    file.write_bytes(b"\xef\xbb\xbfa,b\r\n1,x\r\n,\r\n2,y\r\n\r\n")
    assert read_rows(file, "a").to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}
    add_row(file, {"a": 3, "b": "z"})
    assert file.read_bytes() == b"a,b\n1,x\n2,y\n3,z\n"


def test_two_columns_of_one_name_are_refused() -> None:
    Path("rows.csv").write_text("a,b,a\n1,2,3\n")
    for use in (read_rows, lambda file: add_row(file, {"a": 1})):
        with pytest.raises(InputError, match="two columns of the same name"):
            use(Path("rows.csv"))


def test_numbers_and_words_are_read_as_they_were_written() -> None:
    add_row(Path("rows.csv"), {"x": 0.7988007068634033, "flip": "none", "n": "NA"})
    add_row(Path("rows.csv"), {"x": 1e-05, "flip": "null", "n": ""})
    rows = read_rows(Path("rows.csv"))
    assert rows["x"].tolist() == [0.7988007068634033, 1e-05]
    assert rows["flip"].tolist() == ["none", "null"]
    assert rows["n"][0] == "NA"


def test_records_that_still_grow_keep_their_form() -> None:
    for name in ("2026-11-25_lr_small_cpu", "2026-11-26_screening_cuda"):
        file = RESULTS / f"{name}.csv"
        content = file.read_bytes()
        Path("copy.csv").write_bytes(content)
        [last] = read_rows(file, text=[*read_rows(file)]).tail(1).to_dict("records")
        add_row(Path("copy.csv"), {str(column): cell for column, cell in last.items()})
        ending = content[content.rindex(b"\n", 0, -1) + 1 :]
        assert Path("copy.csv").read_bytes() == content + ending


def add_many(name: str) -> None:
    for number in range(20):
        add_row(Path("rows.csv"), {"of": name, "number": number})


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_no_row_is_lost_when_several_processes_measure() -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_many, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = read_rows(Path("rows.csv"))
    assert rows.groupby("of")["number"].apply(list).to_dict() == {
        name: [*range(20)] for name in "abc"
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'a'"),
        (b"# A page\n\nof text, with a comma\n", "has no column 'a'"),
        (b"a,b\n1,2\n3\n", "row 2 does not have the 2 cells"),
        (b"a,b\n1,2,3\n", "row 1 does not have the 2 cells"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no CSV file"),
    ],
)
def test_another_file_is_refused(content: bytes, message: str) -> None:
    file = Path("file.csv")
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(file, "a")


@pytest.mark.parametrize(
    ("function", "flags"),
    [
        (measure.measure, "small.yaml --output FILE"),
        (compare.compare, "seed best --runs FILE"),
        (ship.ship, "--run run --runs FILE"),
        (pace.pace, "--output FILE"),
        (small_maps.small_maps, "--output FILE"),
        (scale.scale, "--output FILE"),
        (unknown_images.unknown_images, "--output FILE --ckpt_path none.ckpt"),
        (screening.screening, "first --output FILE"),
        (last_epochs.last_epochs, "--output FILE --folder kept"),
        (photos.photos, "--output FILE"),
    ],
)
def test_every_measurement_refuses_it_at_once(
    function: Callable[..., Any],
    flags: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And leaves it as it was, in one line with exit code 2."""
    Path("small.yaml").write_text("accelerator: cpu\nmax_epochs: 1\nlr: 0.01\n")
    Path("notes.md").write_text("# Notes\n\nof mine\n")
    arguments = flags.replace("FILE", "notes.md").split()
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.run("program.py", function)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("program.py: error: notes.md has no column")
    assert said.count("\n") == 1
    assert Path("notes.md").read_text() == "# Notes\n\nof mine\n"


def test_a_finished_run_is_put_on_record(
    quick_train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = quick_train(name="mine", max_epochs=1, lr="auto", lr_steps=40)
    monkeypatch.setattr(tables, "TABLES", ())
    monkeypatch.setattr(
        tables,
        "add_run",
        lambda folder, recipe, flags, timed: add_run(
            folder, recipe, flags, Path("r"), timed=timed
        ),
    )
    tables.tables(add="runs/mine", recipe="quick", timed=False)
    [row] = read_runs(Path("r")).to_dict("records")
    assert (row["recipe"], row["lr"], row["base_width"]) == ("quick", "auto", "4")
    assert row["max_lr"] == metrics["max_lr"]
    assert row["test/acc"] == metrics["test/acc"]
    assert pd.isna(row["seconds"])
    with pytest.raises(InputError, match=r"--add \.: no metrics\.json in it"):
        tables.tables(add=".")


def test_the_most_accurate_comes_first_and_what_is_not_known_is_left_out() -> None:
    metrics: dict[str, Any] = {"val/acc": None, "seconds": 5.0, "fit_seconds": 2.5}
    metrics |= {"seed": 0, "device": "CPU", "precision": "32-true", "commit": "a1b2"}
    for recipe, accuracy, timed in (("a", 0.5, True), ("b", 0.9, False)):
        content = json.dumps(metrics | {"test/acc": accuracy})
        Path("metrics.json").write_text(content)
        config = Config(data="synthetic", max_epochs=3)
        add_run(Path(), recipe, config, Path("runs.csv"), timed=timed)
    assert cells(results_table(read_runs(Path("runs.csv")))) == [
        ["b on shapes, 3 epochs", "90.00 %", "1", "", "", "CPU, 32-true"],
        ["a on shapes, 3 epochs", "50.00 %", "1", "5.00", "2.50", "CPU, 32-true"],
    ]


def test_a_run_is_of_the_code_that_ran() -> None:
    """Which is not that of metrics.json, where a run has gone on after a change."""
    metrics = {"seed": 0, "device": "CPU", "precision": "32-true", "commit": "new"}
    Path("metrics.json").write_text(json.dumps(metrics | {"test/acc": 0.5}))
    for commit in (None, "old"):
        add_run(Path(), "a", Config(data="synthetic"), Path("runs.csv"), commit=commit)
    assert read_runs(Path("runs.csv"))["commit"].tolist() == ["new", "old"]


def test_runs_are_ranked_by_the_test_images_where_there_are_some() -> None:
    both = runs_of("a", [0.8]).assign(**{"val/acc": 0.99})
    runs = together(both, held_out("c", [0.85]), runs_of("b", [0.9]))
    found = [name.split()[0] for name in results(runs)["recipe"]]
    assert found == ["b", "c", "a"]


def test_the_newest_run_of_a_seed_counts_and_devices_are_not_mixed() -> None:
    runs = together(
        runs_of("a", [0.1, 0.5]),
        runs_of("a", [0.7]),
        runs_of("a", [0.9], device="GPU"),
    )
    found = results(runs)[["test accuracy", "n", "on"]].to_numpy().tolist()
    assert found == [
        ["90.00 %", 1, "GPU, 32-true"],
        [percent(pd.Series([0.7, 0.5])), 2, "CPU, 32-true"],
    ]


def test_names_have_the_flags_in_which_recipes_differ() -> None:
    runs = together(
        runs_of("a", [0.5], lr="0.1", cutout="4"),
        runs_of("a", [0.5], lr="0.2", cutout="4"),
        runs_of("a", [0.5], lr="0.2", max_epochs="3"),
        runs_of("b", [0.5], lr="0.1"),
    )
    start = "a on cifar10, 24 epochs"
    names = ["a on cifar10, 3 epochs", "b on cifar10, 24 epochs"]
    assert labels(runs).tolist() == [f"{start}, lr 0.1", f"{start}, lr 0.2", *names]
    assert labels(runs, without=("lr",)).tolist() == [start, start, *names]


def test_percent_of_one_several_and_none() -> None:
    assert percent(pd.Series([0.5])) == "50.00 %"
    assert percent(pd.Series([0.5, np.nan, 0.6])) == "55.00 ± 7.07 % (50.00 to 60.00)"
    assert percent(pd.Series([], dtype=float)) == ""
    assert summary([0.5, 1.0, 2.0], 2) == "1.00 (0.50-2.00)"


def test_a_short_time_has_hundredths() -> None:
    times = ([59.994], [60.4, 1.0, 99.0], [np.nan])
    assert [median(pd.Series(seconds)) for seconds in times] == ["59.99", "60", ""]


def test_two_recipes_are_compared_where_both_have_run() -> None:
    runs = together(
        runs_of("plain", [0.90, 0.91, 0.92]),
        runs_of("new", [0.93, 0.94, 0.95]),
        runs_of("new", [0.99, 0.99, 0.99], device="GPU"),
    )
    plain, new = "plain on cifar10, 24 epochs", "new on cifar10, 24 epochs"
    # t = 0.03 / sqrt(2 / 3 * 0.01 ** 2) = 3.674 with 4 degrees of freedom
    assert comparison(runs, plain, new).to_numpy().tolist() == [
        [
            "test accuracy",
            "91.00 ± 1.00 % (90.00 to 92.00), n = 3",
            "94.00 ± 1.00 % (93.00 to 95.00), n = 3",
            "+3.00",
            "0.021",
            "CPU, 32-true",
        ]
    ]


def test_held_out_images_that_both_have_seen_are_compared_in_pairs() -> None:
    runs = together(
        held_out("plain", [0.90, 0.92, 0.94, 0.99]),
        held_out("new", [0.911, 0.929, 0.95]),
    )
    names = "plain on cifar10, 24 epochs", "new on cifar10, 24 epochs"
    [row] = comparison(runs, *names).to_dict("records")
    assert row["from"] == "92.00 ± 2.00 % (90.00 to 94.00), n = 3"
    # Gains of 1.1, 0.9 and 1.0: t = 1 / (0.1 / sqrt(3)) with 2 degrees of freedom.
    assert (row["gain, points"], row["p"]) == ("+1.00", "0.0033")
    other_seeds = runs.assign(seed=range(len(runs)))
    [row] = comparison(other_seeds, *names).to_dict("records")
    assert float(row["p"]) > 0.5


def test_runs_of_several_devices_are_compared_when_asked() -> None:
    runs = together(
        runs_of("plain", [0.90, 0.91, 0.92]),
        runs_of("new", [0.93, 0.94, 0.95], device="GPU"),
    )
    names = "plain on cifar10, 24 epochs", "new on cifar10, 24 epochs"
    assert comparison(runs, *names).empty
    [row] = comparison(runs, *names, across=True).to_dict("records")
    assert (row["gain, points"], row["p"], row["on"]) == ("+3.00", "0.021", "several")


def test_too_few_runs_and_unclear_names_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = together(
        runs_of("a 1", [0.90, 0.91, 0.92]),
        runs_of("a 2", [0.93, 0.94]),
        runs_of("a 2", [0.95, 0.96, 0.97], device="GPU"),
        runs_of("b", [0.93, 0.94, 0.95]),
    )
    write_runs(Path("runs.csv"), runs)
    with pytest.raises(InputError, match="at least 3 runs of both 'a 1 on cifar10, 24"):
        compare.compare(["a 1", "a 2"], "runs.csv")
    with pytest.raises(
        InputError, match="'a' is not the name of one recipe: a 1 on ci"
    ):
        compare.compare(["a", "a 2"], "runs.csv")
    with pytest.raises(
        InputError, match="'c' is not the name of one recipe: a 1 on ci"
    ):
        find_recipe(labels(runs), "c")
    with pytest.raises(InputError, match=r"--runs no\.csv: no such file"):
        compare.compare(["a 1", "a 2"], runs="no.csv")
    with pytest.raises(InputError, match="give the names of two recipes, got 3"):
        compare.compare(["a", "b", "c"])
    compare.compare(["a 1", "b on"], "runs.csv")
    shown = capsys.readouterr().out
    assert shown.startswith("a 1 on cifar10, 24 epochs -> b on cifar10, 24 epochs\n\n")
    assert "| +3.00 " in shown


def test_the_report_has_every_run_and_what_can_be_compared() -> None:
    same = {"date": "2026-11-22", "commit": "0123456789abcdef", "versions": "torch 2"}
    plain, new = (same | {"command": f"train.py --name {name}"} for name in "pn")
    runs = together(
        runs_of("new", [0.93, 0.94, 0.95], **new),
        runs_of("plain", [0.90, 0.91, 0.92], **plain),
        runs_of("rare", [0.5], device="GPU", **plain),
        runs_of("plain", [0.91], **plain | {"date": "2026-11-23"}),  # seed 0 again
    )
    text = page(runs)
    assert text.startswith(f"# Accuracy, {today()}\n")
    assert results_table(runs) in text
    assert text.count(" -> ") == 1
    assert "plain on cifar10, 24 epochs -> new on cifar10, 24 epochs" in text
    assert "| +2.67          | 0.025 | CPU, 32-true |" in text
    every = cells(text.split("## Every run\n\n")[1].split("\n\n")[0])
    assert len(every) == 7
    rest = ["0.01", "2026-11-23", "0123456789"]
    assert every[3] == [
        "plain on cifar10, 24 epochs",
        "CPU",
        "0",
        "91.00 %",
        "",
        "",
        *rest,
    ]
    assert text.count("- `train.py --name p`\n") == 1
    assert text.count("- torch 2\n") == 1
    few = page(runs_of("a", [0.9, 0.91], **plain))
    assert "\nNo two recipes have.\n" in few


def test_the_table_of_steps_has_means_gains_and_p_for_each_step() -> None:
    """The expectations are computed by hand, from the seeds that both rows have.

    Smoothing gains 1, 2 and 3 points, so t = 2 sqrt(3), and with two degrees of freedom
    p = 1 - t / sqrt(2 + t ** 2) = 0.0742.
    """
    smooth = {"label_smoothing": "0.1"}
    runs = together(
        held_out("seed", [0.90, 0.91, 0.92], flip="none"),
        held_out("smooth", [0.91, 0.93, 0.95], flip="none", **smooth),
        held_out("flip", [0.90, 0.92], **smooth),
        held_out("rate", [0.95], lr="0.02", **smooth),
    )
    head, _, table = steps_tables(runs).partition("\n\n")
    assert head == "cifar10, 24 epochs, held-out accuracy, CPU, 32-true:"
    two, one = ["+2.00 ± 1.00", "0.074"], "+0.50 ± 0.71"
    assert cells(table) == [
        ["seed", "", "91.00 ± 1.00 % (90.00 to 92.00)", "3", *[""] * 4],
        [
            *("smooth", "`--label_smoothing 0.1`", "93.00 ± 2.00 % (91.00 to 95.00)"),
            *("3", *two, *two),
        ],
        [
            *("flip", "`--flip random`", "91.00 ± 1.41 % (90.00 to 92.00)"),
            *("2", "-1.00 ± 0.00", "", one, ""),
        ],
        ["rate", "`--lr 0.02`", "95.00 %", "1", "+5.00", "", "+5.00", ""],
    ]


def test_what_is_left_out_is_set_against_all_of_it() -> None:
    runs = together(
        held_out("best", [0.90, 0.92], flip="none"),
        held_out("best", [0.95, 0.96, 0.97]),
        held_out("best", [0.94, 0.94, 0.94], flip="none", cutout="0"),
    )
    whole = read_recipe(SEED, {"data": "cifar10"}, select=True)
    assert [[*row[:5]] for row in cells(left_out_table(runs, whole))] == [
        ["all of it", "96.00 ± 1.00 % (95.00 to 97.00)", "3", "", ""],
        [
            *("`--flip none`", "91.00 ± 1.41 % (90.00 to 92.00)", "2"),
            *("-4.50 ± 0.71", ""),
        ],
        [
            *("`--flip none` `--cutout 0`", "94.00 ± 0.00 % (94.00 to 94.00)", "3"),
            *("-2.00 ± 1.00", "0.074"),
        ],
    ]


def test_rows_without_a_seed_in_common_have_no_gain() -> None:
    before = pd.Series({0: 0.9, 2: 0.7})
    assert gain(before, pd.Series({1: 0.8})) == ("", "")
    assert gain(before, pd.Series({2: 0.8, 3: 0.1})) == ("+10.00", "")


def test_p_of_gains_is_that_of_the_printed_tables() -> None:
    """97.5 % of Student's t with two and with four degrees of freedom."""
    for t, count in ((4.302653, 3), (2.776445, 5)):
        around = np.array([-1.0, *[0.0] * (count - 2), 1.0])
        gains = t / math.sqrt(count) + around / around.std(ddof=1)
        assert gain(pd.Series(0.0 * gains), pd.Series(gains / 100))[1] == "0.05"


def test_runs_that_do_not_compare_are_in_tables_of_their_own() -> None:
    runs = together(
        held_out("a", [0.90], max_epochs="8"),
        held_out("a", [0.91], max_epochs="9"),
        held_out("b", [0.92], max_epochs="9", lr="0.1"),
        runs_of("b", [0.93], max_epochs="8", lr="0.1"),
        held_out("b", [0.94], max_epochs="8", device="GPU"),
        held_out("a", [0.80], max_epochs="8"),  # of the same seed, and newer
    )
    parts = steps_tables(runs).split("\n\n")
    found = [[row[2] for row in cells(table)] for table in parts[1::2]]
    assert dict(zip(parts[::2], found, strict=True)) == {
        "cifar10, 8 epochs, held-out accuracy, CPU, 32-true:": ["80.00 %"],
        "cifar10, 9 epochs, held-out accuracy, CPU, 32-true:": ["91.00 %", "92.00 %"],
        "cifar10, 8 epochs, test accuracy, CPU, 32-true:": ["93.00 %"],
        "cifar10, 8 epochs, held-out accuracy, GPU, 32-true:": ["94.00 %"],
    }


def test_only_seeds_that_all_rates_have_are_compared() -> None:
    runs = together(
        held_out("a", [0.5, 0.6, 0.7], lr="0.02")[::-1],
        held_out("a", [0.3, 0.4], lr="0.01"),
        held_out("a", [0.7, 0.8, 0.9], max_lr=0.004),
        held_out("a", [0.2], lr="0.01"),  # measured again
        runs_of("a", [0.0], lr="0.05", val_size="auto"),  # not on held-out images
    )
    [sweep] = find_sweeps(runs)
    place = "CPU, 32-true"
    assert sweep[:4] == ("a on cifar10, 24 epochs", 512, place, DEFAULT_VAL_SIZE)
    assert sweep.accuracies.to_dict("list") == {
        "0.01": [0.2, 0.4],
        "0.02": [0.5, 0.6],
        AUTO: [0.7, 0.8],
    }
    assert sweep.max_lrs[AUTO].tolist() == [0.004, 0.004]


def test_an_interval_is_the_larger_of_that_of_images_and_of_seeds() -> None:
    # sqrt((0.8 * 0.2 + 0.9 * 0.1) / 10_000) = sqrt(0.25 / 10_000)
    one = pd.Series([0.8]), pd.Series([0.9])
    assert half_width(*one, 10_000, 0.05) == pytest.approx(ONE * 0.005)
    # Differences -0.1 and -0.12: standard deviation sqrt(0.0002), by sqrt(2) 0.01.
    # Binomial: sqrt((0.8 * 0.2 + 0.91 * 0.09) / (2 * images)).
    pair = pd.Series([0.79, 0.81]), pd.Series([0.89, 0.93])
    assert half_width(*pair, 10_000, 0.05) == pytest.approx(12.706205 * 0.01)
    binomial = math.sqrt((0.16 + 0.0819) / 4)
    assert half_width(*pair, 2, 0.3) == pytest.approx(1.036433 * binomial)
    assert half_width(*pair, None, 0.05) == pytest.approx(12.706205 * 0.01)
    assert half_width(*one, None, 0.05) == math.inf


def test_an_interval_of_few_seeds_holds_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.9, 0.01, (2000, 2, 3))
    held = [
        abs(first.mean() - second.mean())
        <= half_width(pd.Series(first), pd.Series(second), None, 0.05)
        for first, second in draws
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_gap_is_to_the_best_and_its_interval_to_all() -> None:
    gap = find_gap(pd.DataFrame({"0.01": [0.8], AUTO: [0.9]}), 10_000)
    assert gap is not None
    assert gap.best == "0.01"
    assert gap[1:] == pytest.approx((-10, -10 - 0.5 * ONE, -10 + 0.5 * ONE))
    # The lead of 0.01 is 2 ± 0 points; that of 0.02 is 1 ± 1 and reaches further.
    found = {"0.01": [0.52, 0.52], "0.02": [0.50, 0.52], AUTO: [0.5, 0.5]}
    gap = find_gap(pd.DataFrame(found), None)
    assert gap is not None
    assert gap.best == "0.01"
    assert gap[1:] == pytest.approx((2, 2, 1 + 25.4517))
    assert find_gap(pd.DataFrame({"0.01": [0.8]}), 10_000) is None
    assert find_gap(pd.DataFrame({AUTO: [0.8]}), 10_000) is None
    assert find_gap(pd.DataFrame({"0.01": [], AUTO: []}), 10_000) is None


def test_the_verdict_takes_the_whole_interval() -> None:
    assert verdict(Gap("0.01", 0.1, -0.5, 0.2)) == "within 0.2"
    assert verdict(Gap("0.01", 0.1, -0.5, 0.21)) == "cannot be told"
    assert verdict(Gap("0.01", 0.9, 0.2, 1.6)) == "cannot be told"
    assert verdict(Gap("0.01", 0.9, 0.21, 1.6)) == "not within 0.2"
    assert verdict(None) == "cannot be told"


@pytest.fixture
def sweeps() -> list[Sweep]:
    """Two batch sizes on CIFAR-10, other images, and a sweep that has no auto."""
    small, large = {"batch_size": "64"}, {"batch_size": "128"}
    runs = together(
        held_out("b", [0.8], lr="0.01", **large),
        held_out("b", [0.7], lr="0.02", max_lr=0.02, **large),
        held_out("b", [0.8], max_lr=0.0049, **large),
        held_out("b", [0.5, 0.6], lr="0.04", max_lr=0.04, **small),
        held_out("b", [0.3, 0.4], max_lr=0.006, **small),
        held_out("a", [0.8], images="mine", lr="0.01", **small),
        held_out("a", [0.8], images="mine", max_lr=0.003, **small),
        held_out("c", [0.8], lr="0.01", **small),
    )
    return find_sweeps(runs)


def test_the_table_says_what_was_reached_and_what_can_be_told(
    sweeps: list[Sweep],
) -> None:
    table = sweep_table(sweeps)
    head = [cell.strip() for cell in table.splitlines()[0].split("|")]
    assert head[3:8] == ["n", "0.01", "0.02", "0.04", "auto"]
    # One rate of two on 5,000 images: 2.241 sqrt(0.32 / 5,000) = 1.79 points.
    # Two seeds, 20 points apart in each: 1.960 sqrt((0.2475 + 0.2275) / 10,000) = 1.35.
    end, b, unknown = "CPU, 32-true", "b on cifar10, 24 epochs", "cannot be told"
    assert cells(table) == [
        [
            *("a on mine, 24 epochs", "64", "1", "**80.00**", "", "", "80.00", "0.003"),
            *("0.00 (-inf to inf)", unknown, end),
        ],
        [
            *(b, "64", "2", "", "", "**55.00 ± 7.07**", "35.00 ± 7.07", "0.006 0.006"),
            *("20.00 (18.65 to 21.35)", "not within 0.2", end),
        ],
        [
            *(b, "128", "1", "**80.00**", "70.00", "", "80.00", "0.0049"),
            *("0.00 (-1.79 to 1.79)", unknown, end),
        ],
        ["c on cifar10, 24 epochs", "64", "1", "80.00", *[""] * 5, unknown, end],
    ]


def test_the_picture_shows_every_run_and_what_auto_picked(sweeps: list[Sweep]) -> None:
    panels = sweep_figure(sweeps).axes
    titles = [axes.get_title().split(" ")[0] for axes in panels]
    assert titles == ["a", "b", "c"]
    lines = [np.asarray(line.get_xydata()).tolist() for line in panels[1].lines]
    assert lines == [
        [[0.04, pytest.approx(55)]],
        [[0.01, pytest.approx(80)], [0.02, pytest.approx(70)]],
    ]
    points = [np.asarray(dots.get_offsets()) for dots in panels[1].collections]
    assert points[1] == pytest.approx(np.array([[0.006, 30], [0.006, 40]]))
    assert points[4] == pytest.approx(np.array([[0.0049, 80]]))
    legend = panels[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        *("batch size 64", "batch size 64, picks of auto"),
        *("batch size 128", "batch size 128, picks of auto"),
    ]


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: "/".join(table[:2]))
def test_the_pages_show_what_is_on_record(table: tables.Table) -> None:
    text = (PROJECT / table.page).read_text(encoding="utf-8")
    assert tables.with_table(text, table.write(), table.marker) == text


def test_a_table_that_is_not_up_to_date_is_named_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "PROJECT", tmp_path)
    made = tables.Table("page.md", "results", lambda: "new")
    monkeypatch.setattr(tables, "TABLES", (made,))
    page = "a\n<!-- results: begin -->\n{}\n<!-- results: end -->\nz"
    Path("page.md").write_text(page.format("old"))
    with pytest.raises(InputError, match=r"not up to date: page\.md \(results\); run"):
        tables.tables(check=True)
    assert Path("page.md").read_text() == page.format("old")
    tables.tables()
    assert Path("page.md").read_text() == page.format("new")
    tables.tables(check=True)


def test_figures_in_prose_are_those_on_record() -> None:
    shown, trials = runs_of_configs(read_runs()), read_runs(SELECTION)
    assert 0 < len(shown) < len(read_runs())
    names = (f"{name} on cifar10, 24 epochs" for name in ("seed", "best"))
    [plain, flip] = comparison(shown, *names, across=True).to_dict("records")
    before, after = (
        runs[runs["recipe"] == step].set_index("seed")["val/acc"]
        for runs, step in (
            (read_runs(RESULTS / "ablation.csv"), "border of the crop"),
            (trials, "averaged weights"),
        )
    )
    lost = 100 * (before - after).dropna()
    readme, accuracy = (
        " ".join((PROJECT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/lab/accuracy.md")
    )
    for row, pages in ((plain, (readme, accuracy)), (flip, (readme,))):
        assert float(row["p"]) < 0.01
        for text in pages:
            assert f"{row['gain, points'].lstrip('+')} points" in text
            assert f"(p = {row['p']}" in text
    assert " and ".join(f"{points:.1f}" for points in lost) + " points" in accuracy
    like_photos = trials[trials["recipe"] == "like photos"]["val/acc"]
    assert len(like_photos) == 3
    page_of_photos = (PROJECT / "docs/lab/photos.md").read_text(encoding="utf-8")
    for share in like_photos:
        assert f"{100 * share:.2f} %" in page_of_photos
