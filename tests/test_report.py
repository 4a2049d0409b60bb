"""The report: numbers, names that look like HTML, files that are missing, a browser."""

import html
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

import report
from analysis import results
from analysis.evaluation import Evaluation, Mistake, calibrate
from analysis.finished_run import Run, _parse_range_test, _read, open_run, read_run
from analysis.html import duration, percent, png
from analysis.report import (
    SAMPLES,
    _strip,
    command_without_folders,
    hide_images,
    lr_schedule,
    placeholder,
    without_folders,
    write_report,
)
from analysis.samples import Samples, first_samples
from common.errors import InputError
from config import Config
from images.augmentation import Augmentation
from run_files import rows
from training.lr_finder import RangeTest
from training.run_folder import RunFolder

Train = Callable[..., dict[str, Any]]
RUN = Path("runs/run")
CLASSES = ("<b>$x$", "bee & wasp", "a very long name of a class, of no use to anyone")
METRICS: dict[str, Any] = {
    **{"train/loss": 0.5, "train/acc": 0.81, "val/loss": None, "val/acc": None},
    **{"test/loss": 0.25, "test/acc": 0.9035, "max_lr": 0.0123, "epochs": 2},
    **{"seconds": 1639.0, "images_per_second": 1234.4, "device": "Some CPU"},
    **{
        "test/acc_tta": 0.9123,
        "precision": "32-true",
        "versions": "torch 2",
        "commit": "abc",
    },
    "command": "python train.py --name '<i>&amp;'",
}


def plain(text: str) -> str:
    """All white space, be it one that does not break, as one space."""
    return " ".join(text.split())


