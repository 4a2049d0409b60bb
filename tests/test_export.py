"""Exports: each is read back by the program that it is for, and compared."""

import contextlib
import errno
import json
import math
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import export
from analysis.inference import predict_proba
from analysis.loading import WEIGHTS, load_model
from common import cli
from common.errors import InputError
from common.files import check_output
from lightning_module import LitCustomResNet
from run_files import LAST, weights

PROJECT = Path(__file__).resolve().parent.parent
CLASSES = ["blue", "green", "red"]


@pytest.fixture
def trained(quick_train: Callable[..., dict[str, Any]]) -> LitCustomResNet:
    """The network of a short run, which is in `LAST`."""
    quick_train()
    return load_model(LAST)


def random_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(
        256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator
    )


def expected(model: LitCustomResNet, images: Tensor) -> Tensor:
    return predict_proba(model, images.permute(0, 3, 1, 2))


def run(format: export.Format, **flags: Any) -> None:
    export.export(format=format, ckpt_path=str(LAST), **flags)


def test_onnx_gives_the_same_probabilities(
    trained: LitCustomResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    run("onnx")
    path = LAST.with_suffix(".onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [images], [output] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", 32, 32, 3]
    assert (output.name, output.type) == ("probabilities", "tensor(float)")
    assert output.shape == ["batch", len(CLASSES)]
    for count in (1, 7):
        batch = random_images(count)
        [found] = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(trained, batch))
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == CLASSES
    for name in ("mean", "std"):
        assert json.loads(known[name]) == list(trained.hparams[name])
    assert b"/export.py" not in path.read_bytes()  # where it was made is nobody's
    assert "probabilities within" in capsys.readouterr().out
    assert [file.name for file in LAST.parent.glob("*.onnx*")] == ["last.onnx"]


def test_torch_gives_the_same_probabilities(trained: LitCustomResNet) -> None:
    run("torch")
    extra = {"classes.json": ""}
    with export.needed_packages("torch"):
        program = torch.export.load(LAST.with_suffix(".pt2"), extra_files=extra)
    for count in (1, 7):
        images = random_images(count)
        torch.testing.assert_close(program.module()(images), expected(trained, images))
    assert json.loads(extra["classes.json"]) == CLASSES
    assert b"/export.py" not in LAST.with_suffix(".pt2").read_bytes()


