"""The comparison of runs: which belong together, what differs, what they reached."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import report
from analysis.comparison import (
    differing,
    find_groups,
    read_entries,
    spread,
    write_comparison,
)
from analysis.finished_run import Run
from common.errors import InputError
from config import Config
from training.lr_finder import RangeTest

ROWS = [{"epoch": 0.0, "step": 4.0, "train/loss": 1.0, "val/acc": 0.5}]
METRICS: dict[str, Any] = {
    **{"train/loss": 0.5, "train/acc": 0.81, "val/loss": 0.3, "val/acc": 0.88},
    **{"test/loss": 0.25, "test/acc": 0.9, "max_lr": 0.01, "epochs": 2},
    **{"seconds": 60.0, "images_per_second": None, "device": "Some CPU"},
    **{"precision": "32-true", "versions": "torch 2", "commit": "abc", "command": ""},
}
CONFIG = Config(lr=0.01, data="cifar10", data_dir="/home/me/images")
TEST = RangeTest([0.01, 0.1], [2.0, 1.0], (0.05, 0.1), 0.1)


def make_run(name: str, accuracy: float = 0.9, **flags: Any) -> Run:
    metrics = METRICS | {"test/acc": accuracy}
    return Run(Path("runs", name), replace(CONFIG, **flags), metrics, ROWS)


def save(run: Run) -> str:
    """Write what a comparison reads of a run; its folder."""
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(run.config.record()))
    (run.path / "metrics.json").write_text(json.dumps(run.metrics))
    (run.path / "metrics.csv").write_text("epoch,step,val/acc\n0,4,0.5\n1,8,0.6\n")
    return str(run.path)


def test_runs_that_differ_in_their_seed_belong_together() -> None:
    runs = [
        make_run("a", 0.9, seed=0),
        make_run("b", 0.8, seed=0, cutout=4),
        make_run("c", 0.94, seed=1, data_dir="/elsewhere", report=False),
    ]
    one, other = find_groups(read_entries(runs))
    assert (one.names, other.names) == (["a", "c"], ["b"])
    assert (one.settings, other.settings) == ({"cutout": "8"}, {"cutout": "4"})
    said = {name: " ".join(text.split()) for name, text in one.accuracies.items()}
    assert said["test/acc"] == "92.00 ± 2.83 %, n = 2"  # 0.02 times the root of 2
    assert said["test/acc_tta"] == "\N{EN DASH}"
    assert " ".join(other.accuracies["test/acc"].split()) == "80.00 %, n = 1"


def test_what_a_run_is_judged_by_is_no_seed() -> None:
    flags: list[dict[str, Any]] = [
        {},
        {"lr_steps": 200},
        {"lr_finder": "torch-lr-finder"},
        {"limit_test_batches": 1},
        {"limit_val_batches": 0.5},
    ]
    runs = [make_run(f"run{seed}", seed=seed, **own) for seed, own in enumerate(flags)]
    groups = find_groups(read_entries(runs))
    # Where the rate is given there is no range test.
    names = [["run0", "run1", "run2"], ["run3"], ["run4"]]
    assert [group.names for group in groups] == names
    groups = find_groups(read_entries([run._replace(test=TEST) for run in runs]))
    assert [group.names for group in groups] == [[run.path.name] for run in runs]
    assert groups[1].settings["lr_steps"] == "200"


def test_other_images_are_no_seed() -> None:
    places = ("/data/cats", "/data/cars", "/data/cats")
    runs = [
        make_run(
            f"run{seed}", 0.5 + 0.1 * seed, seed=seed, data="folder", data_dir=place
        )
        for seed, place in enumerate(places)
    ]
    one, other = find_groups(read_entries(runs))
    assert (one.names, other.names) == (["run0", "run2"], ["run1"])
    assert other.settings == {"data_dir": "/data/cars"}


def test_another_device_is_no_seed() -> None:
    run = make_run("b")
    other = run._replace(metrics=METRICS | {"device": "Some GPU"})
    groups = find_groups(read_entries([make_run("a"), other]))
    assert [group.settings for group in groups] == [
        {"device": "Some CPU"},
        {"device": "Some GPU"},
    ]


def test_another_precision_is_no_seed() -> None:
    runs = [make_run(name, precision=name) for name in ("32-true", "bf16-mixed")]
    groups = find_groups(read_entries(runs))
    assert [group.settings for group in groups] == [
        {"precision": "32-true"},
        {"precision": "bf16-mixed"},
    ]


@pytest.mark.parametrize("name", ["commit", "device", "versions"])
def test_where_and_of_what_code_a_run_was_is_no_less_a_difference(name: str) -> None:
    run = make_run("a")
    other = run._replace(metrics=METRICS | {name: "another"})
    assert differing([entry.settings for entry in read_entries([run, other])]) == [name]


def test_every_accuracy_stands_under_its_name() -> None:
    pytest.importorskip("jinja2")
    run = make_run("a")
    others = {"test/acc_tta": 0.9123, "test/acc_views": 0.9234}
    run = run._replace(metrics=run.metrics | others)
    page = write_comparison([run], Path("page.html"))
    table = page.read_text(encoding="utf-8").split("</table>")[0]
    names, shares = (
        re.findall(f'<{kind} class="number">(.*?)</{kind}>', table)
        for kind in ("th", "td")
    )
    said = {name: share.split()[0] for name, share in zip(names, shares, strict=True)}
    assert said == {
        **{"test": "90.00", "test, flip TTA": "91.23", "test, six views": "92.34"},
        "validation": "88.00",
    }


def test_rates_that_a_test_picked_are_the_same_flag() -> None:
    runs = [make_run("a", lr=0.01), make_run("b", lr=0.02, seed=1), make_run("c")]
    runs[:2] = [run._replace(test=TEST) for run in runs[:2]]
    entries = read_entries(runs)
    assert [entry.settings["lr"] for entry in entries] == ["auto", "auto", "0.01"]
    assert [group.names for group in find_groups(entries)] == [["a", "b"], ["c"]]
    assert differing([entry.settings for entry in entries]) == ["lr", "seed"]


def test_folders_of_the_same_name_are_told_apart() -> None:
    one, other = make_run("a"), make_run("a")._replace(path=Path("others/a"))
    names = [entry.name for entry in read_entries([one, other])]
    assert names == [str(Path("runs/a")), str(Path("others/a"))]
    names = [entry.name for entry in read_entries([one, other], public=True)]
    assert names == ["a (1)", "a (2)"]


def test_spread_without_runs_is_a_dash() -> None:
    assert spread([]) == "\N{EN DASH}"


def test_a_page_beside_the_first_run_or_where_it_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("jinja2")
    runs = [save(make_run("a")), save(make_run("b", 0.8123, cutout=4, seed=3))]
    page = report.report(runs)
    assert page == Path("runs/comparison.html")
    assert capsys.readouterr().out == f"{page}\n"
    text = " ".join(html.unescape(page.read_text(encoding="utf-8")).split())
    for words in ("2 runs compared", "81.23", "<code>cutout</code>", "Some CPU"):
        assert (words in text) == (words != "Some CPU"), words  # it is the same
    assert text.count("<svg") == 1  # only val/acc is in the rows
    assert "/home/me" not in text  # the same in both
    assert report.report([*runs, str(page)]) == page  # as `runs/*` names it then
    other = report.report(runs, output="other.html")
    assert other.read_bytes() == page.read_bytes()


def test_a_run_that_is_named_twice_counts_once() -> None:
    pytest.importorskip("jinja2")
    one, other = save(make_run("a")), save(make_run("b", 0.8))
    page = report.report([one, f"{one}/../a", other])
    text = " ".join(html.unescape(page.read_text(encoding="utf-8")).split())
    assert "2 runs compared" in text


@pytest.mark.parametrize("output", ["", "runs", "nosuch/page.html"])
def test_a_page_that_cannot_be_written_is_refused_first(output: str) -> None:
    run = save(make_run("a"))  # without the checkpoint that a report needs
    with pytest.raises(
        InputError, match=rf"--output ({output}|\.): (a folder|its fold)"
    ):
        report.report([run], output=output)


def test_what_differs_is_public_without_folders() -> None:
    pytest.importorskip("jinja2")
    runs = [save(make_run("a")), save(make_run("b", data_dir="/mnt/x/images"))]
    for public in (True, False):
        text = report.report(runs, public=public).read_text(encoding="utf-8")
        assert ("/mnt/x/images" in text) != public
        assert ("…/images" in text) == public


def test_a_run_that_is_not_finished_is_named() -> None:
    runs = [save(make_run("a")), save(make_run("b"))]
    Path("runs/b/metrics.json").unlink()
    with pytest.raises(InputError, match=r"runs.b has no metrics.json: not a finish"):
        report.report(runs)
    assert not Path("runs/comparison.html").exists()