class Page(HTMLParser):
    """The elements of a page, its text, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str | None] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = plain(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append(tag)
        values = dict(attrs)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if name in values:
                self.addresses.append(values[name] or "")
        if tag == "img" or values.get("role") == "img":
            self.alts.append(values.get("alt") or values.get("aria-label"))

    def handle_data(self, data: str) -> None:
        """Note some text."""
        self.text += data + " "


OTHER = yaml.safe_dump(Config().record() | {"colour": 1})
NO_RATE = yaml.safe_dump(Config().record())
WRONG = yaml.safe_dump(Config().record() | {"seed": -1})


def changed(**values: Any) -> bytes:
    """A metrics.json with some other values."""
    return json.dumps(METRICS | values).encode()


def range_test_with(**values: Any) -> bytes:
    """A lr_finder.json likewise."""
    test = {"lrs": [0.1, 0.2], "losses": [2.0, 1.0], "valley": [0.1, 0.2], "lr": 0.1}
    return json.dumps(test | values).encode()


def make_run(folder: Path) -> Run:
    row = {"epoch": 0.0, "step": 4.0, "lr": 0.01, "train/loss": 1.0, "train/acc": 0.5}
    config = Config(lr=0.0123, data="cifar10", report=False)
    return Run(folder, config, METRICS, [row, row | {"epoch": 1.0, "step": 8.0}])


def make_evaluation(*, mistakes: int = 3) -> Evaluation:
    image = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    mistake = Mistake(image, torch.rand(32, 32), CLASSES[0], 0.987, CLASSES[1])
    calibration = calibrate(torch.tensor([0.7, 0.9]), torch.tensor([True, False]))
    counts = torch.tensor([[8, 2, 0], [0, 10, 0], [5, 0, 5]])
    return Evaluation(CLASSES, counts, calibration, [mistake] * mistakes)


def make_images() -> Any:
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    return SimpleNamespace(
        sizes=lambda: {"train": 4500, "val": 0, "test": 30},
        train_set=(pixels, torch.tensor([0, 1])),
        augmentation=Augmentation(),
        seed=0,
        fill=pixels[0, 0, 0],
    )


def write(folder: Path, **flags: Any) -> Page:
    pytest.importorskip("jinja2")
    evaluation = make_evaluation(mistakes=flags.pop("mistakes", 3))
    run = flags.pop("run", None) or make_run(folder)
    return Page(write_report(run, evaluation, make_images(), **flags))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = caplog.records
    return [record.message for record in records if record.name.startswith("analysis")]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return write(tmp_path)


def test_numbers_are_in_the_text(page: Page) -> None:
    for text in (
        "90.35 %",
        "test, flip TTA 91.23 %",
        "90.35 % of 30 images",
        "4,500 81.00 % 0.5000",
        "\N{EN DASH} \N{EN DASH}",  # nothing was held out
        "0.0123",
        "27 min 19 s",
        "1,234 images/s",
        "6,569,536",  # 6,573,120 less 512 for each of 7 classes
        "30 test images",
        "It puts 23 into their class; the accuracy above is that of the run, in 32",
        "<b>$x$ 10 61.5 80.0",  # 8 of 13, and 8 of 10
        "bee & wasp 10 83.3 100.0",
        f"{CLASSES[2]} <b>$x$ 5 50.0 %",  # the most confused
        "98.7 %",
        "ECE 60.00 % (15 equal-width bins)",
        "Some CPU",
        "report false",
    ):
        assert text in page.text, text


def test_names_and_commands_are_text(page: Page) -> None:
    assert {"b", "i"} & set(page.tags) == set()
    assert page.text.count("<b>$x$") == 1 + 2 + 2 + 3  # two of each in matrix and pairs
    assert METRICS["command"] in page.text


def test_nothing_is_loaded_and_every_picture_has_a_text(page: Page) -> None:
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
    assert page.tags.count("script") == 1  # of the button that copies
    assert page.tags.count("img") == 2 * 2 + 2 * 3
    assert page.tags.count("svg") == 4
    assert len(page.alts) == 2 * 2 + 2 * 3 + 4
    assert all(page.alts)


def test_no_part_of_a_figure_has_the_id_of_another(page: Page, tmp_path: Path) -> None:
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawings = text.split("<svg")[1:]
    names = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in drawings]
    assert sum(map(len, names)) == len(set.union(*names)) > 0


def test_no_mistake_is_said(tmp_path: Path) -> None:
    page = write(tmp_path, mistakes=0)
    assert "There are none" in page.text
    assert page.tags.count("img") == 2 * 2


def test_one_accuracy_where_the_run_tested_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page = write(tmp_path, run=run._replace(metrics=METRICS | {"test/acc": 23 / 30}))
    assert page.text.count("76.67 %") == 1 + 1 + 1  # title, headline, table
    assert "It puts" not in page.text


def test_what_a_limit_left_out_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    limits: dict[str, Any] = {"limit_test_batches": 0.1, "limit_train_batches": 1}
    page = write(tmp_path, run=run._replace(config=replace(run.config, **limits)))
    for text in (
        "90.35 % of a part of 30 images",
        "a part of 4,500 81.00 %",
        "the accuracy above is of the part that --limit_test_batches 0.1 left.",
    ):
        assert text in page.text
    assert "in 32-true" not in page.text


def test_a_resumed_run_is_repeated_from_its_beginning(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    command = "python train.py --name 'a b' --ckpt_path last --seed 3"
    page = write(tmp_path, run=run._replace(metrics=METRICS | {"command": command}))
    assert "python train.py --name 'a b' --seed 3" in page.text
    assert "It was resumed; commit, device and versions are those of its" in page.text
    assert "It was resumed" not in write(tmp_path).text


def test_the_date_is_that_of_the_first_file_for_tensorboard(tmp_path: Path) -> None:
    for second in (1795651003, 1795650000):
        (tmp_path / f"events.out.tfevents.{second}.host.1.0").touch()
    assert "2 epochs, begun on 2026-11-25 at 23:40 UTC" in write(tmp_path).text
    for path in tmp_path.glob("events*"):
        path.unlink()
    assert "begun" not in write(tmp_path).text


def test_the_range_test_is_drawn(tmp_path: Path) -> None:
    without = write(tmp_path)
    assert "LR range test" not in without.text
    assert (without.tags.count("img"), without.tags.count("svg")) == (10, 4)
    test = RangeTest([*range(1, 41)], [3.0, 2.0] * 10 + [1.0] * 20, (20, 40), 30.0)
    page = write(tmp_path, run=make_run(tmp_path)._replace(test=test))
    assert (page.tags.count("img"), page.tags.count("svg")) == (10, 5)
    assert "max LR 30" in page.text


def test_best_epoch_is_the_first_of_the_best(tmp_path: Path) -> None:
    rows = [
        {"epoch": float(number), "step": 4.0 * number + 4, "val/acc": accuracy}
        | {"train/loss": 1.0}
        for number, accuracy in enumerate([0.5, 0.75, 0.75])
    ]
    page = write(tmp_path, run=make_run(tmp_path)._replace(rows=rows))
    assert "best val, epoch 2 75.00 %" in page.text


def test_range_tests_are_read_as_they_were(tmp_path: Path) -> None:
    runs = RunFolder(tmp_path, "run", 0)
    runs.path.mkdir()
    test = RangeTest([0.01, 0.1, 1.0], [2.0, 1.0, math.nan], (0.05, 0.2), 0.1)
    runs.write_range_test(test)
    text = (runs.path / "lr_finder.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["losses"] == [2.0, 1.0, None]
    found = _read(runs.path / "lr_finder.json", _parse_range_test)
    assert found._replace(losses=[]) == test._replace(losses=[])
    assert found.losses[:2] == [2.0, 1.0]
    assert math.isnan(found.losses[2])
    (runs.path / "lr_finder.json").write_text("{}")
    with pytest.raises(InputError, match=r"lr_finder\.json has no lrs"):
        _read(runs.path / "lr_finder.json", _parse_range_test)


def test_what_is_public_has_neither_images_nor_folders(quick_train: Train) -> None:
    pytest.importorskip("jinja2")
    quick_train(max_epochs=1, report=True)
    run = read_run(RUN)
    place = str(run.config.data_dir)
    assert Path(place).is_absolute()
    page = report.report([str(RUN)], "cpu", output="page.html", public=True)
    text = page.read_text(encoding="utf-8")
    assert (page, "not shown" in text) == (Path("page.html"), True)
    assert place not in text
    assert f"\N{HORIZONTAL ELLIPSIS}/{Path(place).name}" in text
    assert place in report.report([str(RUN)], "cpu").read_text(encoding="utf-8")
    _, images = open_run(run)
    hidden = first_samples(images, SAMPLES, placeholder())
    assert torch.equal(hidden.originals[0], placeholder())
    assert hidden.augmented.shape == hidden.originals.shape == (10, 32, 32, 3)
    [mistake] = hide_images(make_evaluation(mistakes=1)).mistakes
    assert torch.equal(mistake.image, placeholder())


def test_folders_are_left_out_of_a_command() -> None:
    command = (
        "python train.py --data_dir=/a/b/c --config 'C:\\x\\y.yaml' --lr 1/2 ~/runs/x "
        "../z https://me:secret@example.org/a/b configs/best.yaml "
        "'/home/al o/my pictures'"
    )
    assert command_without_folders(command) == (
        "python train.py --data_dir=…/c --config …/y.yaml --lr 1/2 …/x "
        "…/z https://example.org/a/b configs/best.yaml …/'my pictures'"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/alice/My Documents/secret project/images", "…/images"),
        ("C:/Users/Alice Smith/x/y", "…/y"),
        ("//server/share/alice/x/", "…/x"),
        ("file:///home/alice/x.tar.gz", "…/x.tar.gz"),
        ("~alice/x", "…/x"),
        ("../../alice/x", "…/x"),
        ("data/../../alice/x", "…/x"),
        ("data/cifar10", "data/cifar10"),
        ("runs/v1..2/x", "runs/v1..2/x"),
        ("https://alice:secret@example.org/a/b", "https://example.org/a/b"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ('["tensorboard", "csv"]', '["tensorboard", "csv"]'),
    ],
)
def test_folders_are_left_out_of_a_flag(value: str, shown: str) -> None:
    assert without_folders(value) == shown


def test_samples_are_the_first_batch_of_the_training(quick_train: Train) -> None:
    quick_train(max_epochs=1, report=True)
    _, images = open_run(read_run(RUN))
    batch, labels = next(iter(images.train_dataloader()))
    samples = first_samples(images, SAMPLES)
    assert torch.equal(samples.augmented.permute(0, 3, 1, 2), batch[:10])
    assert torch.equal(samples.labels, labels[:10])


def test_percent_and_duration() -> None:
    assert [plain(percent(0.5)), percent(None)] == ["50.00 %", "\N{EN DASH}"]
    assert [plain(duration(seconds)) for seconds in (27.6, 587.3, 7500)] == [
        *("28 s", "9 min 47 s", "2 h 5 min")
    ]


def test_training_writes_it_and_the_command_the_same(
    quick_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    metrics = quick_train(lr="auto", lr_steps=40, report=True)
    first = (RUN / "report.html").read_text(encoding="utf-8")
    page = Page(RUN / "report.html")
    assert plain(percent(metrics["test/acc"])) in page.text
    assert "It puts" not in page.text  # it is one accuracy
    assert any("LR range test" in (alt or "") for alt in page.alts)
    (RUN / "report.html").unlink()
    capsys.readouterr()
    assert report.report([str(RUN)], device="cpu") == RUN / "report.html"
    assert capsys.readouterr().out == f"{RUN / 'report.html'}\n"
    assert (RUN / "report.html").read_text(encoding="utf-8") == first


def test_schedule_is_that_of_the_run(quick_train: Train) -> None:
    quick_train(max_epochs=3, report=True)
    lrs, _ = lr_schedule(0.01, 9)
    assert len(lrs) == 9
    assert [lrs[2], lrs[5], lrs[8]] == pytest.approx(
        [float(row["lr"]) for row in rows()]
    )


def test_a_missing_package_is_a_line_and_no_failure(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with caplog.at_level(logging.INFO, "analysis.results"):
        quick_train(max_epochs=1, report=True)
    assert messages(caplog)[0] == (
        "no report.html: it needs jinja2; pip install -r requirements-extras.txt"
    )
    assert "test accuracy" in capsys.readouterr().out
    assert not (RUN / "report.html").exists()


def test_a_checkpoint_that_cannot_be_read_is_a_line_and_no_failure(
    quick_train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("network drive is gone")

    monkeypatch.setattr("analysis.finished_run.load_model", fail)
    with caplog.at_level(logging.INFO, "analysis.results"):
        metrics = quick_train(max_epochs=1, report=True)
    assert messages(caplog)[0] == "no report.html: network drive is gone"
    assert json.loads((RUN / "metrics.json").read_text()) == metrics


def test_loggers_get_the_accuracy_of_each_true_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[torch.Tensor] = []

    def draw(counts: torch.Tensor, _: object) -> Figure:
        drawn.append(counts)
        return Figure()

    monkeypatch.setattr(results, "per_class_figure", draw)
    trainer: Any = SimpleNamespace(loggers=[], global_step=0)
    results._log_pictures(trainer, make_evaluation())
    assert [counts.tolist() for counts in drawn] == [make_evaluation().counts.tolist()]


def test_a_run_that_is_not_finished(quick_train: Train) -> None:
    with pytest.raises(InputError, match=r"runs.run: no such folder; give the fo"):
        read_run(RUN)
    quick_train(max_epochs=1, report=True)
    (RUN / "metrics.json").unlink()
    (RUN / "metrics.csv").unlink()
    with pytest.raises(InputError) as caught:
        read_run(RUN)
    assert str(caught.value) == (
        f"{RUN} has no metrics.json, no metrics.csv: not a finished run; resume it "
        "(train.py --name run --ckpt_path last), or give another"
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", b"{", "metrics.json is damaged"),
        ("metrics.json", b"[1]", "metrics.json has no train/acc"),
        ("metrics.json", b"7", "metrics.json is damaged"),
        ("metrics.json", b"[" * 10_000, "metrics.json is damaged"),
        ("metrics.json", changed(seconds=None), "metrics.json is damaged"),
        ("metrics.json", changed(max_lr="0.1"), "metrics.json is damaged"),
        ("metrics.json", changed(**{"val/acc": math.nan}), "metrics.json is damaged"),
        ("lr_finder.json", b'["lrs", "losses", "valley", "lr"]', "json is damaged"),
        ("lr_finder.json", range_test_with(losses=[1.0]), "lr_finder.json is damaged"),
        (
            "lr_finder.json",
            range_test_with(lrs=[], losses=[]),
            "lr_finder.json is damaged",
        ),
        ("lr_finder.json", range_test_with(valley=None), "lr_finder.json is damaged"),
        ("config.yaml", NO_RATE.encode(), "config.yaml has no rate"),
        ("config.yaml", b"lr: [", "config.yaml is damaged"),
        ("config.yaml", b"lr: 1", "config.yaml has no data"),
        ("config.yaml", OTHER.encode(), "config.yaml: .*colour"),
        ("config.yaml", WRONG.encode(), "config.yaml: --seed must be a whole number"),
        ("config.yaml", b"\xff\xfe", "config.yaml is damaged"),
        ("metrics.csv", b"", "metrics.csv is damaged"),
        ("metrics.csv", b"step\nx\n", "metrics.csv is damaged"),
        ("metrics.csv", b"lr\n1\n", "metrics.csv is damaged"),
        ("metrics.csv", b"step,lr\n1,1\n", "metrics.csv is damaged"),
        ("metrics.csv", b"epoch,step\n0,0\n", "metrics.csv is damaged"),
        ("metrics.csv", b"epoch,step\n0,inf\n", "metrics.csv is damaged"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    run = make_run(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run.config.record()))
    (tmp_path / "metrics.json").write_text(json.dumps(run.metrics))
    (tmp_path / "metrics.csv").write_text("epoch,step,lr,val/acc\n0,4,0.1,\n")
    assert read_run(tmp_path).rows == [{"epoch": 0, "step": 4, "lr": 0.1}]
    assert read_run(tmp_path).config == run.config
    older = {
        flag: value for flag, value in run.config.record().items() if flag != "tta"
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert read_run(tmp_path).config == run.config
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path)


def test_other_images_than_the_run_had(quick_train: Train, image_folder: Path) -> None:
    quick_train(max_epochs=1, report=True)
    run = read_run(RUN)
    shutil.copytree(image_folder, "images")
    shutil.move("images/train/red", "images/train/rose")
    shutil.move("images/test/red", "images/test/rose")
    run = run._replace(config=replace(run.config, data_dir="images"))
    with pytest.raises(InputError, match=r"--data_dir .*images: the classes of the im"):
        open_run(run)
    run = run._replace(config=replace(run.config, data_dir="nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        open_run(run)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--device (mps|cuda) is not there; give "):
        report.report([str(tmp_path)], "mps" if torch.cuda.is_available() else "cuda")


# Frames with the page as it is on a phone and on a desk, and what is in them.
FRAMES = """<!doctype html>
<iframe width="360" height="740" srcdoc="{page}"></iframe>
<iframe width="1280" height="800" srcdoc="{page}"></iframe>
<pre></pre>
<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument.documentElement;
    const images = [...page.querySelectorAll("img")];
    const loaded = frame.contentWindow.performance.getEntriesByType("resource");
    return {{
      width: page.clientWidth,
      overflow: page.scrollWidth - page.clientWidth,
      images: images.length,
      broken: images.filter((image) => !image.naturalWidth).length,
      hidden: [...page.querySelectorAll("svg, img")].filter(
        (picture) => picture.getBoundingClientRect().height < 20).length,
      loaded: loaded.map((entry) => entry.name).filter((x) => !x.startsWith("data:")),
    }};
  }});
  document.querySelector("pre").textContent = JSON.stringify(found);
}});
</script>"""


def test_in_a_browser(page: Page, tmp_path: Path, chromium: str) -> None:
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    frames = tmp_path / "frames.html"
    frames.write_text(FRAMES.format(page=html.escape(text)), encoding="utf-8")
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, "--dump-dom", frames.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    [found] = re.findall("<pre>(.+)</pre>\n<script>", done.stdout)
    good = {"overflow": 0, "images": 10, "broken": 0, "hidden": 0, "loaded": []}
    phone, desk = json.loads(html.unescape(found))
    assert 340 <= phone.pop("width") <= 360
    assert 1260 <= desk.pop("width") <= 1280
    assert phone == desk == good
    assert "CONSOLE" not in done.stderr


def test_other_pixels_than_the_run_had(quick_train: Train, image_folder: Path) -> None:
    quick_train(max_epochs=1)
    shutil.copytree(image_folder, "images")
    for path in Path("images/train/red").iterdir():
        Image.new("RGB", (32, 32), "red").save(path)
    with pytest.raises(
        InputError, match=r"--data_dir .*images: the mean of the images are not"
    ):
        open_run(read_run(RUN, "images"))


def test_a_sample_is_shown_as_it_is_and_then_as_the_training_sees_it() -> None:
    plain = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    seen = plain + 9
    [pair] = _strip(Samples(plain, seen, torch.tensor([0])))
    assert pair == (png(plain[0].numpy()), png(seen[0].numpy()))
