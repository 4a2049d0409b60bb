"""Write a trained network in a form that other programs read.

python export.py --format onnx --ckpt_path runs/NAME/checkpoints/last.ckpt
python export.py --help
"""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from analysis.inference import to_probabilities
from analysis.loading import WEIGHTS, load_model, read_trained
from analysis.weights import round_weights, save_weights
from common import cli
from common.errors import InputError
from common.files import check_output, expanded, replacing
from common.text import one_line
from config import IMAGE_SIZE, SHAPING
from lightning_module import LitCustomResNet
from training.checkpoint import serialised
from training.resume import Checkpoint

Format = Literal["onnx", "torch", "safetensors", "weights"]
# uint8 (B, 32, 32, 3), on the CPU -> float32 (B, C), probabilities.
Classify = Callable[[Tensor], Tensor]

SUFFIXES = {
    "onnx": ".onnx",
    "torch": ".pt2",
    "safetensors": ".safetensors",
    "weights": ".weights.ckpt",
}
BATCHES = (1, 7)  # sizes with which every export is checked
TOLERANCE = 1e-4  # largest difference of a probability from PyTorch's


class Classifier(nn.Module):
    """Probabilities of images as image files hold them; all preprocessing is inside."""

    def __init__(self, model: LitCustomResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (B, 32, 32, 3) to probabilities (B, C)."""
        scores: Tensor = self.model(images.permute(0, 3, 1, 2))
        return to_probabilities(scores, self.model.hparams["label_smoothing"])


def export(
    *,
    format: Format,
    ckpt_path: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    half: bool = False,
) -> None:
    """Write a trained network in a form that other programs read.

    onnx and torch (a .pt2 of torch.export) map images, uint8 (B, 32, 32, 3), to
    probabilities; safetensors holds the weights; weights is a checkpoint without the
    state of the optimizer. Each is read back and compared before it is kept.

    Args:
        format: What to write.
        ckpt_path: Checkpoint of the network; null for the project's own weights.
        output: File to write; null for the checkpoint's name with another suffix.
        overwrite: Replace the file that is there.
        half: Round the weights to float16 first; halves a safetensors file.

    Raises:
        InputError: The output is there, cannot be written or differs.
    """
    checkpoint = expanded(ckpt_path or WEIGHTS)
    model = load_model(ckpt_path)
    make_contiguous(model)
    if half:
        round_weights(model)
    target = expanded(output or checkpoint.with_suffix(SUFFIXES[format]))
    check_output(target, overwrite=overwrite)
    if (format == "safetensors") != (target.suffix == SUFFIXES["safetensors"]):
        raise InputError(
            f"--output {one_line(target)}: programs know {format} by the suffix; give "
            f"a name that ends in {SUFFIXES[format]}"
        )
    write, read = FORMATS[format]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        draft = Path(folder) / f"draft{SUFFIXES[format]}"
        with needed_packages(format):
            write(model, checkpoint, draft)
            difference = largest_difference(Classifier(model), read(draft))
        if not difference <= TOLERANCE:
            raise InputError(
                f"--format {format}: its probabilities differ from PyTorch's by "
                f"{difference:.1e}, more than {TOLERANCE}, so nothing is written; "
                "install the versions in requirements-extras.txt"
            )
        with replacing(target) as file:
            file.write(draft.read_bytes())
    print(
        f"{one_line(target)}: {target.stat().st_size / 1e6:.1f} MB, probabilities "
        f"within {difference:.1e} of PyTorch's on {sum(BATCHES)} random images"
    )


def make_contiguous(model: LitCustomResNet) -> None:
    """Lay every tensor out by itself, as files hold them."""
    model.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.mean, model.std = model.mean.clone(), model.std.clone()


@contextlib.contextmanager
def needed_packages(format: Format) -> Any:
    """Say in one line which packages a format needs, and silence their chatter.

    Raises:
        InputError: One is missing.
    """
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            # torch.export.load reads weights so, and nobody writes to them.
            # https://github.com/pytorch/pytorch/issues/129077
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            yield
    except ImportError as error:
        raise InputError(
            f"--format {format} needs the package {error.name}: "
            "pip install -r requirements-extras.txt"
        ) from None


def largest_difference(ours: Classify, theirs: Classify) -> float:
    """How far the probabilities of two networks differ on random images."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for size in BATCHES:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 3)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            differences.append((ours(images) - theirs(images)).abs().max())
    return float(torch.stack(differences).max())


def description(model: LitCustomResNet) -> dict[str, str]:
    """What a program must know beside the weights, as JSON."""
    names = ("classes", "mean", "std", "net", "base_width")
    return {name: json.dumps(model.hparams[name]) for name in names}


def trace(model: LitCustomResNet) -> ExportedProgram:
    """The graph of a network, for any number of images."""
    images = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(
        Classifier(model), (images,), dynamic_shapes=shapes, strict=False
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def write_onnx(model: LitCustomResNet, _: Path, path: Path) -> None:
    """Write an ONNX graph with the class names in its metadata."""
    import onnx

    program = torch.onnx.export(
        trace(model),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: "batch"}},  # the name of the axis in the file
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, description(model))
    onnx.save(proto, path)


