"""Train the custom ResNet on CIFAR-10, from the LR range test to the test report.

python train.py --accelerator gpu                                  # the real thing
python train.py --data synthetic --batch_size 128 --max_epochs 2   # no download, no GPU
python train.py --help

`train` does the same as a function.
"""

import logging
import time
from pathlib import Path
from typing import Any, Literal

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import numpy as np
import pytorch_lightning as pl
import torch

from common import cli, environment
from common.environment import Hardware, Precision
from common.errors import StoppedError
from common.files import expanded
from custom_resnet import layer_table
from datamodule import CIFAR10DataModule
from images.augmentation import Flip, PaddingMode
from images.sources import DEFAULT_DIR, Asked
from lightning_module import LitCustomResNet, Tta
from training.flags import check_flags, check_images, check_processes
from training.history import COLUMNS, History, TrainingClock
from training.lr_finder import Finder, RangeTest, range_test
from training.resume import (
    Checkpoint,
    check_same_run,
    read_checkpoint,
    read_newest,
)
from training.run_folder import RunFolder
from training.summary import (
    log_confusion,
    show_end,
    show_start,
    write_end,
    write_report,
    write_start,
)
from training.trainer import build_trainer

log = logging.getLogger(__name__)

PATHS = ("data_dir", "output_dir", "ckpt_path")  # flags
FAST_DEV_LR = 0.01  # fast_dev_run has too few steps for a range test


@environment.giving_memory_back()
def train(
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: Precision = "auto",
    max_epochs: int = 24,
    batch_size: int = 256,
    lr: float | Literal["auto"] = "auto",
    lr_steps: int = 100,
    lr_finder: Finder = "lightning",
    weight_decay: float = 0.3,
    label_smoothing: float = 0.2,
    ema_decay: float = 0.0,
    base_width: int = 64,
    seed: int = 0,
    data: Asked = "auto",
    data_dir: str | Path = DEFAULT_DIR,
    download_url: str | None = None,
    val_size: int | Literal["auto"] = "auto",
    crop_padding: int = 4,
    padding_mode: PaddingMode = "reflect",
    flip: Flip = "alternate",
    cutout: int = 8,
    tta: Tta = "none",
    output_dir: str | Path = "runs",
    name: str | None = None,
    overwrite: bool = False,
    ckpt_path: str | Path | None = None,
    ckpt_every_n_steps: int = 0,
    report: bool = True,
    fast_dev_run: bool | int = False,
    limit_train_batches: int | float = 1.0,
    limit_val_batches: int | float = 1.0,
    limit_test_batches: int | float = 1.0,
    deterministic: bool = False,
    compile: bool = False,
    sync_batchnorm: bool = False,
) -> dict[str, Any]:
    """Train the custom ResNet on CIFAR-10 and leave a run folder.

    Args:
        accelerator: What trains; auto takes a GPU where there is one.
        devices: Number of devices, a list of GPUs such as 0,1, or auto for all.
        num_nodes: Number of machines.
        strategy: Lightning's strategy for several devices, such as ddp.
        precision: Number format; auto takes bf16-mixed where the device is good at it.
        max_epochs: Length of the training in epochs.
        batch_size: Images in a batch, shared out among the devices.
        lr: Maximum learning rate of the one cycle; auto finds it by a range test.
        lr_steps: Length of the range test in steps.
        lr_finder: Package that runs the range test.
        weight_decay: Decoupled weight decay, per step and unit of learning rate.
        label_smoothing: Share of each target that is spread over all classes.
        ema_decay: Average the weights, keeping up to this share of it at each step.
        base_width: Channels of the first convolution; 64 gives 6,573,120 parameters.
        seed: Seed of weights, split, order and augmentation.
        data: Images: CIFAR-10, a folder of images, drawn shapes; auto by the folder.
        data_dir: Folder of the images, CIFAR-10's or train/CLASS/ and test/CLASS/.
        download_url: Where to look for CIFAR-10's archive before the known mirrors.
        val_size: Training images held out; auto is val/, or 5000, or a tenth of few.
        crop_padding: Border for the random crop in pixels; 0 for no crop.
        padding_mode: What the border shows: black, or the image reflected.
        flip: Mirror training images at random, or every image in every other epoch.
        cutout: Side of the cutout square in pixels; 0 for none.
        tta: Test also on each image and its mirror image, or on six views of it.
        output_dir: Folder of all runs.
        name: Name of this run's folder; null for time and seed.
        overwrite: Replace the run that is in the folder.
        ckpt_path: Checkpoint to go on from, or last for the run's newest.
        ckpt_every_n_steps: Save a checkpoint also every so many steps; 0 for not.
        report: Write report.html at the end.
        fast_dev_run: Try everything on one batch, or so many, and write nothing.
        limit_train_batches: Batches an epoch: a number, or a share such as 0.1.
        limit_val_batches: Validation batches, likewise; 0 for none.
        limit_test_batches: Test batches, likewise; 0 for no test and no report.
        deterministic: Use only algorithms that repeat bit for bit; slower on a GPU.
        compile: Compile the network with torch.compile; pays in long runs.
        sync_batchnorm: Share batch statistics among the GPUs; slower.

    Returns:
        What metrics.json holds: `train/loss`, `train/acc`, `val/...`, `test/...`
        (accuracies as fractions), `max_lr`, times and circumstances.

    Raises:
        InputError: A value or file that the user can put right.
        DivergedError: The loss became infinite or not a number.
        StoppedError: A signal ended the training, which is saved.
    """
    config = plain_values(locals())
    started = time.perf_counter()
    check_flags(config)
    hardware = environment.choose_hardware(
        *(config[flag] for flag in ("accelerator", "devices", "num_nodes")),
        *(config[flag] for flag in ("strategy", "precision")),
    )
    check_processes(config, hardware.world_size, hardware.device.type)
    if compile:
        environment.check_compiler(hardware.device)
    torch.set_float32_matmul_precision("high")  # TF32, where a GPU has it
    if hardware.device.type == "cpu":
        environment.keep_freed_memory()
    resume = config["ckpt_path"] == "last"
    trial = bool(config["fast_dev_run"])
    place = (config["output_dir"], config["name"], config["seed"])
    with RunFolder(*place, resume=resume, trial=trial) as run:
        return train_in(run, config, hardware, started)


