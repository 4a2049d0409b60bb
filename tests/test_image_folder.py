"""Image folders: what is read from them, from the cache, and what is refused."""

import logging
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.errors import InputError
from images import image_folder as folders
from images.class_folders import Listing, fingerprint
from images.image_folder import read_photo, to_pixels, to_rgb, to_views
from images.sources import load

Damage = Callable[[Path], object]
posix = pytest.mark.skipif(os.name != "posix", reason="files are different here")


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
    images = load("folder", small_folder)
    assert images.classes == ("cat", "dog")
    assert images.train[1].tolist() == images.test[1].tolist() == [0, 0, 1, 1]
    assert images.train[0].shape == (4, 32, 32, 3)
    assert images.train[0][3, 5, 5].tolist() == [100, 50, 7]


def test_image_folder_is_decoded_once(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load("folder", small_folder)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_pixels", None)  # would fail if it were called
        assert torch.equal(load("folder", small_folder).train[0], first.train[0])
        # However the folder is named.
        assert torch.equal(
            load("folder", Path(small_folder.name)).train[0], first.train[0]
        )
    changed = Image.new("RGB", (32, 32), (9, 9, 9))
    changed.save(small_folder / "train" / "cat" / "0.png")
    assert load("folder", small_folder).train[0][0, 0, 0].tolist() == [9, 9, 9]


def test_cache_goes_elsewhere_where_the_folder_cannot_be_written(
    small_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (
        small_folder / "train" / folders.CACHE_NAME
    ).mkdir()  # so no file can take its place
    first = load("folder", small_folder)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_pixels", None)
        assert torch.equal(load("folder", small_folder).train[0], first.train[0])
    assert len(list(Path.home().glob(".cache/cifar10-lightning/*.npz"))) == 1
    assert "not cached" not in caplog.text
    shutil.rmtree(Path.home() / ".cache")
    (Path.home() / ".cache").touch()
    load("folder", small_folder)
    assert caplog.text.count("train/.decoded.npz: decoded images not cached (") == 1
    assert caplog.text.count(".npz: decoded images not cached (") == 2


def test_what_a_killed_process_left_of_a_cache_is_taken_away(
    small_folder: Path,
) -> None:
    train = small_folder / "train"
    left, fresh = (train / f".{digit * 16}.tmp" for digit in "0f")
    theirs = train / ".notes.tmp"
    for path in (left, fresh, theirs):
        path.touch()
    for path in (left, theirs):
        os.utime(path, (0, 0))
    load("folder", small_folder)
    assert [path.exists() for path in (left, fresh, theirs)] == [False, True, True]


def test_other_sizes_and_modes_are_converted_and_counted(
    small_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (32, 32), 77).save(small_folder / "train" / "cat" / "0.png")
    wide = Image.new("RGB", (90, 60), "red")
    wide.paste("blue", (15, 0, 75, 60))  # the centred square
    wide.save(small_folder / "train" / "dog" / "1.png")
    with caplog.at_level(logging.INFO):
        images = load("folder", small_folder)
    assert (images.train[0][0] == 77).all()
    assert images.train[0][3, 16, 16].tolist() == [0, 0, 255]
    assert (images.train[0][3, :, 1:-1, 2] > 250).all()
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
        (Image.new("I", (32, 32), 257 * 90), (90, 90, 90)),
    ],
    ids=["transparent", "opaque", "16 bits", "CMYK", "1 bit", "32 bits"],
)
def test_modes(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = to_pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(expected)).all()


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (Image.new("RGB", (32, 32), (255, 254, 253)), (255, 254, 253)),
        (Image.new("L", (32, 32), 255), 255),
        (Image.fromarray(np.full((32, 32), 65535, np.uint16)), 65535),
    ],
    ids=["RGB", "L", "16 bits"],
)
def test_a_colour_that_stands_for_transparent_is_black(
    image: Image.Image, key: Any, tmp_path: Path
) -> None:
    image.save(tmp_path / "plain.png")
    image.putpixel((5, 7), 9 if isinstance(key, int) else (9, 9, 9))
    image.save(tmp_path / "cut-out.png", transparency=key)
    with Image.open(tmp_path / "plain.png") as plain:
        assert to_pixels(plain).min() >= 253
    with Image.open(tmp_path / "cut-out.png") as cut_out:
        pixels = to_pixels(cut_out).copy()
    seen = 9 if image.mode != "I;16" else 0
    assert pixels[7, 5].tolist() == 3 * [seen]
    pixels[7, 5] = 0
    assert (pixels == 0).all()


