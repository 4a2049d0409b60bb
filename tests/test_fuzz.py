"""Random flags, configurations and files: a result or one line, never a traceback."""

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import train
from common import cli
from common.errors import InputError
from config import Config
from images.sources import load
from run_files import LAST, assert_same
from training.resume import read_checkpoint


def fuzz(cases: int) -> settings:
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,  # the same cases everywhere
        suppress_health_check=list(HealthCheck),
    )


class ReachedError(Exception):
    """The training would begin now."""


def run_command(*argv: str) -> None:
    """Everything before the training must end well, or with one line and code 2."""
    reached = mock.Mock(side_effect=ReachedError)
    output, error = io.StringIO(), io.StringIO()
    code: Any = None
    with (
        mock.patch.object(sys, "argv", ["train.py", *argv]),
        mock.patch.object(train, "settle_lr", reached),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(error),
    ):
        try:
            train.main()
        except ReachedError:
            return
        except SystemExit as end:
            code = end.code
    lines = [line for line in error.getvalue().splitlines() if "Decoding" not in line]
    assert code == 2, argv
    assert len(lines) == 1, lines
    assert lines[0].startswith("train.py: error: ")


FLAGS = sorted(cli.parse(Config, []))
# No slash: a test must not write elsewhere. No NUL and lone surrogate: no command line
# can hold them.
WORDS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]))
NUMBERS = (
    st.integers(-2, 600)
    | st.sampled_from([10**9, 2**63, 10**30, -(10**12)])
    | st.floats()
)
SENSIBLE = st.sampled_from(["true", "false", "auto", "null", "last", "1", "32", "cpu"])
VALUES = st.one_of(NUMBERS.map(str), SENSIBLE, WORDS)


@pytest.fixture
def base(image_folder: Path) -> list[str]:
    return ["--data_dir", str(image_folder), "--batch_size", "32", "--base_width", "1"]


def check_flags(base: list[str], flags: list[tuple[str, str]]) -> None:
    drawn = [part for flag, value in flags for part in (f"--{flag}", value)]
    run_command(*base, *drawn)


def check_config(base: list[str], config: Any) -> None:
    if isinstance(config, bytes):
        Path("fuzz.yaml").write_bytes(config)
    else:
        Path("fuzz.yaml").write_text(yaml.safe_dump(config))
    run_command(*base, "--config", "fuzz.yaml")


some_flags = st.lists(st.tuples(st.sampled_from(FLAGS), VALUES), min_size=1, max_size=4)
plain = st.none() | st.booleans() | NUMBERS | SENSIBLE | WORDS
some_configs = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(FLAGS) | WORDS,
        plain | st.lists(plain, max_size=3) | st.dictionaries(WORDS, plain, max_size=2),
        max_size=4,
    ),
    plain,
)


@fuzz(80)
@given(flags=some_flags)
def test_flags(base: list[str], flags: list[tuple[str, str]]) -> None:
    check_flags(base, flags)


@pytest.mark.slow
@fuzz(300)
@given(flags=some_flags)
def test_flags_often(base: list[str], flags: list[tuple[str, str]]) -> None:
    check_flags(base, flags)


@fuzz(40)
@given(config=some_configs)
def test_configurations(base: list[str], config: Any) -> None:
    check_config(base, config)


@pytest.mark.slow
@fuzz(400)
@given(config=some_configs)
def test_configurations_often(base: list[str], config: Any) -> None:
    check_config(base, config)


class Damage(NamedTuple):
    """Cuts bytes off, flips a bit, or puts other bytes in their place."""

    kind: str
    where: float
    bit: int
    others: bytes

    def __call__(self, content: bytes) -> bytes:
        """Damage some bytes."""
        place = int(self.where * len(content))
        if self.kind == "cut":
            return content[:place]
        flipped = bytes([content[place] ^ 1 << self.bit])
        new = flipped if self.kind == "flip" else self.others
        return content[:place] + new + content[place + len(new) :]


DAMAGES = st.builds(
    Damage,
    kind=st.sampled_from(["cut", "flip", "replace"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    others=st.binary(min_size=1, max_size=300),
)


@pytest.fixture(scope="session")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    train.train(
        accelerator="cpu",
        devices=1,
        data_dir=str(image_folder),
        batch_size=32,
        max_epochs=1,
        base_width=1,
        lr=0.01,
        output_dir=str(folder / "runs"),
        name="run",
    )
    return folder / LAST


def check_checkpoint(checkpoint: Path, damage: Damage) -> None:
    """It is refused, or nothing that matters was damaged."""
    Path("bad.ckpt").write_bytes(damage(checkpoint.read_bytes()))
    refused = ""
    try:
        read = read_checkpoint(Path("bad.ckpt"))
    except InputError as error:
        refused = str(error)
    if refused:
        assert re.fullmatch("--ckpt_path bad.ckpt: (damaged|not a ch).*", refused)
    else:
        assert_same(read, torch.load(checkpoint, weights_only=True))


@fuzz(80)
@given(damage=DAMAGES)
def test_checkpoints(checkpoint: Path, damage: Damage) -> None:
    check_checkpoint(checkpoint, damage)


@pytest.mark.slow
@fuzz(1000)
@given(damage=DAMAGES)
def test_checkpoints_often(checkpoint: Path, damage: Damage) -> None:
    check_checkpoint(checkpoint, damage)


FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def check_image(form: str, damage: Damage) -> None:
    """Load a folder of four images, one of them damaged."""
    shutil.rmtree("fuzz", ignore_errors=True)
    good = io.BytesIO()
    Image.effect_noise((20, 30), 90).convert("RGB").save(good, form)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        path = Path("fuzz", place, f"image.{form.lower()}")
        path.parent.mkdir(parents=True)
        is_bad = place == "train/b"
        path.write_bytes(damage(good.getvalue()) if is_bad else good.getvalue())
    refused = ""
    try:
        images = load("folder", Path("fuzz"))
    except InputError as error:
        refused = str(error)
    if refused:
        assert re.match(r".*train.b.image\.\w+'?: ", refused)
        assert "\n" not in refused
    else:
        assert images.train[0].shape == (2, 32, 32, 3)


@fuzz(60)
@given(form=st.sampled_from(FORMATS), damage=DAMAGES)
def test_images(form: str, damage: Damage) -> None:
    check_image(form, damage)


@pytest.mark.slow
@fuzz(1000)
@given(form=st.sampled_from(FORMATS), damage=DAMAGES)
def test_images_often(form: str, damage: Damage) -> None:
    check_image(form, damage)
