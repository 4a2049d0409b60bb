"""The network through `torch.hub.load`, as somebody else's program calls it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hubconf
from analysis.loading import WEIGHTS, load_model
from export import export
from run_files import LAST

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).mul(37).remainder(256).byte()
PROGRAM = f"""
import sys
import torch

source = {str(PROJECT)!r}
model = torch.hub.load(source, "custom_resnet", source="local", pretrained=True)
images = torch.load("images.pt", weights_only=True)
with torch.inference_mode():
    torch.save(model(images), "logits.pt")
print(model.classes[3])
others = {{"pytorch_lightning", "torchmetrics", "jsonargparse", "matplotlib", "common"}}
print(others & sys.modules.keys())
"""


def test_it_loads_from_another_folder_without_lightning(tmp_path: Path) -> None:
    torch.save(IMAGES, "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cat\nset()\n"
    logits = torch.load("logits.pt", weights_only=True)
    torch.testing.assert_close(logits, load_model()(IMAGES))


def test_a_program_keeps_its_own_module_of_networks(tmp_path: Path) -> None:
    torch.save(IMAGES, "images.pt")
    (tmp_path / "networks.py").write_text("mine = 3\n")
    program = f"import networks\n{PROGRAM}\nimport networks\nprint(networks.mine)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cat\nset()\n3\n"


def test_images_are_bytes_or_floats_up_to_one() -> None:
    model = hubconf.custom_resnet(pretrained=True)
    assert not model.training
    expected = load_model()(IMAGES)
    torch.testing.assert_close(model(IMAGES), expected)
    torch.testing.assert_close(model(IMAGES / 255), expected)
    mean, std = (getattr(model, name) for name in ("mean", "std"))
    behind: Any = model.net
    scaled = model.logit_scale * behind((IMAGES / 255 - mean) / std)
    torch.testing.assert_close(scaled, expected)


@pytest.mark.parametrize("half", [False, True])
def test_weights_of_ones_own_come_from_a_file_or_its_folder(
    half: bool, quick_train: Callable[..., dict[str, Any]]
) -> None:
    quick_train(max_epochs=1, whiten=True, logit_scale=0.25)
    Path("downloaded").mkdir()
    file = Path("downloaded") / "model.safetensors"
    export(format="safetensors", ckpt_path=str(LAST), output=str(file), half=half)
    expected = load_model(file)(IMAGES)
    for path in (file, file.parent, str(file.parent)):
        model = hubconf.custom_resnet(weights=path)
        torch.testing.assert_close(model(IMAGES), expected)
        assert model.classes == ["blue", "green", "red"]
        assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert hubconf._WEIGHTS == WEIGHTS  # others may lie beside these
    shutil.copy(file, file.with_name("second.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"downloaded: 2 \.safetensors files"):
        hubconf.custom_resnet(weights=file.parent)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such file"):
        hubconf.custom_resnet(weights="gone.safetensors")
    save_file({"weight": torch.zeros(1)}, "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors: not of export\.py"):
        hubconf.custom_resnet(weights="foreign.safetensors")


def test_without_weights_it_is_new() -> None:
    model = hubconf.custom_resnet(num_classes=7, base_width=4)
    assert model.training
    assert model(IMAGES).shape == (2, 7)
    known = load_model().hparams  # the same constants, for the same images
    mean, std = (getattr(model, name).flatten().tolist() for name in ("mean", "std"))
    assert mean == pytest.approx(known["mean"])
    assert std == pytest.approx(known["std"])


def test_what_it_depends_on_is_all_that_it_imports() -> None:
    assert hubconf.dependencies == ["torch", "safetensors"]
    offered = [name for name in vars(hubconf) if callable(getattr(hubconf, name))]
    assert [name for name in offered if not name.startswith("_")] == ["custom_resnet"]
    assert WEIGHTS.parent == PROJECT / "weights"
