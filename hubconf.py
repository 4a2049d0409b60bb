"""The network and its weights for `torch.hub.load`.

torch.hub.load(FOLDER, "custom_resnet", source="local", pretrained=True)
"""

import importlib
import json
import pathlib
import sys
import typing

import safetensors
import torch

# Modules only above: every function and class of this file would be offered as a model.
dependencies = ["torch", "safetensors"]

_FOLDER = pathlib.Path(__file__).resolve().parent
_WEIGHTS = _FOLDER / "weights" / "cifar10.safetensors"


def _import_networks() -> typing.Any:
    """networks.py of this folder, also where a program has a module of this name."""
    theirs: dict[str, typing.Any] = {
        name: sys.modules.pop(name)
        for name in ("networks", "custom_resnet")
        if name in sys.modules
        and pathlib.Path(sys.modules[name].__file__ or "").resolve().parent != _FOLDER
    }
    try:
        return importlib.import_module("networks")
    finally:
        sys.modules.update(theirs)


networks = _import_networks()


class _Classifier(torch.nn.Module):
    """A network with its normalisation inside, so that nobody can get it wrong.

    Attributes:
        net: The network behind it, for normalised images.
        classes: Name of each output.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, known: dict[str, typing.Any]) -> None:
        super().__init__()
        self.classes: list[str] = known["classes"]
        name = known.get("net", "custom_resnet")
        self.net = networks.build_network(name, len(self.classes), known["base_width"])
        self.logit_scale: float = known.get("logit_scale", 1.0)
        constants = torch.tensor([known["mean"], known["std"]]).view(2, 1, 3, 1, 1)
        self.register_buffer("mean", constants[0], persistent=False)
        self.register_buffer("std", constants[1], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (B, 3, 32, 32) to logits (B, C)."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        logits: torch.Tensor = self.net((images - self.mean) / self.std)
        return self.logit_scale * logits


def custom_resnet(
    pretrained: bool = False,
    *,
    weights: str | pathlib.Path | None = None,
    num_classes: int = 10,
    base_width: int = 64,
) -> torch.nn.Module:
    """The custom ResNet, by itself or trained.

    It takes RGB images (B, 3, 32, 32) as they are, uint8 from 0 to 255 or floats from 0
    to 1, and returns logits. Normalisation is inside: do not normalise before. What is
    behind it, `.net`, takes normalised images.

    Args:
        pretrained: Load the weights that come with the project, trained on CIFAR-10.
        weights: Load these instead: a file of `export.py --format safetensors`, or a
            folder with one, such as a download of a model from a hub. What they were
            trained with decides network, classes, width and normalisation.
        num_classes: Without weights, the number of outputs.
        base_width: Without weights, channels of the first convolution.

    Returns:
        A module in evaluation mode if it is trained, in training mode otherwise; its
        `classes` are the names of its outputs.

    Raises:
        FileNotFoundError: There is no such file, or not one in the folder.
        ValueError: The file does not say what network it is of.
    """
    if not pretrained and weights is None:
        numbers = [str(number) for number in range(num_classes)]
        known = {"classes": numbers, "base_width": base_width}
        # Those of everyone for CIFAR-10.
        known |= {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
        return _Classifier(known)
    path = _find(pathlib.Path(weights or _WEIGHTS))
    with safetensors.safe_open(path, "pt") as file:
        described = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not described.keys() >= {"classes", "base_width", "mean", "std"}:
        raise ValueError(f"{path}: not of export.py --format safetensors; give another")
    known = {name: json.loads(text) for name, text in described.items()}
    model = _Classifier(known)
    model.net.load_state_dict(state)  # float16 becomes float32
    return model.eval()


def _find(path: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder, or the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file; give one of safetensors")
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{path}: {len(found)} .safetensors files in it, needs one; give a file"
        )
    return found[0]
