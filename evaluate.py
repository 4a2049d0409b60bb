"""Test a trained network on all test images.

python evaluate.py --ckpt_path runs/NAME/checkpoints/last.ckpt --tta flip
python evaluate.py --json > accuracy.json
python evaluate.py --split_dir more_images        # more_images/CLASS/*, any JPEG or PNG
python evaluate.py --help
"""

import json as json_format
from collections.abc import Mapping
from typing import Any

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pytorch_lightning as pl
import torch

from analysis.loading import WEIGHTS, load_model, read_test_images
from common import cli
from common.errors import InputError
from common.files import expanded
from config import DEFAULT_DIR, Accelerator, Asked, Precision, Tta
from images.loader import EvalLoader, fits
from lightning_module import WITH_TTA, LitCustomResNet
from machine import memory, provenance
from machine.hardware import Hardware, choose_hardware, cudnn_benchmark


def evaluate(
    ckpt_path: str | None = None,
    data: Asked = "auto",
    data_dir: str = DEFAULT_DIR,
    split_dir: str | None = None,
    tta: Tta = "none",
    json: bool = False,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
    batch_size: int = 512,
) -> dict[str, Any]:
    """Test a trained network on all test images, as train.py does at its end.

    They need not be those that belong to its training images: any whose classes the
    network knows will do.

    Args:
        ckpt_path: Checkpoint of the network; null for the project's own weights.
        data: Images, as for train.py.
        data_dir: Folder of the images; of an image folder only test/ is read.
        split_dir: Folder with a folder per class, to test on instead.
        tta: Test also on each image and its mirror image, or on six views of it.
        json: Write JSON instead of a table.
        accelerator: What computes; auto takes a GPU where there is one.
        precision: Number format; auto takes what train.py would take.
        batch_size: Images at once; changes only the last digits of the loss.

    Returns:
        `test/acc` and `test/loss`, with TTA also those of `WITH_TTA`, the number of
        `images`, of each class its accuracy and number of images, and circumstances.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if batch_size < 1:
        raise InputError(
            f"--batch_size must be a whole number, at least 1, got {batch_size}"
        )
    hardware = choose_hardware(accelerator, precision=precision)
    path = WEIGHTS if ckpt_path is None else expanded(ckpt_path)
    model = load_model(ckpt_path)
    model.hparams["tta"] = tta
    images, labels = read_test_images(model, data, data_dir, split_dir)
    device = hardware.device
    loader = EvalLoader(
        images,
        labels,
        batch_size=batch_size,
        device=device,
        on_host=not fits(images.nbytes, memory.free_memory(device)),
    )
    results = {
        **test(model, loader, hardware),
        "images": len(labels),
        "classes": class_accuracies(model),
        "ckpt_path": str(path),
        **provenance.circumstances(hardware),
    }
    print(json_format.dumps(results, indent=2) if json else table(results))
    return results


def test(
    model: LitCustomResNet, loader: EvalLoader, hardware: Hardware
) -> Mapping[str, float]:
    """Test a network on the images of a loader, as train.py does on the test set.

    Returns:
        `test/acc`, `test/loss` and, with TTA, those of `WITH_TTA`; the network's
        `confusion` holds the counts by class.
    """
    torch.set_float32_matmul_precision("high")  # as in train.py
    trainer = pl.Trainer(
        **hardware.arguments,
        benchmark=cudnn_benchmark(hardware.device),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    [tested] = trainer.test(model, dataloaders=loader, verbose=False)
    return tested


def class_accuracies(model: LitCustomResNet) -> dict[str, dict[str, Any]]:
    """Accuracy and number of test images of each class of a network just tested.

    The accuracy of a class without images is None.
    """
    totals = model.confusion.sum(dim=1).tolist()
    rights = model.confusion.diag().tolist()
    return {
        name: {"acc": right / total if total else None, "images": total}
        for name, right, total in zip(
            model.hparams["classes"], rights, totals, strict=True
        )
    }


def table(results: dict[str, Any]) -> str:
    """The results of `evaluate` in words."""
    lines = [
        ("test images", f"{results['images']}"),
        ("accuracy", f"{100 * results['test/acc']:.2f} %"),
    ]
    lines += [
        (words, f"{100 * results[name]:.2f} %")
        for name, words in WITH_TTA.items()
        if name in results
    ]
    lines += [("loss", f"{results['test/loss']:.4f}"), ("", "")]
    lines += [
        (name, f"{100 * one['acc']:.2f} % of {one['images']}")
        for name, one in results["classes"].items()
        if one["images"]
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def main() -> None:
    """The command line."""
    cli.run("evaluate.py", evaluate)


if __name__ == "__main__":
    main()