def train_in(
    run: RunFolder, config: dict[str, Any], hardware: Hardware, started: float
) -> dict[str, Any]:
    """Train in a run folder; `train` says what is returned and raised.

    Args:
        run: The folder, of which nothing is taken away before all checks are passed.
        config: All flags.
        hardware: What to train on.
        started: When the run began, in seconds of `time.perf_counter`.
    """
    fast_dev_run = config["fast_dev_run"]
    checkpoint, saved = find_checkpoint(run, config)
    images = load_images(config)
    config |= {
        "precision": hardware.arguments["precision"],
        "data": images.source,
        "data_dir": str(images.data_dir),
        "val_size": images.val_size,
    }
    check_images(config, images.sizes(), hardware.world_size)
    if saved is not None:
        check_same_run(saved, config, images, hardware.world_size)
    if not fast_dev_run:
        run.create()
    config["lr"], test = settle_lr(config, images, hardware, saved)
    module = build_module(config, images)
    if not fast_dev_run:
        run.clear(overwrite=config["overwrite"])
    history, clock = History(None if fast_dev_run else run.metrics_csv), TrainingClock()
    trainer = build_trainer(config, hardware, run, images, history, clock, saved)
    show_start(layer_table(module.net), str(images), config)
    if not fast_dev_run:
        write_start(run, trainer, config, test)
    circumstances = environment.circumstances(hardware)  # now: files may change
    try:
        trainer.fit(module, datamodule=images, ckpt_path=checkpoint, weights_only=True)
        tested: dict[str, Any] = {"test/loss": None, "test/acc": None}
        if config["limit_test_batches"] or fast_dev_run:
            tested |= trainer.test(module, datamodule=images, verbose=False)[0]
    except StoppedError as stop:
        stop.checkpoints = run.newest_checkpoints()
        raise

    metrics: dict[str, Any] = {name: history.rows[-1].get(name) for name in COLUMNS}
    metrics |= {
        **tested,
        "max_lr": config["lr"],
        "epochs": trainer.current_epoch,
        # The whole of this process so far: data, range test, training and tests.
        "seconds": round(time.perf_counter() - started, 1),
        # Of it, the training epochs: augmentation included; validation, saving and what
        # comes before not. The images are on the device by then. The first run of a
        # process warms up the kernels in it, unless a range test has done so.
        "fit_seconds": round(clock.seconds, 3),
        "images_per_second": clock.images_per_second(),
        "seed": config["seed"],
        **circumstances,
    }
    if not fast_dev_run:
        if config["limit_test_batches"]:
            log_confusion(trainer, module)
        write_end(run, trainer, config, metrics, history.rows)
        if config["report"] and config["limit_test_batches"]:
            write_report(run, trainer, images)
        trainer.loggers[0].finalize("success")
    show_end(metrics, images, None if fast_dev_run else run.path)
    return metrics


