"""Test a trained network on all test images.

python evaluate.py --ckpt_path runs/NAME/checkpoints/last.ckpt --tta flip
python evaluate.py --data_dir data/cifar10 --json > accuracy.json
python evaluate.py --help
"""

import json as json_format
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from components import cli, environment
from components.environment import Precision
from components.errors import InputError
from components.inference import WEIGHTS, check_same_images, load_model
from components.sources import Source
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet, Tta


def evaluate(
    ckpt_path: str | None = None,
    data: Source = "cifar10",
    data_dir: str = "data",
    tta: Tta = "none",
    json: bool = False,
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto",
    precision: Precision = "32-true",
    batch_size: int = 512,
) -> dict[str, Any]:
    """Test a trained network on all test images, as train.py does at its end.

    Args:
        ckpt_path: Checkpoint of the network; null for the project's own weights.
        data: Images, as for train.py.
        data_dir: Folder of the images.
        tta: Test also on the sum of logits for each image and its mirror image.
        json: Write JSON instead of a table.
        accelerator: What computes; auto takes a GPU where there is one.
        precision: Number format; auto takes what train.py would.
        batch_size: Images at once; shapes nothing but the last digits of the loss.

    Returns:
        `test/acc` and `test/loss`, with TTA also `test/acc_tta`, the number of
        `images`, of each class its accuracy and number of images, and circumstances.

    Raises:
        InputError: A value or file that the user can put right.
    """
    if batch_size < 1:
        raise InputError(
            f"--batch_size must be a whole number, at least 1, got {batch_size}"
        )
    hardware = environment.choose_hardware(accelerator, 1, 1, "auto", precision)
    path = WEIGHTS if ckpt_path is None else Path(ckpt_path)
    model = load_model(None if ckpt_path is None else path)
    model.hparams["tta"] = tta
    # A batch may be larger than the training set, of which only mean and std are used.
    images = CIFAR10DataModule(data, data_dir, batch_size=1, val_size=0)
    images.prepare_data()
    images.setup()
    images.batch_size = batch_size
    check_same_images(model, images, path)
    torch.set_float32_matmul_precision("high")  # as in train.py
    trainer = pl.Trainer(
        **hardware.arguments,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    [tested] = trainer.test(model, datamodule=images, verbose=False)
    results = {
        **tested,
        "images": images.sizes()["test"],
        "classes": class_accuracies(model),
        "ckpt_path": str(path),
        **environment.circumstances(hardware),
    }
    print(json_format.dumps(results, indent=2) if json else table(results))
    return results


def class_accuracies(model: LitCustomResNet) -> dict[str, dict[str, Any]]:
    """Accuracy and number of test images of each class of a network just tested."""
    counts = model.test_confusion.compute()
    totals = counts.sum(dim=1).tolist()
    return {
        name: {"acc": right / total, "images": total}
        for name, right, total in zip(
            model.hparams["classes"], counts.diag().tolist(), totals, strict=True
        )
    }


def table(results: dict[str, Any]) -> str:
    """The results of `evaluate` in words."""
    lines = [
        ("test images", f"{results['images']}"),
        ("accuracy", f"{100 * results['test/acc']:.2f} %"),
    ]
    if "test/acc_tta" in results:
        lines.append(("with flip TTA", f"{100 * results['test/acc_tta']:.2f} %"))
    lines += [("loss", f"{results['test/loss']:.4f}"), ("", "")]
    lines += [
        (name, f"{100 * one['acc']:.2f} % of {one['images']}")
        for name, one in results["classes"].items()
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def main() -> None:
    """The command line."""
    cli.run("evaluate.py", evaluate)


if __name__ == "__main__":
    main()