def read_onnx(path: Path) -> Classify:
    """The network of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def classify(images: Tensor) -> Tensor:
        [shares] = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(shares)

    return classify


def write_torch(model: LitCustomResNet, _: Path, path: Path) -> None:
    """Write a .pt2 of torch.export with the class names as an extra file."""
    extra = {f"{name}.json": text for name, text in description(model).items()}
    content = io.BytesIO()  # torch ends the program where a file cannot be written
    torch.export.save(trace(model), content, extra_files=extra)
    path.write_bytes(content.getbuffer())


def read_torch(path: Path) -> Classify:
    """The network of a .pt2 file."""
    classify: Classify = torch.export.load(path).module()
    return classify


def write_safetensors(model: LitCustomResNet, checkpoint: Path, path: Path) -> None:
    """Write the weights of the network, and what shaped them in the metadata."""
    notes: dict[str, Any] = {"config": shaping_flags(read_trained(checkpoint))}
    save_weights(model, notes | known_features(model), path)


def known_features(model: LitCustomResNet) -> dict[str, Any]:
    """Where features of training images lie, as an entry of a file, if it is known."""
    return {} if model.features is None else {"features": model.features}


def shaping_flags(saved: Checkpoint) -> dict[str, Any]:
    """The flags of a training that shaped its weights; none if they are not known."""
    config = saved.get("config", {})
    known = {flag: config[flag] for flag in ("data", *SHAPING, "lr") if flag in config}
    if known.get("init_from") is not None:
        known["init_from"] = Path(known["init_from"]).name  # its folder is nobody's
    return known


def write_weights(model: LitCustomResNet, checkpoint: Path, path: Path) -> None:
    """Write a checkpoint with the weights and what shaped them, nothing else."""
    saved = read_trained(checkpoint)
    content = {
        "epoch": saved.get("epoch", 0),
        "global_step": saved.get("global_step", 0),
        "pytorch-lightning_version": version("pytorch-lightning"),
        "hyper_parameters": saved["hyper_parameters"],
        "state_dict": model.state_dict(),
        "config": shaping_flags(saved),
        "images": saved.get("images"),
        **known_features(model),
    }
    with path.open("wb") as file:
        file.writelines(serialised(content))


def read_weights(path: Path) -> Classify:
    """The network of a checkpoint or of a .safetensors file."""
    return Classifier(load_model(path))


Write = Callable[[LitCustomResNet, Path, Path], None]
FORMATS: dict[Format, tuple[Write, Callable[[Path], Classify]]] = {
    "onnx": (write_onnx, read_onnx),
    "torch": (write_torch, read_torch),
    "safetensors": (write_safetensors, read_weights),
    "weights": (write_weights, read_weights),
}


def main() -> None:
    """The command line."""
    cli.run("export.py", export)


if __name__ == "__main__":
    main()
