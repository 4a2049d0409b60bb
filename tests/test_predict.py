"""Prediction: every kind of file and argument, and what is said of each."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from analysis import inference, loading, novelty
from analysis.explanation import layer_cam
from analysis.inference import (
    novelty_of,
    predict_logits,
    predict_views,
    see_views,
    to_probabilities,
    top_predictions,
)
from analysis.loading import load_model
from images.image_folder import to_pixels
from train import train

PROJECT = Path(__file__).resolve().parent.parent


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def results(self) -> list[dict[str, Any]]:
        """Its JSON."""
        results: list[dict[str, Any]] = json.loads(self.out)
        return results


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells the three colours apart."""
    folder = tmp_path_factory.mktemp("trained")
    quick: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "batch_size": 32}
    quick |= {"precision": "32-true", "max_epochs": 8, "lr": 0.02, "base_width": 4}
    train(data_dir=str(image_folder), output_dir=str(folder), name="run", **quick)
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def command(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """`python predict.py ARGUMENTS` with the network, in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        argv = ["predict.py", *arguments]
        if "--ckpt_path" not in arguments:
            argv[1:1] = ["--ckpt_path", str(checkpoint)]
        monkeypatch.setattr(sys, "argv", argv)
        code = 0
        try:
            predict.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def red(size: tuple[int, int] = (32, 32)) -> Image.Image:
    """An image of the class red."""
    return Image.new("RGB", size, (150, 80, 80))


def test_the_probabilities_are_those_of_the_network(
    command: Command, checkpoint: Path, image_folder: Path
) -> None:
    done = command(str(image_folder / "test"), "--json")
    assert done.code == 0
    assert done.err == ""
    paths = sorted(str(path) for path in image_folder.glob("test/*/*.png"))
    assert [result["file"] for result in done.results] == paths
    images = torch.stack(
        [torch.tensor(to_pixels(Image.open(path))).permute(2, 0, 1) for path in paths]
    )
    model = load_model(checkpoint)
    seen = [predict_logits(model, part) for part in (images, images.flip(3))]
    smoothing = model.hparams["label_smoothing"]
    probabilities = to_probabilities(torch.stack(seen).mean(dim=0), smoothing)
    views = see_views(model, images[:, None], mirrored=True)
    known = (novelty_of(model, views) < 1).tolist()
    for result, share, is_known in zip(
        done.results, probabilities.tolist(), known, strict=True
    ):
        assert result.keys() == {"file", "predictions", "known", "error"}
        found = {one["label"]: one["probability"] for one in result["predictions"]}
        named = dict(zip(model.hparams["classes"], share, strict=True))
        assert found == pytest.approx(named, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert result["known"] == is_known
        assert result["error"] is None


def test_any_size_and_format(command: Command) -> None:
    red((300, 200)).save("photo.jpg")
    red((7, 90)).save("thin.bmp")
    red().quantize().save("palette.gif")
    red((64, 64)).convert("RGBA").save("clear.webp")
    names = ["photo.jpg", "thin.bmp", "palette.gif", "clear.webp"]
    done = command(*names, "--json", "--top", "1")
    assert done.code == 0
    assert [result["file"] for result in done.results] == names
    for result in done.results:
        assert [one["label"] for one in result["predictions"]] == ["red"]


def test_a_photo_is_turned_as_its_camera_was(command: Command) -> None:
    image = Image.new("RGB", (64, 32), (80, 80, 150))
    image.paste(red((32, 32)), (0, 0))
    image.transpose(Image.Transpose.ROTATE_270).save("upright.png")
    image.save("flat.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save("turned.png", exif=exif)
    done = command("upright.png", "turned.png", "flat.png", "--json")
    upright, turned, flat = (result["predictions"] for result in done.results)
    assert turned == upright
    assert turned != flat


def test_the_table_has_a_row_a_file(command: Command) -> None:
    red().save("a.png")
    red().save("longer.png")
    done = command("a.png", "longer.png", "--top", "2")
    first, second = done.out.splitlines()
    assert first.startswith("a.png       red ")
    assert second.startswith("longer.png  red ")
    assert first.count(" %") == second.count(" %") == 2


def test_a_switch_may_stand_before_the_files(command: Command) -> None:
    red().save("a.png")
    assert command("--json", "a.png").results[0]["file"] == "a.png"
    assert command("--json", "false", "a.png").out.startswith("a.png  red ")


def test_what_cannot_be_read_has_its_own_line_and_the_rest_is_done(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    red().save("good.png")
    red((100, 100)).save("huge.png")
    Path("broken.png").write_bytes(Path("good.png").read_bytes()[:60])
    Path("text.jpg").write_text("no image")
    bad = {
        "huge.png": "more than 5000 pixels",
        "broken.png": "not a readable image",
        "text.jpg": "none of AVIF, BMP, GIF",
        "nosuch.png": "No such file",
    }
    names = [*bad, "good.png"]
    done = command(*names)
    assert done.code == 2
    assert len(done.out.splitlines()) == 1
    *errors, last = done.err.splitlines()
    assert last == "predict.py: error: 4 of 5 images could not be read"
    for line, (name, reason) in zip(errors, bad.items(), strict=True):
        assert line.startswith(f"predict.py: {name}: ")
        assert reason in line

    done = command(*names, "--json")
    assert done.code == 2
    assert done.err.count("\n") == 1
    for result, name in zip(done.results, names, strict=True):
        assert result["file"] == name
        assert bad.get(name, "None") in str(result["error"])
        assert (result["predictions"] == []) == (name in bad)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_pipe_is_not_waited_for(command: Command) -> None:
    os.mkfifo("pipe.png")
    assert "pipe.png: not a readable image (not a file)" in command("pipe.png").err


def test_folders_are_searched_and_sorted_and_hidden_files_left_out(
    command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("photos/b/2.png", "photos/a/1.PNG", "photos/.cache/0.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        red().save(name)
    red().save("photos/.hidden.png")
    Path("photos/notes.txt").write_text("no image")
    with caplog.at_level(logging.INFO):
        done = command("photos", "--json")
    found = [Path(result["file"]).as_posix() for result in done.results]
    assert found == ["photos/a/1.PNG", "photos/b/2.png"]
    said = "photos: files that are not images were skipped: 1, such as notes.txt"
    assert caplog.messages == [said]
    red().save("3.png")
    Path("elsewhere").mkdir()
    Path("3.png").rename("elsewhere/3.png")
    Path("photos/linked").symlink_to("../elsewhere")
    Path("photos/a/round").symlink_to("..")
    done = command("photos", "--json")
    assert len(done.results) == 3
    assert Path(done.results[2]["file"]).as_posix() == "photos/linked/3.png"
    Path("empty").mkdir()
    done = command("empty")
    assert done.code == 2
    assert done.err.startswith("predict.py: error: empty: no image (AVIF, ")


def test_a_file_is_done_once_and_batches_do_not_matter(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(5)]
    for name in names:
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(name)
    Path("1.png").write_text("broken")
    whole = command(*names, "--json").results
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    monkeypatch.setattr(inference, "BATCH_SIZE", 2)
    parts = command(*names, *reversed(names), "--json").results
    assert [result["file"] for result in parts] == names
    for part, result in zip(parts, whole, strict=True):
        assert part["error"] == result["error"]
        for one, other in zip(part["predictions"], result["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_an_image_that_is_new_is_marked(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    red().save("a.png")
    monkeypatch.setattr(novelty, "THREE", 99.0)
    assert command("a.png", "--json").results[0]["known"] is True
    assert "probably none" not in command("a.png").out
    monkeypatch.setattr(novelty, "THREE", 1e-9)
    assert command("a.png", "--json").results[0]["known"] is False
    assert command("a.png").out.endswith("  probably none of the classes\n")


def test_explanations_show_the_image_and_where_the_network_looks(
    command: Command, checkpoint: Path
) -> None:
    rng = np.random.default_rng(0)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/same.png")
    Path("broken.png").write_text("broken")
    command("one", "two", "broken.png", "--explain", "deep/why")
    pictures = {path.name: path for path in Path("deep/why").iterdir()}
    assert len(pictures) == 2
    model = load_model(checkpoint)
    for folder in ("one", "two"):
        picture = pictures[predict.picture_name(f"{folder}/same.png")]
        shown = np.asarray(Image.open(picture))
        assert shown.shape == (256, 512, 3)
        small = shown[::8, ::8]
        assert np.array_equal(small.repeat(8, axis=0).repeat(8, axis=1), shown)
        original = np.asarray(Image.open(f"{folder}/same.png"))
        assert np.array_equal(small[:, :32], original)
        image = torch.tensor(original).permute(2, 0, 1)[None]
        said = predict_views(model, image[:, None])[0].argmax(1)
        heat = layer_cam(model, image, said)[0].numpy()
        changed = np.abs(small[:, 32:].astype(int) - original).sum(axis=2)
        assert changed[heat == 0].sum() == 0
        assert changed[heat > 0.5].mean() > 30


def test_an_explanation_shows_the_middle_of_a_wide_image(command: Command) -> None:
    image = Image.new("RGB", (96, 32), (80, 80, 150))
    image.paste(red(), (32, 0))
    image.save("wide.png")
    command("wide.png", "--explain", "why")
    [picture] = Path("why").iterdir()
    shown = np.asarray(Image.open(picture))[::8, ::8]
    assert np.array_equal(shown[:, :32], to_pixels(image))


def test_a_row_is_there_as_soon_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when a buffer is full: a table in a pipe grows with the work."""
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="utf-8"))
    guess: Any = {"label": "cat", "probability": 0.5}
    predict.show(
        [{"file": "a", "predictions": [guess], "known": True, "error": None}], 1
    )
    assert pipe.getvalue().startswith(b"a  cat  50.0 %")