def plain_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags as a file can hold them: numbers of Python, and paths with their home."""
    plain = {
        flag: value.item() if isinstance(value, np.generic) else value
        for flag, value in flags.items()
    }
    for flag in PATHS:
        if plain[flag] is not None:
            plain[flag] = str(expanded(plain[flag]))
    return plain


def find_checkpoint(
    run: RunFolder, config: dict[str, Any]
) -> tuple[Path, Checkpoint] | tuple[None, None]:
    """The checkpoint to go on from and what is in it, if the user wants one.

    Raises:
        InputError: It cannot be used, or a new run would mix with the folder's.
    """
    if config["ckpt_path"] is None:
        if not config["overwrite"] and not config["fast_dev_run"]:
            run.check_free()
        return None, None
    if config["ckpt_path"] != "last":
        path = Path(config["ckpt_path"])
        if not config["fast_dev_run"]:
            run.check_free(path)
        return path, read_checkpoint(path)
    newest = read_newest(run.newest_checkpoints())
    if newest is None:
        log.warning(f"{run.path} has no checkpoint to go on from: starting afresh")
    return newest or (None, None)


def load_images(config: dict[str, Any]) -> CIFAR10DataModule:
    """The images, downloaded if need be, read and split."""
    images = CIFAR10DataModule(
        config["data"],
        config["data_dir"],
        config["batch_size"],
        config["val_size"],
        config["seed"],
        config["crop_padding"],
        config["padding_mode"],
        config["flip"],
        config["cutout"],
        config["download_url"],
    )
    images.prepare_data()
    images.setup()
    return images


def settle_lr(
    config: dict[str, Any],
    images: CIFAR10DataModule,
    hardware: Hardware,
    saved: Checkpoint | None,
) -> tuple[float, RangeTest | None]:
    """The maximum LR: the checkpoint's, the user's, or the pick of a range test."""
    if saved is not None:
        return saved["config"]["lr"], None
    if config["lr"] != "auto":
        return config["lr"], None
    if config["fast_dev_run"]:
        return FAST_DEV_LR, None
    spent = build_module(config | {"lr": FAST_DEV_LR, "compile": False}, images)
    finder, steps = config["lr_finder"], config["lr_steps"]
    # As the run itself will train.
    same = {flag: config[flag] for flag in ("deterministic", "sync_batchnorm")}
    test = range_test(spent, images, finder, steps, hardware.arguments | same)
    return test.lr, test


def build_module(config: dict[str, Any], images: CIFAR10DataModule) -> LitCustomResNet:
    """A new module; its weights depend on the seed alone, not on what ran before."""
    pl.seed_everything(config["seed"], verbose=False)
    module = LitCustomResNet(
        images.classes,
        images.mean,
        images.std,
        config["lr"],
        config["weight_decay"],
        config["label_smoothing"],
        config["base_width"],
        config["tta"],
    )
    if config["compile"]:
        module.net.compile()  # in place, so the names in checkpoints stay
    return module


def main() -> None:
    """The command line."""
    cli.run("train.py", train, outlasts_readers=True)


if __name__ == "__main__":
    main()
