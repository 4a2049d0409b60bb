"""The three sources of images, and what can be wrong with them."""

import functools
import hashlib
import http.server
import logging
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from components import image_folder as folders
from components.errors import InputError
from components.image_folder import load_image_folder, to_pixels
from components.sources import fetch, load
from components.synthetic import SHAPES, draw_shapes


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """Two classes, two images of each in both splits."""
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.new("RGB", (32, 32), (100 * label, 50 * number, 7))
                image.save(tmp_path / "own" / split / name / f"{number}.png")
    return tmp_path / "own"


def test_image_folder_holds_the_pixels_and_labels(small_folder: Path) -> None:
    images = load("cifar10", small_folder)
    assert images.classes == ("cat", "dog")
    assert images.train_labels.tolist() == images.test_labels.tolist() == [0, 0, 1, 1]
    assert images.train_images.shape == (4, 32, 32, 3)
    assert images.train_images[3, 5, 5].tolist() == [100, 50, 7]


def test_image_folder_is_decoded_once(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load("cifar10", small_folder)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_pixels", None)  # would fail if it were called
        assert torch.equal(load("cifar10", small_folder)[0], first[0])
        # However the folder is named.
        assert torch.equal(load("cifar10", Path(small_folder.name))[0], first[0])
    changed = Image.new("RGB", (32, 32), (9, 9, 9))
    changed.save(small_folder / "train" / "cat" / "0.png")
    assert load("cifar10", small_folder)[0][0, 0, 0].tolist() == [9, 9, 9]


def test_cache_goes_elsewhere_where_the_folder_cannot_be_written(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_folder / folders.CACHE_NAME).mkdir()  # so no file can take its place
    first = load("cifar10", small_folder)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_pixels", None)
        assert torch.equal(load("cifar10", small_folder)[0], first[0])
    assert len(list(Path.home().glob(".cache/cifar10-lightning/*.npz"))) == 1


def test_torn_cache_is_decoded_again(small_folder: Path) -> None:
    first = load("cifar10", small_folder)
    cache = small_folder / folders.CACHE_NAME
    cache.write_bytes(cache.read_bytes()[:1000])
    assert torch.equal(load("cifar10", small_folder)[0], first[0])


def test_other_sizes_and_modes_are_converted_and_counted(
    small_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (32, 32), 77).save(small_folder / "train" / "cat" / "0.png")
    wide = Image.new("RGB", (90, 60), "red")
    wide.paste("blue", (15, 0, 75, 60))  # the centred square
    wide.save(small_folder / "train" / "dog" / "1.png")
    with caplog.at_level(logging.INFO):
        images = load("cifar10", small_folder)
    assert (images.train_images[0] == 77).all()
    assert images.train_images[3, 16, 16].tolist() == [0, 0, 255]
    assert (images.train_images[3, :, 1:-1, 2] > 250).all()
    assert "train: 2 of 4 images were converted to 32x32 RGB" in caplog.text
    assert "test:" not in caplog.text


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (32, 32), (200, 100, 50, 0)), (0, 0, 0)),
        (Image.new("RGBA", (8, 8), (200, 100, 50, 255)), (200, 100, 50)),
        (Image.fromarray(np.full((32, 32), 257 * 90, np.uint16)), (90, 90, 90)),
        (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (32, 32), 1), (255, 255, 255)),
    ],
    ids=["transparent", "opaque", "16 bits", "CMYK", "1 bit"],
)
def test_modes(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = to_pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(expected)).all()


def test_exif_orientation_is_followed() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.putpixel((0, 0), (255, 255, 255))
    image.getexif()[0x0112] = 6  # turned by a quarter
    assert to_pixels(image)[0, 31].tolist() == [255, 255, 255]


def empty_class(folder: Path) -> None:
    (folder / "train" / "emu").mkdir()


def missing_class(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dog")


def missing_split(folder: Path) -> None:
    (folder / "test").rename(folder / "tset")


def broken_image(folder: Path) -> None:
    (folder / "test" / "dog" / "1.png").write_text("not an image")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (empty_class, "emu"),
        (missing_class, "class 'dog' is not in both"),
        (one_class, "only the class 'cat'; give at least two"),
        (missing_split, "test: no such folder"),
        (broken_image, r"test.dog.1\.png: not a readable image"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    small_folder: Path, damage: object, named: str
) -> None:
    assert callable(damage)
    damage(small_folder)
    with pytest.raises(InputError, match=named):
        load_image_folder(small_folder)


def test_shapes_are_varied_balanced_and_repeatable() -> None:
    images, labels = draw_shapes(100, seed=1)
    assert images.shape == (100, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [10] * len(SHAPES)
    assert torch.equal(images, draw_shapes(100, seed=1)[0])
    assert not torch.equal(images, draw_shapes(100, seed=2)[0])
    spread = images.double().std(dim=0)  # of each pixel over the images
    assert spread.min() > 30


def test_synthetic_source_has_the_documented_sizes(tmp_path: Path) -> None:
    images = load("synthetic", tmp_path / "nowhere")
    assert images.train_images.shape == (5000, 32, 32, 3)
    assert images.test_images.shape == (1000, 32, 32, 3)
    assert images.classes == SHAPES
    train = {image.numpy().tobytes() for image in images.train_images}
    assert not any(image.numpy().tobytes() in train for image in images.test_images)


def test_no_data_and_no_network_names_all_ways_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch("cifar10", tmp_path / "empty")
    text = str(caught.value)
    assert "\n" not in text
    for way in (str(tmp_path / "empty"), "cifar-10-batches-py", "train/<class>/"):
        assert way in text
    assert "--data synthetic" in text
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def served_cifar10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """A tiny CIFAR-10 archive on a loopback server; yields the paths asked for."""
    batches = tmp_path / "made" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, name in enumerate(names):
        data = np.full((2, 3 * 32 * 32), number, np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": data, "labels": [1, 0]}))
    meta = {"label_names": ["cat", "dog"]}
    (batches / "batches.meta").write_bytes(pickle.dumps(meta))
    archive = tmp_path / "made" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, batches.name)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(archive.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
    monkeypatch.setattr(CIFAR10, "url", url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    for attribute in ("train_list", "test_list"):
        listed = getattr(CIFAR10, attribute)
        sums = [[name, md5(batches / name)] for name, _ in listed]
        monkeypatch.setattr(CIFAR10, attribute, sums)
    known = CIFAR10.meta | {"md5": md5(batches / "batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", known)
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_cifar10_is_downloaded_once(tmp_path: Path, served_cifar10: list[str]) -> None:
    folder = tmp_path / "data"
    fetch("cifar10", folder)
    images = load("cifar10", folder)
    assert images.classes == ("cat", "dog")
    assert images.train_images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert images.test_images[:, 0, 0, 0].tolist() == [5, 5]
    assert images.test_labels.tolist() == [1, 0]
    downloads = len(served_cifar10)
    assert downloads > 0
    fetch("cifar10", folder)
    assert len(served_cifar10) == downloads


def test_a_download_with_the_wrong_checksum_is_refused(
    tmp_path: Path, served_cifar10: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(InputError, match="not found or corrupted"):
        fetch("cifar10", tmp_path / "data")