def test_explanations_are_no_photos(command: Command) -> None:
    Path("photos").mkdir()
    red().save("photos/a.png")
    for _ in range(2):
        done = command("photos", "--json", "--explain", "photos/why")
        assert [Path(one["file"]).name for one in done.results] == ["a.png"]
    assert len(command("photos", "--json").results) == 2  # asked for as any others


def test_the_name_of_a_picture_is_short_and_of_one_path_only() -> None:
    paths = ["a/b.png", "a_b.png", "a/b.jpg", "b.png", f"{'x' * 250}.png"]
    names = {predict.picture_name(path) for path in paths}
    assert len(names) == len(paths)
    assert max(map(len, names)) < 60
    assert predict.picture_name("b.png") == predict.picture_name("./b.png")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_odd_names_stay_on_one_line(command: Command) -> None:
    odd = os.fsdecode(b"odd\xff\n.png")
    red().save("plain.png")
    os.rename("plain.png", odd)
    done = command(odd, "--explain", "why")
    assert done.code == 0
    assert done.out.startswith("odd\\udcff\\n.png  red ")
    assert done.out.count("\n") == 1
    assert len(os.listdir("why")) == 1
    assert command(odd, "--json").results[0]["file"] == odd
    Path("-dash.png").write_bytes(Path(odd).read_bytes())
    assert command("--", "-dash.png").code == 0