def write_png(path: Path, side: int, bits: int, *chunks: bytes) -> None:
    """A square PNG in shades of grey, of chunks that begin with their name."""
    head = b"IHDR" + struct.pack(">2I5B", side, side, bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, *chunks):
        length, check = len(chunk) - 4, zlib.crc32(chunk)
        content += struct.pack(">I", length) + chunk + struct.pack(">I", check)
    path.write_bytes(content)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_grey_of_few_bits_is_black(bits: int, tmp_path: Path) -> None:
    row = bytes(1 + 2 * bits) + 2 * bits * b"\xff"  # black beside white
    pixels = (b"IDAT" + zlib.compress(32 * row), b"IEND")
    transparent = b"tRNS" + struct.pack(">H", 2**bits - 1)
    for chunks, white in (((transparent, *pixels), 0), (pixels, 255)):
        write_png(tmp_path / "grey.png", 32, bits, *chunks)
        with Image.open(tmp_path / "grey.png") as image:
            assert to_pixels(image)[0, 15:17, 0].tolist() == [0, white]


def test_a_wide_image_is_cut_to_its_middle_and_squeezed_whole() -> None:
    image = Image.new("RGB", (96, 32), (0, 0, 200))
    image.paste((200, 0, 0), (0, 0, 32, 32))
    image.paste((0, 200, 0), (32, 0, 64, 32))
    cut, squeezed = to_views(image)
    assert np.array_equal(cut, to_pixels(image))
    assert (cut == (0, 200, 0)).all()
    assert [squeezed[16, at].tolist() for at in (3, 16, 28)] == [
        *([200, 0, 0], [0, 200, 0], [0, 0, 200])
    ]


def test_an_edge_gets_no_halo() -> None:
    """As it would by sharper ways to resize, which go beyond the levels of the edge."""
    for side in (20, 80):
        image = Image.new("RGB", (2 * side, side), (100, 100, 100))
        image.paste((150, 150, 150), (side, 0, 2 * side, side))
        cut, squeezed = to_views(image)
        for pixels in (cut, squeezed):
            assert (pixels.min(), pixels.max()) == (100, 150)


