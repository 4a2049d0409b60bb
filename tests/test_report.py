"""The report: numbers, names that look like HTML, files that are missing, a browser."""

import html
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import report
from analysis.evaluation import Evaluation, Mistake, calibrate
from analysis.report import (
    Run,
    duration,
    evaluate_run,
    lr_schedule,
    percent,
    read_run,
    write_report,
)
from common.errors import InputError
from config import Config
from run_files import rows

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
WRONG = yaml.safe_dump(Config().record() | {"seed": -1})


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


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = caplog.records
    return [record.message for record in records if record.name.startswith("analysis")]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    pytest.importorskip("jinja2")
    return Page(write_report(make_run(tmp_path), make_evaluation()))


def test_numbers_are_in_the_text(page: Page) -> None:
    for text in (
        "90.35 %",
        "test accuracy with flip TTA 91.23 %",
        "81.00 % 0.5000",
        "\N{EN DASH} \N{EN DASH}",  # nothing was held out
        "0.0123",
        "27 min 19 s",
        "1,234 images/s",
        "6,569,536",  # 6,573,120 less 512 for each of 7 classes
        "30 test images",
        "23 right, 76.67 %",
        "98.7 %",
        "ECE 60.00 % (15 equal-width bins)",
        "Some CPU",
        "report false",
    ):
        assert text in page.text, text


def test_names_and_commands_are_text(page: Page) -> None:
    assert {"b", "i"} & set(page.tags) == set()
    assert page.text.count("<b>$x$") >= 1 + 1 + 1 + 3  # three figures, three mistakes
    assert METRICS["command"] in page.text


def test_nothing_is_loaded_and_every_picture_has_a_text(page: Page) -> None:
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
    assert "script" not in page.tags
    assert page.tags.count("img") == 2 * 3
    assert page.tags.count("svg") == 6
    assert len(page.alts) == 2 * 3 + 6
    assert all(page.alts)


def test_no_part_of_a_figure_has_the_id_of_another(page: Page, tmp_path: Path) -> None:
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    drawings = text.split("<svg")[1:]
    names = [set(re.findall(r' id="([^"]+)"', drawing)) for drawing in drawings]
    assert sum(map(len, names)) == len(set.union(*names)) > 0


def test_no_mistake_is_said(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page = Page(write_report(make_run(tmp_path), make_evaluation(mistakes=0)))
    assert "There are none" in page.text
    assert "img" not in page.tags


def test_percent_and_duration() -> None:
    assert [plain(percent(0.5)), percent(None)] == ["50.00 %", "\N{EN DASH}"]
    assert [plain(duration(seconds)) for seconds in (27.6, 587.3, 7500)] == [
        *("28 s", "9 min 47 s", "2 h 5 min")
    ]


def test_training_writes_it_and_the_command_the_same(
    quick_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    metrics = quick_train(lr="auto", lr_steps=40)
    first = (RUN / "report.html").read_text(encoding="utf-8")
    page = Page(RUN / "report.html")
    assert plain(percent(metrics["test/acc"])) in page.text
    assert f"{round(30 * metrics['test/acc'])} right" in page.text
    assert any("LR range test" in (alt or "") for alt in page.alts)
    (RUN / "report.html").unlink()
    capsys.readouterr()
    assert report.report([str(RUN)], device="cpu") == [RUN / "report.html"]
    assert capsys.readouterr().out == f"{RUN / 'report.html'}\n"
    assert (RUN / "report.html").read_text(encoding="utf-8") == first


def test_schedule_is_that_of_the_run(quick_train: Train) -> None:
    quick_train(max_epochs=3)
    lrs = lr_schedule(0.01, 9)
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
        quick_train(max_epochs=1)
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

    monkeypatch.setattr("analysis.report.load_model", fail)
    with caplog.at_level(logging.INFO, "analysis.results"):
        metrics = quick_train(max_epochs=1)
    assert messages(caplog)[0] == "no report.html: network drive is gone"
    assert json.loads((RUN / "metrics.json").read_text()) == metrics


def test_a_run_that_is_not_finished(quick_train: Train) -> None:
    with pytest.raises(InputError, match=r"runs.run: no such folder; give that of a"):
        read_run(RUN)
    quick_train(max_epochs=1)
    (RUN / "metrics.json").unlink()
    (RUN / "metrics.csv").unlink()
    with pytest.raises(InputError) as caught:
        read_run(RUN)
    assert str(caught.value) == (
        f"{RUN} has no metrics.json, no metrics.csv: not a finished run; go on with it "
        "(train.py --name run --ckpt_path last), or give another"
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", b"{", "metrics.json is damaged"),
        ("metrics.json", b"[1]", "metrics.json has no train/acc"),
        ("metrics.json", b"7", "metrics.json is damaged"),
        ("metrics.json", b"[" * 10_000, "metrics.json is damaged"),
        ("config.yaml", b"lr: [", "config.yaml is damaged"),
        ("config.yaml", b"lr: 1", "config.yaml has no data"),
        ("config.yaml", OTHER.encode(), "config.yaml: .*colour"),
        ("config.yaml", WRONG.encode(), "config.yaml: --seed must be a whole number"),
        ("config.yaml", b"\xff\xfe", "config.yaml is damaged"),
        ("metrics.csv", b"", "metrics.csv is damaged"),
        ("metrics.csv", b"step\nx\n", "metrics.csv is damaged"),
        ("metrics.csv", b"lr\n1\n", "metrics.csv is damaged"),
        ("metrics.csv", b"step,lr\n1,1\n", "metrics.csv is damaged"),
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
    quick_train(max_epochs=1)
    run = read_run(RUN)
    shutil.copytree(image_folder, "images")
    shutil.move("images/train/red", "images/train/rose")
    shutil.move("images/test/red", "images/test/rose")
    run = run._replace(config=replace(run.config, data_dir="images"))
    with pytest.raises(InputError, match=r"--data_dir .*images: the classes of the im"):
        evaluate_run(run, torch.device("cpu"))
    run = run._replace(config=replace(run.config, data_dir="nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        evaluate_run(run, torch.device("cpu"))


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
    good = {"overflow": 0, "images": 6, "broken": 0, "hidden": 0, "loaded": []}
    phone, desk = json.loads(html.unescape(found))
    assert 340 <= phone.pop("width") <= 360
    assert 1260 <= desk.pop("width") <= 1280
    assert phone == desk == good
    assert "CONSOLE" not in done.stderr