def test_safetensors_hold_the_weights_and_what_to_know(
    trained: LitCustomResNet,
) -> None:
    run("safetensors")
    with safe_open(LAST.with_suffix(".safetensors"), "pt") as file:
        known = {name: json.loads(text) for name, text in file.metadata().items()}
        found = {f"net.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.testing.assert_close(found, weights(), rtol=0, atol=0, check_dtype=False)
    assert known["classes"] == CLASSES
    assert known["mean"] == list(trained.hparams["mean"])
    assert known["std"] == list(trained.hparams["std"])
    assert known["base_width"] == 4


def test_weights_are_a_checkpoint_without_the_optimizer(
    trained: LitCustomResNet,
) -> None:
    run("weights", output="weights.ckpt")
    saved = torch.load("weights.ckpt", weights_only=True)
    assert "optimizer_states" not in saved
    before = torch.load(LAST, weights_only=True)
    assert saved["images"] == before["images"] is not None  # what it was trained on
    assert saved["config"]["base_width"] == 4
    assert "data_dir" not in saved["config"]  # a folder of this machine
    images = random_images(3)
    restored = LitCustomResNet.load_from_checkpoint("weights.ckpt", weights_only=True)
    for model in (load_model(Path("weights.ckpt")), restored.eval()):
        assert list(model.hparams["classes"]) == CLASSES
        assert torch.equal(expected(model, images), expected(trained, images))
    assert {value.dtype for value in restored.state_dict().values()} == {
        torch.float32,
        torch.int64,  # batch norm's counters
    }


def test_the_programs_of_the_page_all_say_the_same(trained: LitCustomResNet) -> None:
    """Each as it stands there, on an image of the network's size."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    for format in ("onnx", "torch", "safetensors"):
        run(format)
    [image] = random_images(1)
    Image.fromarray(image.numpy()).save("photo.png")
    page = (PROJECT / "docs" / "exports.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.M)
    assert len(programs) == 3
    for program in programs:
        code = program.replace("runs/shapes", "runs/run").replace(".jpg", ".png")
        Path("program.py").write_text(code)
        with export.needed_packages("torch"):
            found = runpy.run_path("program.py")
        probabilities = torch.as_tensor(found["probabilities"])
        wanted = expected(trained, image[None])
        torch.testing.assert_close(probabilities, wanted, atol=1e-4, rtol=1e-3)
        assert list(found.get("classes") or found["known"]["classes"]) == CLASSES
    # The weights that come with the project are older than some of their metadata.
    own = code.replace("runs/run/checkpoints/last.safetensors", str(WEIGHTS))
    Path("program.py").write_text(own)
    probabilities = runpy.run_path("program.py")["probabilities"]
    torch.testing.assert_close(probabilities, expected(load_model(), image[None]))


def test_an_existing_file_is_only_replaced_when_asked(
    trained: LitCustomResNet,
) -> None:
    path = Path("mine")
    path.write_text("precious")
    with pytest.raises(InputError, match="--output mine: already there"):
        run("weights", output="mine")
    assert path.read_text() == "precious"
    run("weights", output="mine", overwrite=True)
    assert load_model(path).hparams["classes"] == trained.hparams["classes"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_what_is_no_file_is_not_replaced_even_when_asked() -> None:
    os.mkfifo("pipe")  # as a device is
    with pytest.raises(InputError, match="--output pipe: a folder or device; give"):
        check_output(Path("pipe"), overwrite=True)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "net.ckpt"), ("weights", "net.safetensors")]
)
def test_a_name_by_which_programs_would_misread_it_is_refused(
    form: export.Format, name: str
) -> None:
    with pytest.raises(InputError, match=rf"--output {name}: programs know {form} by"):
        run(form, output=name)
    assert not Path(name).exists()


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("error", "said"), [(0.01, r"1\.0e-02"), (2e-4, r"2\.0e-04"), (math.nan, "nan")]
)
def test_an_export_that_differs_is_not_kept(
    error: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> export.Classify:
        return lambda images: export.read_weights(path)(images) + error

    monkeypatch.setitem(export.FORMATS, "weights", (export.write_weights, wrong))
    with pytest.raises(InputError, match=f"differ from PyTorch's by {said}"):
        run("weights", output="new.ckpt")
    assert not Path("new.ckpt").exists()


@pytest.mark.usefixtures("trained")
def test_an_export_for_the_traced_number_of_images_only_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(path: Path) -> export.Classify:
        right = export.read_weights(path)
        return lambda images: right(images) if len(images) == 2 else 0 * right(images)

    monkeypatch.setitem(export.FORMATS, "weights", (export.write_weights, wrong))
    with pytest.raises(InputError, match="differ from PyTorch's by"):
        run("weights", output="new.ckpt")


@pytest.mark.usefixtures("trained")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
@pytest.mark.parametrize("form", ["safetensors", "torch", "weights"])
def test_a_full_folder_for_temporary_files_is_one_line(
    form: export.Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"draft{export.SUFFIXES[form]}"
    (tmp_path / name).symlink_to("/dev/full")
    monkeypatch.setattr(
        tempfile, "TemporaryDirectory", lambda **_: contextlib.nullcontext(tmp_path)
    )
    with pytest.raises(OSError, match="No space left") as caught:
        run(form, output=f"new{export.SUFFIXES[form]}")
    assert cli.explain(caught.value, ()) is not None
    assert not Path(f"new{export.SUFFIXES[form]}").exists()


@pytest.mark.usefixtures("trained")
def test_a_full_disk_leaves_the_file_that_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "draft.safetensors":  # to be copied to its place
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    path = Path("mine.safetensors")
    path.write_text("precious")
    with pytest.raises(OSError, match="No space left"):
        run("safetensors", output=str(path), overwrite=True)
    assert path.read_text() == "precious"


def test_half_rounds_a_checkpoint_too(trained: LitCustomResNet) -> None:
    run("weights", output="half.ckpt", half=True)
    rounded = load_model(Path("half.ckpt")).net
    for name, value in trained.net.named_parameters():
        wanted = value.half().float() if value.ndim > 1 else value
        assert torch.equal(rounded.get_parameter(name), wanted), name


@pytest.mark.usefixtures("trained")
def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-extras\.txt$"):
        run("onnx")


WRONG = {
    "no format": ([], "--format missing; give it, as in: python export.py"),
    "format": (["--format", "coreml"], "--format must be onnx, torch, "),
    "no checkpoint": (
        ["--format", "onnx", "--ckpt_path", "nosuch"],
        "--ckpt_path nosuch: no such file; give a checkpoint that train.py",
    ),
    "folder": (
        ["--format", "onnx", "--ckpt_path", str(LAST), "--output", "runs"],
        "--output runs: a folder or device; give a file",
    ),
    "no folder": (
        ["--format", "onnx", "--ckpt_path", str(LAST), "--output", "nosuch/x.onnx"],
        "--output nosuch/x.onnx: its folder is not there",
    ),
}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()  # the training's
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    with pytest.raises(SystemExit) as end:
        export.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.count("\n") == 1, error
    assert error.startswith(f"export.py: error: {message}")