def test_exif_orientation_is_followed() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.putpixel((0, 0), (255, 255, 255))
    image.getexif()[0x0112] = 6  # turned by a quarter
    assert to_pixels(image)[0, 31].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_pillow_does(orientation: int) -> None:
    noise = np.random.default_rng(orientation).integers(256, size=(48, 32, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    image.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(image)
    assert to_rgb(image).tobytes() == turned.tobytes()


def test_exif_of_an_odd_type_does_no_harm(tmp_path: Path) -> None:
    """Some cameras write the unit of the resolution as a byte."""
    entries = struct.pack(">HHI2H HHI4B", 0x0112, 3, 1, 6, 0, 0x0128, 1, 1, 2, 0, 0, 0)
    exif = b"Exif\0\0MM" + struct.pack(">HIH", 42, 8, 2) + entries + bytes(4)
    Image.new("RGB", (60, 40), "lime").save(tmp_path / "odd.jpg", exif=exif)
    assert read_photo(tmp_path / "odd.jpg", 4096).size == (40, 60)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_of_a_moving_picture_the_first_frame_counts(
    small_folder: Path, name: str
) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    path = small_folder / "train" / "cat" / name
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    images = load("folder", small_folder).train[0]
    assert len(images) == 5
    position = sorted(["0.png", "1.png", name]).index(name)
    assert (images[position] == torch.tensor([255, 0, 0])).all()


def test_a_cmyk_photo_and_a_16_bit_scan(small_folder: Path) -> None:
    cats = small_folder / "train" / "cat"
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(cats / "0.jpg", quality=95)
    Image.fromarray(np.full((32, 32), 257 * 90, np.uint16)).save(cats / "1.png")
    images = load("folder", small_folder).train[0]
    assert (images[0].float() - torch.tensor([255.0, 0, 0])).abs().max() < 4
    assert (images[2] == 90).all()


def test_fifty_megapixels_are_read(small_folder: Path) -> None:
    path = small_folder / "train" / "cat" / "0.png"
    Image.new("1", (10_000, 5_000), 1).save(path)
    assert (load("folder", small_folder).train[0][0] == 255).all()


def test_a_file_without_a_name_for_it_that_is_too_large_is_named(
    small_folder: Path,
) -> None:
    path = small_folder / "train" / "cat" / "scan"
    write_png(path, 100_000, 1, b"IDAT")
    assert f"{path}: not a readable image (more than 8947" in refusal(small_folder)


def tear_photo(path: Path) -> None:
    with Image.open(path) as image:
        image.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-500])


IMAGE_FAULTS: dict[str, tuple[Damage, str]] = {
    "text": (lambda path: path.write_text("x"), "none of AVIF, BMP, GIF, JPEG, PNG, "),
    "empty": (
        lambda path: path.write_bytes(b""),
        "none of AVIF, BMP, GIF, JPEG, PNG, ",
    ),
    "PostScript": (
        lambda path: path.write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
        ),
        "none of AVIF, BMP, GIF, JPEG, PNG, ",
    ),
    "torn": (
        lambda path: path.write_bytes(path.read_bytes()[:-500]),
        "image file is truncated",
    ),
    "torn photo": (tear_photo, "image file is truncated"),
    "100 megapixels": (
        lambda path: write_png(path, 10_000, 1, b"IDAT"),
        "more than 89478485 pixels",
    ),
    "10 gigapixels": (
        lambda path: write_png(path, 100_000, 1, b"IDAT"),
        "more than 89478485 pixels",
    ),
    "bytes in 32 bits": (
        lambda path: Image.new("I", (32, 32), 255).save(path, "TIFF"),
        "pixels from 255 to 255 have no agreed white",
    ),
    "floats": (
        lambda path: Image.new("F", (32, 32), 0.5).save(path, "TIFF"),
        "floating-point pixels have no agreed white",
    ),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
@pytest.mark.filterwarnings("default")  # as for a user
def test_an_image_that_cannot_be_read_is_named(small_folder: Path, fault: str) -> None:
    damage, reason = IMAGE_FAULTS[fault]
    path = small_folder / "test" / "dog" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    damage(path)
    text = refusal(small_folder)
    assert text.startswith(f"{path}: not a readable image ({reason}")
    assert text.endswith("); replace or remove it")


def test_an_image_that_must_not_be_read_is_named(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Image, "open", refuse)
    assert "0.png: not a readable image (Permission denied);" in refusal(small_folder)


def link_in_circle(path: Path) -> None:
    path.symlink_to(path.name)


@posix
@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("0.png", lambda path: path.symlink_to("gone.png"), "No such file"),
        ("more", lambda path: path.symlink_to("gone"), "No such file"),
        ("0.png", link_in_circle, "Too many levels of symbolic links"),
        ("more", link_in_circle, "Too many levels of symbolic links"),
        ("0.png", lambda path: path.symlink_to(os.devnull), "not a file"),
    ],
)
def test_what_is_no_file_is_named(
    small_folder: Path, name: str, make: Damage, reason: str
) -> None:
    path = small_folder / "train" / "cat" / name
    path.unlink(missing_ok=True)
    make(path)
    assert f"{path}: cannot be read ({reason}" in refusal(small_folder)


