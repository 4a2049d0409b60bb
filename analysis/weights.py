"""Weights in a `.safetensors` file, with all that a program must know to use them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import InputError
from common.text import one_line
from lightning_module import LitCustomResNet
from training.resume import Checkpoint

NOTES = ("config", "measured", "features")  # beside the hyper-parameters, if known


def save_weights(model: LitCustomResNet, notes: dict[str, Any], path: Path) -> None:
    """Write the weights of the network; every entry of the metadata is JSON.

    Args:
        model: The network. Tensors that lose nothing by it are stored as float16.
        notes: `config`, the flags that shaped the training, `measured`, what the
            weights reach, and `features` of training images, as far as known.
        path: The file.
    """
    weights = {name: compact(value) for name, value in model.net.state_dict().items()}
    known = {**model.hparams, **notes}
    described = {name: json.dumps(value) for name, value in known.items()}
    path.write_bytes(save(weights, described))  # its own hides what goes wrong


def read_weights(path: Path, flag: str = "ckpt_path") -> Checkpoint:
    """The content of such a file in the form of a checkpoint; weights in float32.

    Args:
        path: The file.
        flag: The flag that named it, for messages.

    Raises:
        InputError: It is damaged, or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            known = {name: json.loads(text) for name, text in file.metadata().items()}
            weights = {f"net.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (AttributeError, OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"--{flag} {one_line(path)}: damaged, or not weights of this project "
            f"({one_line(error)}); give another"
        ) from None
    notes = {name: known.pop(name) for name in NOTES if name in known}
    half = torch.float16
    state = {name: v.float() if v.dtype == half else v for name, v in weights.items()}
    return {"hyper_parameters": known, "state_dict": state, **notes}


def round_weights(model: LitCustomResNet) -> None:
    """Round convolutions and the linear layer to float16; batch norm stays float32."""
    for parameter in model.net.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()


def compact(value: Tensor) -> Tensor:
    """A tensor as float16, if that changes no value."""
    rounded = value.half()
    is_same = value.is_floating_point() and torch.equal(rounded.float(), value)
    return rounded if is_same else value