WRONG = {
    "nothing": ([], "images missing; give at least one"),
    "top": (["a.png", "--top", "0"], "--top must be a whole number, at least 1, got 0"),
    "explain": (["a.png", "--explain", "a.png"], "--explain a.png: not a folder that"),
    "the images": ([".", "--explain", "./"], "--explain .: also a folder of images;"),
    "checkpoint": (["a.png", "--ckpt_path", "nosuch"], "--ckpt_path nosuch: no such"),
    "image": (["a.png", "--ckpt_path", "a.png"], "--ckpt_path a.png: damaged, or not"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, command: Command
) -> None:
    red().save("a.png")
    done = command(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(f"predict.py: error: {message}")


def test_without_weights_a_checkpoint_is_asked_for(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "WEIGHTS", Path("weights/no.safetensors"))
    done = command("a.png", "--ckpt_path", "null")
    assert done.code == 2
    assert "give --ckpt_path FILE" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
def test_a_reader_that_leaves_early_is_no_error(checkpoint: Path) -> None:
    red().save("a.png")
    read, write = os.pipe()
    os.close(read)
    arguments = ["a.png", "--ckpt_path", str(checkpoint)]
    with os.fdopen(write) as closed:
        done = subprocess.run(
            [sys.executable, str(PROJECT / "predict.py"), *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 141
    assert done.stderr == ""


def test_top_predictions_are_sorted() -> None:
    probabilities = torch.tensor([[0.1, 0.6, 0.3]])
    [guesses] = top_predictions(probabilities, ["a", "b", "c"], top=2)
    assert guesses == [
        {"label": "b", "probability": 0.6},
        {"label": "c", "probability": 0.3},
    ]
    assert len(top_predictions(probabilities, ["a", "b", "c"], top=9)[0]) == 3
