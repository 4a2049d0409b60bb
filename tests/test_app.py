"""The page to play with a network: its answers, its server, and it in a browser."""

import asyncio
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import app
import predict
from analysis.drawings import examples
from analysis.explanation import layer_cam
from analysis.figures import explanation
from analysis.finished_run import open_run, read_run
from analysis.inference import predict_views
from analysis.loading import load_model
from common.errors import InputError
from images.image_folder import to_views
from images.synthetic import SHAPES
from lightning_module import LitCustomResNet
from train import train

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

gradio = pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
page = importlib.import_module("analysis.page")  # needs gradio

PATIENCE = 60_000  # milliseconds; whatever has not come by then fails the test
SWAPPED = 3  # red test images in the folder of the blue ones


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells three colours apart, with red images among the blue ones."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(image_folder, folder / "images")
    for number in range(SWAPPED):
        red = folder / "images" / "test" / "red" / f"{number}.png"
        red.rename(red.parent.with_name("blue") / f"red{number}.png")
    quick: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "batch_size": 32}
    quick |= {"precision": "32-true", "max_epochs": 8, "lr": 0.02, "base_width": 4}
    images = str(folder / "images")
    train(data_dir=images, output_dir=str(folder), name="run", **quick)
    return folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of many kinds, of what is none, and of no colour."""
    folder = tmp_path_factory.mktemp("pictures")
    red = Image.new("RGB", (64, 32), (150, 80, 80))
    red.paste((80, 80, 150), (0, 0, 30, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    red.save(folder / "turned.jpg", exif=exif)
    red.save(folder / "photo.tiff")
    red.quantize().save(folder / "palette.gif")
    blue = Image.new("RGB", (64, 32), (80, 80, 150))
    blue.save(folder / "moving.gif", save_all=True, append_images=[red])
    clear = red.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(red.size))
    clear.save(folder / "clear.webp")
    deep = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.new("RGB", (32, 32), (150, 80, 80)).save(folder / "red.png")
    (folder / "text.png").write_text("no image")
    (folder / "torn.png").write_bytes((folder / "red.png").read_bytes()[:60])
    rng = np.random.default_rng(0)
    noise = rng.integers(20, 180, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`main` of app.py or predict.py, in this process, without a server."""
    monkeypatch.setattr(app, "serve", lambda *_, **__: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def call(module: Any, *arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return call


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def test_the_page_says_what_predict_says(
    command: Callable[..., Done], run: Path, pictures: Path
) -> None:
    done = command(
        predict, str(pictures), "--ckpt_path", str(last(run)), "--json", "--top", "5"
    )
    assert done.code == 2  # of the two that are no images
    model = load_model(last(run))
    results = json.loads(done.out)
    assert len(results) == 10
    for result in results:
        path = result["file"]
        if result["error"] is not None:
            with pytest.raises(InputError) as caught:
                page.look_at_file(model, path)
            name = Path(path).name
            assert str(caught.value) == result["error"].replace(path, name)
            continue
        found = page.look_at_file(model, path)
        said = {one["label"]: one["probability"] for one in result["predictions"]}
        assert found.probabilities == pytest.approx(said, abs=1e-5)
        assert list(found.probabilities) == list(said)
        assert found.known == result["known"]
    known = {Path(result["file"]).name: result["known"] for result in results}
    assert known["red.png"]
    assert not known["noise.png"]


def test_gradio_hands_over_the_file_as_it_was(pictures: Path) -> None:
    file = gradio.FileData(path=str(pictures / "turned.jpg"))
    assert gradio.File().preprocess(file) == str(pictures / "turned.jpg")


def test_the_picture_is_where_the_network_looks(run: Path, pictures: Path) -> None:
    model = load_model(last(run))
    pixels = np.asarray(Image.open(pictures / "noise.png"))
    image = torch.tensor(pixels).permute(2, 0, 1)[None]
    views = image.repeat(2, 1, 1, 1)[None]
    probabilities, _ = predict_views(model, views)
    [heat] = layer_cam(model, image, probabilities.argmax(dim=1))
    assert page.look_at_photo(model, views).picture == explanation(image[0], heat)


def test_mistakes_are_the_most_confident_first_and_of_a_class(run: Path) -> None:
    model, images = open_run(read_run(run))
    mistakes = page.Mistakes(model, *images.test_set)
    places = mistakes.most_confident(page.EVERY_CLASS)
    probabilities = mistakes.probabilities.max(dim=1).values[places].tolist()
    assert probabilities == sorted(probabilities, reverse=True)
    blue, green, red = (mistakes.most_confident(label) for label in range(3))
    assert sorted(blue + green + red) == sorted(places)
    assert len(blue) >= SWAPPED
    assert mistakes.choices()[:2] == [
        (f"every class ({len(places)} wrong)", page.EVERY_CLASS),
        (f"blue ({len(blue)} wrong)", 0),
    ]
    picture, caption = mistakes.gallery(0)[0]
    share = f"{100 * max(mistakes.probabilities[blue[0]].tolist()):.1f}"
    assert caption == f"blue → red ({share}\N{NO-BREAK SPACE}%)"
    assert np.array_equal(picture, images.test_set[0][blue[0]].numpy())


def test_the_photo_is_whole_and_upright(run: Path, pictures: Path) -> None:
    model = load_model(last(run))
    photo = page.look_at_file(model, str(pictures / "turned.jpg")).photo
    assert photo is not None
    assert (photo.size, photo.mode) == ((32, 64), "RGB")  # in the file it lies
    Image.new("L", (2000, 1000)).save("large.png")
    large = page.look_at_file(model, "large.png").photo
    assert large is not None
    assert large.size == (512, 256)


def test_the_detail_names_the_true_class(run: Path) -> None:
    model, images = open_run(read_run(run))
    mistakes = page.Mistakes(model, *images.test_set)
    [place, *_] = mistakes.most_confident(0)
    found = mistakes.look(model, place)
    assert found.verdict() == "It is **blue**, taken for **red**."
    image = images.test_set[0][place].permute(2, 0, 1)[None]
    _, known = predict_views(model, image[None])
    plain = page.look(model, image, mistakes.probabilities[place][None], known)
    assert plain.verdict() == ""
    assert found._replace(true=None) == plain
    assert page.escape("a_b <i>*x*</i> ü") == r"a\_b \<i\>\*x\*\<\/i\> ü"


def test_of_many_classes_the_first_are_listed(run: Path) -> None:
    model = load_model(last(run))
    assert page.known_classes(model) == "blue, green, red"
    model.hparams["classes"] = [f"c{number}" for number in range(60)]
    assert page.known_classes(model).endswith("c48, c49, and 10 more")


def test_examples_are_drawn_for_the_network_that_is_there() -> None:
    scenes = examples(["airplane", "truck"])
    assert [name for _, name in scenes] == [
        *("airplane", "automobile", "bird", "frog", "ship", "truck")
    ]
    assert {picture.size for picture, _ in scenes} == {(256, 256)}
    assert len({picture.tobytes() for picture, _ in scenes}) == 6
    shapes = examples(list(SHAPES))
    assert sorted(name for _, name in shapes) == sorted(2 * SHAPES)


def look_at(picture: Image.Image, model: LitCustomResNet) -> Any:
    views = torch.from_numpy(to_views(picture)).permute(0, 3, 1, 2)[None]
    return page.look_at_photo(model, views)


def test_the_weights_of_the_project_know_the_examples() -> None:
    model = load_model()
    for picture, name in examples(list(model.hparams["classes"])):
        assert next(iter(look_at(picture, model).probabilities)) == name


def test_mistakes_of_a_network_on_any_images(
    run: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(page, "build_page", lambda *given: shown.append(given))
    images = str(run.parent / "images")
    ckpt = ("--ckpt_path", str(last(run)), "--port", str(free_port()))
    assert command(app, *ckpt, "--data_dir", images).code == 0
    assert command(app, *ckpt).code == 0
    [(_, mistakes), (_, none)] = shown
    model, tested = open_run(read_run(run))
    expected = page.Mistakes(model, *tested.test_set)
    assert none is None
    assert mistakes.choices() == expected.choices()


def test_no_two_handlers_use_the_network_at_once(run: Path) -> None:
    async def build() -> Any:  # without a loop Gradio makes some, and leaves them open
        model, images = open_run(read_run(run))
        return page.build_page(model, page.Mistakes(model, *images.test_set))

    blocks = asyncio.run(build())
    handlers = [handler for handler in blocks.fns.values() if handler.fn]
    clicks = [one for one in handlers if one.targets[0][1] == "select"]
    # "once" would drop a click while the one before is being answered.
    assert [click.trigger_mode for click in clicks] == ["multiple", "multiple"]
    assert len(handlers) == 4
    assert {handler.concurrency_id for handler in handlers} == {"network"}
    assert {handler.concurrency_limit for handler in handlers} <= {1, "default"}


WRONG = {
    "port 0": (["--port", "0"], "--port must be a whole number, from 1 to 65535, got"),
    "port 65536": (["--port", "65536"], "--port must be a whole number, from 1 to 6"),
    "port word": (["--port", "web"], "--port must be a whole number, got 'web'"),
    "host": (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 7860: no page can be"),
    "long host": (["--host", "a" * 70], f"--host {'a' * 70} --port 7860: no page can"),
    "run": (["--run", "nosuch"], "nosuch: no such folder; give the folder of a run"),
    "no run": (["--run", "."], ". has no config.yaml, no metrics.json, no metrics.csv"),
    "checkpoint": (["--ckpt_path", "nosuch"], "--ckpt_path nosuch: no such file"),
    "no checkpoint": (["--ckpt_path", "text"], "--ckpt_path text: damaged, or not a"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    Path("text").write_text("no checkpoint")
    if "--host" not in arguments:
        monkeypatch.setattr(socket.socket, "bind", lambda *_: None)  # 7860 may be busy
    done = command(app, *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert done.err.startswith(f"app.py: error: {message}")


def test_a_port_that_is_busy(command: Callable[..., Done]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = command(app, "--port", port)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"--port {port}: no page can be served there (Address already" in done.err


def test_a_missing_package_is_one_line(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = command(app, "--port", str(free_port()))
    assert done == (
        2,
        "",
        "app.py: error: it needs gradio; pip install -r requirements-extras.txt\n",
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def serve_page(arguments: list[str]) -> None:
    """Run app.py with temporary files in `uploads`; tell of addresses elsewhere.

    There are proxies that do not answer, or that nobody here can speak to.
    """
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
    os.environ |= proxies
    tempfile.tempdir = str(Path("uploads").resolve())
    Path(tempfile.tempdir).mkdir()

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(details[1], tuple):
            if details[1][0] not in ("127.0.0.1", "::1"):
                print("outside:", details[1], flush=True)
        elif event == "socket.getaddrinfo" and details[0] not in ("127.0.0.1", None):
            print("outside:", details[0], flush=True)

    sys.addaudithook(watch)
    sys.argv = ["app.py", *arguments]
    app.main()


class Server(NamedTuple):
    """A page that is served."""

    address: str
    process: BaseProcess
    log: Path


@pytest.fixture(scope="module")
def server(
    fork: Callable[..., BaseProcess],
    run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    arguments = ["--run", str(run), "--port", str(port), "--device", "cpu"]
    process = fork(folder, serve_page, arguments)
    log, address = folder / "log", f"http://127.0.0.1:{port}/"
    for _ in range(600):
        if not process.is_alive() or (log.exists() and address in log.read_text()):
            break
        time.sleep(0.1)
    assert log.read_text() == f"{address}\n"
    yield Server(address, process, log)
    process.kill()
    process.join()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["desk", "phone"])
def tab(
    request: pytest.FixtureRequest, browser: "Browser", server: Server
) -> Iterator["Page"]:
    """The page as it is loaded; at the end nothing may have gone wrong in it."""
    scheme, width = request.param
    opened = browser.new_page(
        color_scheme=scheme, viewport={"width": width, "height": 844}
    )
    opened.set_default_timeout(PATIENCE)
    wrong: list[str] = []

    def check_request(url: str) -> None:
        if urlsplit(url).hostname not in ("127.0.0.1", None):  # None: data and blobs
            wrong.append(url)

    def check_message(kind: str, text: str) -> None:
        if kind == "error":
            wrong.append(text)

    opened.on("request", lambda sent: check_request(sent.url))
    opened.on("console", lambda message: check_message(message.type, message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(server.address)
    yield opened
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert opened.evaluate(overflow) <= 0
    opened.close()
    assert wrong == []


def upload(tab: "Page", path: Path, *, is_first: bool = False) -> None:
    if not is_first:
        tab.get_by_label("Clear").click()
    tab.locator("input[type=file]").set_input_files(path)


# A page changes piece by piece, so whatever is read of it is waited for by itself.


def wait_for_label(tab: "Page", probabilities: dict[str, float]) -> None:
    """Wait until the classes are shown with these probabilities."""
    sync_api.expect(
        tab.locator(".confidence-set").locator("visible=true")
    ).to_have_text(
        [
            re.compile(rf"^\s*{re.escape(name)}\s*{share:.0%}\s*$")
            for name, share in probabilities.items()
        ],
        use_inner_text=True,
        timeout=PATIENCE,
    )


def wait_for_picture(tab: "Page", picture: np.ndarray) -> None:
    """Wait until these pixels, uint8 (H, W, 3), are shown."""
    shown = tab.get_by_alt_text("The image as the network").locator("visible=true")
    for _ in range(PATIENCE // 100):
        shown.wait_for()
        sent = tab.request.get(shown.get_attribute("src") or "")
        with Image.open(io.BytesIO(sent.body())) as image:
            if np.array_equal(np.asarray(image), picture):
                return
        tab.wait_for_timeout(100)
    raise AssertionError("another picture is shown")


def test_an_image_is_classified_in_a_browser(
    tab: "Page", run: Path, pictures: Path
) -> None:
    model = load_model(last(run))
    note = tab.get_by_label("Note").locator("visible=true")
    for name in ("turned.jpg", "noise.png"):
        found = page.look_at_file(model, str(pictures / name))
        upload(tab, pictures / name, is_first=name == "turned.jpg")
        wait_for_label(tab, found.probabilities)
        wait_for_picture(tab, found.picture)
        if found.known:
            sync_api.expect(note).to_have_count(0, timeout=PATIENCE)
        else:
            warning = re.compile("Probably none of the classes")
            sync_api.expect(note).to_have_value(warning, timeout=PATIENCE)
    upload(tab, pictures / "text.png")
    refusal = re.compile("^text.png: not a readable image .none of AVIF, BMP")
    sync_api.expect(note).to_have_value(refusal, timeout=PATIENCE)
    shown = tab.get_by_alt_text("The image as the network").locator("visible=true")
    sync_api.expect(shown).to_have_count(0, timeout=PATIENCE)


def test_a_drawing_is_classified_in_a_browser(tab: "Page", run: Path) -> None:
    model = load_model(last(run))
    drawn, _ = examples(list(model.hparams["classes"]))[3]
    tab.locator(".examples .thumbnail-item").nth(3).click()
    found = look_at(drawn, model)
    wait_for_label(tab, found.probabilities)
    wait_for_picture(tab, found.picture)
    sync_api.expect(tab.get_by_alt_text("The image as it is")).to_be_visible()
    sync_api.expect(
        tab.get_by_text("It knows these classes: blue, green, red.")
    ).to_be_visible()


def test_mistakes_are_browsed_in_a_browser(tab: "Page", run: Path) -> None:
    model, images = open_run(read_run(run))
    mistakes = page.Mistakes(model, *images.test_set)
    tab.get_by_role("tab", name="Mistakes").click()
    tab.get_by_label("True class").click()
    tab.get_by_role("option", name="blue (").click()
    captions = [caption for _, caption in mistakes.gallery(0)]
    thumbnails = tab.locator(".mistakes .thumbnail-item")
    sync_api.expect(thumbnails).to_have_count(len(captions), timeout=PATIENCE)
    for number, caption in enumerate(captions):
        image = thumbnails.nth(number).locator("img")
        sync_api.expect(image).to_have_attribute("alt", caption, timeout=PATIENCE)
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
    answer = tab.locator("#answer")
    sync_api.expect(answer).to_have_count(0)  # it takes no room before there is one
    thumbnails.nth(1).click()
    place = mistakes.most_confident(0)[1]
    found = mistakes.look(model, place)
    wait_for_label(tab, found.probabilities)
    wait_for_picture(tab, found.picture)
    sync_api.expect(answer.get_by_text("It is blue, taken for red.")).to_be_visible()
    is_above = "() => document.getElementById('answer').getBoundingClientRect().top <"
    is_above += " document.querySelector('.mistakes').getBoundingClientRect().top"
    assert tab.evaluate(is_above) == (tab.evaluate("innerWidth") == 390)
    tab.wait_for_function(
        "() => document.getElementById('answer').getBoundingClientRect().top < 600"
    )
    tab.get_by_label("True class").click()
    tab.get_by_role("option", name="every class (").click()
    thumbnails.nth(0).click()  # whatever is in the gallery by now; see the log below


def test_ctrl_c_ends_it_and_nothing_is_left(server: Server) -> None:
    uploads = server.log.parent / "uploads"
    assert list(uploads.iterdir()) != []
    assert server.process.pid is not None
    os.kill(server.process.pid, signal.SIGINT)
    server.process.join(30)
    assert server.process.exitcode == 130
    assert server.log.read_text() == f"{server.address}\n"
    assert list(uploads.iterdir()) == []