def empty_class(folder: Path) -> None:
    (folder / "train" / "emu").mkdir()


def missing_in_test(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")


def missing_in_train(folder: Path) -> None:
    shutil.copytree(folder / "test" / "dog", folder / "test" / "emu")


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dog")


def no_class(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def missing_split(folder: Path) -> None:
    (folder / "test").rename(folder / "tset")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (empty_class, "emu: no image (AVIF, BMP, "),
        (missing_in_test, "class 'dog' is in train/ but not in test/"),
        (missing_in_train, "class 'emu' is in test/ but not in train/"),
        (one_class, "only the class 'cat'; give at least two"),
        (no_class, "train: no class; put a folder per class there"),
        (missing_split, "test: no such folder"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    small_folder: Path, damage: Damage, named: str
) -> None:
    damage(small_folder)
    assert named in refusal(small_folder)


def test_a_class_that_the_validation_images_lack_is_named(small_folder: Path) -> None:
    shutil.copytree(small_folder / "train", small_folder / "val")
    shutil.rmtree(small_folder / "val" / "cat")
    assert "class 'cat' is in train/ but not in val/" in refusal(small_folder)


@posix
def test_a_class_that_is_a_broken_link_is_not_passed_over(small_folder: Path) -> None:
    for split in ("train", "test"):
        (small_folder / split / "emu").symlink_to("gone")
    assert "train/emu: cannot be read (No such file" in refusal(small_folder)


@posix
def test_an_error_is_one_line_whatever_the_names(small_folder: Path) -> None:
    (small_folder / "train" / "a\nb").mkdir()
    assert r"train/a\nb: no image" in refusal(small_folder)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load("folder", folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@posix
def test_links_are_followed_but_not_in_circles(
    small_folder: Path, tmp_path: Path
) -> None:
    train, test = small_folder / "train", small_folder / "test"
    (train / "cat" / "circle").symlink_to(".")
    (train / "dog" / "upwards").symlink_to("..")
    shutil.copytree(test / "cat", tmp_path / "elsewhere" / "more")
    (test / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(test / "cat")
    images = load("folder", small_folder)
    assert images.train[1].tolist() == [0, 0, 1, 1]
    assert images.test[1].tolist() == [0, 0, 0, 0, 1, 1]
    assert images.test[0][:, 0, 0, 1].tolist() == [0, 50, 0, 50, 0, 50]


def test_hidden_files_and_folders_named_like_images_are_passed_over(
    small_folder: Path,
) -> None:
    for split in ("train", "test"):
        (small_folder / split / ".ipynb_checkpoints").mkdir()
        for litter in ("@eaDir", "__MACOSX"):  # of a NAS, and of a Mac
            for place in (small_folder / split, small_folder / split / "cat"):
                (place / litter).mkdir()
                shutil.copy(small_folder / split / "dog" / "0.png", place / litter)
        (small_folder / split / "cat" / "._0.png").write_text("of a Mac")
        (small_folder / split / "cat" / "notes.txt").write_text("no image")
        (small_folder / split / "cat" / "x.png").mkdir()
    images = load("folder", small_folder)
    assert images.classes == ("cat", "dog")
    assert images.train[1].tolist() == [0, 0, 1, 1]


@posix
def test_names_may_be_in_any_script_or_none(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ["a\nb", "\N{CAT FACE} \u6a21\u578b", "Straße"]
    shown = [r"a\nb", *odd[1:]]
    if sys.platform == "linux":  # macOS has no names but in UTF-8
        odd.append(os.fsdecode(b"caf\xe9"))
        shown.append(r"caf\udce9")
    for split in ("train", "test"):
        for name in odd:
            folder = small_folder / split / name
            folder.mkdir()
            Image.new("RGB", (32, 32), "red").save(folder / f"{name}.png")
    first = load("folder", small_folder)
    assert sorted(first.classes) == sorted(["cat", "dog", *shown])
    assert sorted(first.train[1].bincount()) == [1] * len(odd) + [2] * 2
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_pixels", None)  # what follows is from the cache
        assert load("folder", small_folder).classes == first.classes
    (small_folder / "train" / odd[-1] / f"{odd[-1]}.png").write_text("x")
    assert f"{shown[-1]}.png: not a readable image" in refusal(small_folder)


@posix
def test_a_change_that_keeps_size_and_time_is_seen(small_folder: Path) -> None:
    path = small_folder / "train" / "cat" / "0.bmp"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    before = path.stat()
    assert load("folder", small_folder).train[0][0, 0, 0].tolist() == [1, 2, 3]
    Image.new("RGB", (32, 32), (4, 5, 6)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert load("folder", small_folder).train[0][0, 0, 0].tolist() == [4, 5, 6]


@posix
def test_the_same_file_in_another_class_is_seen(tmp_path: Path) -> None:
    """Where a move leaves the times of a file as they are, its name has to do."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "0.png").touch()
    os.link(tmp_path / "a" / "0.png", tmp_path / "b" / "0.png")
    one, other = (
        Listing(tmp_path, ["a", "b"], [str(tmp_path / name / "0.png")], np.zeros(1), [])
        for name in ("a", "b")
    )
    assert fingerprint(one) != fingerprint(other)


class Explosive:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def resave(cache: Path, **changes: object) -> None:
    with np.load(cache) as stored:
        arrays = dict(stored) | changes
    np.savez(cache, allow_pickle=True, **arrays)


def save_array(cache: Path) -> None:
    with cache.open("wb") as file:
        np.save(file, np.zeros(3))


CACHE_FAULTS: dict[str, Damage] = {
    "torn": lambda cache: cache.write_bytes(cache.read_bytes()[:1000]),
    "empty": lambda cache: cache.write_bytes(b""),
    "text": lambda cache: cache.write_text("not a cache"),
    "one array": save_array,
    "no arrays": lambda cache: np.savez(cache),
    "hostile": lambda cache: resave(cache, images=np.array([Explosive()])),
    "hostile key": lambda cache: resave(cache, key=np.array([Explosive()])),
    "fewer": lambda cache: resave(cache, images=np.zeros((3, 32, 32, 3), np.uint8)),
    "floats": lambda cache: resave(cache, images=np.zeros((4, 32, 32, 3))),
    "many counts": lambda cache: resave(cache, converted=np.zeros(2, np.int64)),
}


@pytest.mark.parametrize("fault", CACHE_FAULTS)
def test_a_bad_cache_is_replaced(
    small_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    first = load("folder", small_folder)
    CACHE_FAULTS[fault](small_folder / "train" / folders.CACHE_NAME)
    assert torch.equal(load("folder", small_folder).train[0], first.train[0])
    assert f"{folders.CACHE_NAME}: cache not usable" in caplog.text
    assert not Path("exploded").exists()
    monkeypatch.setattr(folders, "to_pixels", None)
    assert torch.equal(load("folder", small_folder).test[0], first.test[0])


def test_a_user_without_a_home_has_a_cache_in_the_folder_alone(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert len(load("folder", small_folder).train[0]) == 4
    assert (small_folder / "train" / folders.CACHE_NAME).exists()


def test_a_photo_is_made_smaller_by_means_of_its_pixels() -> None:
    """And not by picking some, which makes noise of fine patterns."""
    board = np.indices((320, 320)).sum(0) % 2 * np.uint8(255)
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    for pixels in (to_pixels(image), *to_views(image)):
        assert abs(pixels.astype(int) - 127).max() < 20


def test_a_damaged_file_of_a_camera_is_named(
    image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "own")
    (tmp_path / "own/train/red/DSC_1.JPG").write_bytes(b"")
    with pytest.raises(InputError, match=r"DSC_1\.JPG: not a readable image"):
        load("folder", tmp_path / "own")
