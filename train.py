"""Train the custom ResNet on CIFAR-10, from the LR range test to the test report.

python train.py --accelerator gpu                                  # the real thing
python train.py --data synthetic --batch_size 128 --max_epochs 2   # no download, no GPU
python train.py --help

`train` does the same as a function.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from analysis.loading import read_trained
from analysis.results import write_results, write_start
from common import cli
from common.errors import InputError, StoppedError
from config import Config, Start, configured
from datamodule import CIFAR10DataModule
from lightning_module import LitCustomResNet
from machine import memory, provenance
from machine.hardware import Hardware, check_compiler, choose_hardware
from training.checks import check_images, check_processes
from training.compiled import compile_objective
from training.fine_tuning import starting_weights
from training.history import COLUMNS, History, TrainingClock
from training.loggers import check_loggers
from training.lr_finder import RangeTest, range_test
from training.resume import (
    Checkpoint,
    check_same_run,
    read_checkpoint,
    read_newest,
)
from training.run_folder import RunFolder
from training.terminal import show_end, show_lr, show_start
from training.trainer import build_trainer, shared_arguments

log = logging.getLogger(__name__)

FAST_DEV_LR = 0.01  # fast_dev_run has too few steps for a range test
WHITENED = 2000  # images whose statistics are enough


@configured(Config)
def train(config: Config) -> dict[str, Any]:
    """Train the custom ResNet on CIFAR-10 and leave a run folder.

    It is called with the fields of `Config` as keywords: `train(max_epochs=2)`.

    Returns:
        What metrics.json holds: `train/loss`, `train/acc`, `val/...`, `test/...`
        (accuracies as fractions), `max_lr`, times and circumstances.

    Raises:
        InputError: A value or file that the user can put right.
        DivergedError: The loss became infinite or not a number.
        StoppedError: A signal ended the training, which is saved.
    """
    return train_with(config)


@memory.giving_memory_back()
def train_with(config: Config, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Do what `train` does, with callbacks of a program around it.

    What they raise ends the training and goes through to the caller.
    """
    clock = TrainingClock()
    cli.ignore_expected_warnings()
    hardware = choose_hardware(
        config.accelerator,
        config.devices,
        config.num_nodes,
        config.strategy,
        config.precision,
    )
    check_processes(config, hardware.world_size, hardware.device.type)
    check_loggers(config)
    if config.compile:
        check_compiler(hardware.device)
    torch.set_float32_matmul_precision("high")  # TF32, where a GPU has it
    # Lightning's DDP, and graphs by their nature, make gradients on another stream:
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21567.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    if hardware.device.type == "cpu":
        memory.keep_freed_memory()
    with RunFolder(
        config.output_dir,
        config.name,
        config.seed,
        resume=config.ckpt_path == "last",
        trial=bool(config.fast_dev_run),
    ) as run:
        try:
            return train_in(run, config, hardware, clock, callbacks)
        except StoppedError as stop:
            stop.checkpoints = run.newest_checkpoints() if run.is_own else []
            raise


def train_in(
    run: RunFolder,
    config: Config,
    hardware: Hardware,
    clock: TrainingClock,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train in a run folder; `train` says what is returned and raised.

    Args:
        run: The folder, of which nothing is taken away before all checks are passed.
        config: All flags.
        hardware: What to train on.
        clock: It has run since the beginning.
        callbacks: Of the program around it.
    """
    checkpoint, saved = find_checkpoint(run, config)
    trained = None
    if config.init_from is not None and saved is None:
        trained = read_trained(Path(config.init_from), flag="init_from")
    images = load_images(config)
    config = replace(
        config,
        precision=hardware.arguments["precision"],
        data=images.source,
        data_dir=images.data_dir,
        val_size=images.val_size,
    )
    check_images(config, images.sizes(), hardware.world_size)
    weights = None
    if saved is not None:
        check_same_run(saved, config, images, hardware.world_size)
        if config.fast_dev_run:  # whose epoch Lightning numbers as the first
            log.info(f"{checkpoint} can be resumed; the trial starts without it")
            checkpoint = saved = None
    elif trained is not None:
        weights = starting_weights(trained, config, images.classes)
    run.create()
    spent = build_module(
        replace(config, lr=FAST_DEV_LR, compile=False), images, weights
    )
    step = saved["global_step"] if saved else 0
    show_start(config, hardware, images, spent.net, step)
    lr, lr_origin, test = settle_lr(config, images, hardware, saved, spent)
    show_lr(lr, lr_origin)
    init_from = config.init_from and Path(config.init_from).absolute()
    config = replace(config, lr=lr, init_from=init_from)
    module = build_module(config, images, weights)
    run.begin()
    history = History(None if run.is_trial else run.metrics_csv)
    trainer = build_trainer(
        config, hardware, run, images, history, clock, saved, callbacks
    )
    write_start(run, trainer, config, images, test)
    origin = provenance.circumstances(hardware)  # now: files may change
    tested = fit_and_test(trainer, module, images, checkpoint)
    metrics = {name: history.rows[-1].get(name) for name in COLUMNS} | tested
    metrics |= figures_of(trainer, config, clock) | origin
    write_results(run, trainer, module, images, config, metrics, history.rows)
    show_end(metrics, images, config, run)
    return metrics


def fit_and_test(
    trainer: pl.Trainer,
    module: LitCustomResNet,
    images: CIFAR10DataModule,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train, from a checkpoint if one is given; the figures of the test, if any."""
    trainer.fit(module, datamodule=images, ckpt_path=checkpoint, weights_only=True)
    tested: dict[str, Any] = {"test/loss": None, "test/acc": None}
    if trainer.limit_test_batches:
        tested |= trainer.test(module, datamodule=images, verbose=False)[0]
    return tested


def figures_of(
    trainer: pl.Trainer, config: Config, clock: TrainingClock
) -> dict[str, Any]:
    """The part of metrics.json beside loss and accuracy."""
    return {
        "max_lr": config.lr,
        "epochs": trainer.current_epoch,
        # All that the run took: data, range test, training and tests.
        "seconds": round(clock.run_seconds(), 1),
        # Of it, the training epochs: augmentation included; validation, the wait for
        # checkpoints and what comes before not. The images are on the device by then.
        # The first run of a process warms up the kernels in it, unless a range test has
        # done so.
        "fit_seconds": round(clock.seconds, 3),
        "images_per_second": clock.images_per_second(),
        "seed": config.seed,
    }


def find_checkpoint(
    run: RunFolder, config: Config
) -> tuple[Path | None, Checkpoint | None]:
    """The checkpoint to go on from and what is in it, if the user wants one.

    Raises:
        InputError: It cannot be used, or a new run would mix with the folder's.
    """
    path: Path | None = None
    saved: Checkpoint | None = None
    if config.ckpt_path == "last":
        path, saved = read_newest(run.newest_checkpoints()) or (None, None)
    elif config.ckpt_path is not None:
        path = Path(config.ckpt_path)
        saved = read_checkpoint(path)
    if not config.overwrite and not config.fast_dev_run:
        run.check_free(path)
    if saved is None and config.ckpt_path is not None:
        log.warning(f"{run.path} has no checkpoint to resume from: starting afresh")
    if saved is not None and not run.is_own:  # to the loggers, too, it is another run
        saved.pop("loggers", None)
    return path, saved


def load_images(config: Config) -> CIFAR10DataModule:
    """The images, downloaded if need be, read and split."""
    images = CIFAR10DataModule.from_config(config)
    images.prepare_data()
    images.setup()
    return images


def settle_lr(
    config: Config,
    images: CIFAR10DataModule,
    hardware: Hardware,
    saved: Checkpoint | None,
    spent: LitCustomResNet,
) -> tuple[float, str, RangeTest | None]:
    """The maximum LR, where it is from in words, and the range test if there was one.

    The test is what the module `spent` is for.
    """
    if saved is not None:
        return saved["config"]["lr"], "that of the checkpoint", None
    if config.lr != "auto":
        return config.lr, "as given", None
    if config.fast_dev_run:
        return FAST_DEV_LR, "for a trial", None
    as_the_run = shared_arguments(config, hardware)
    test = range_test(spent, images, config.lr_finder, config.lr_steps, as_the_run)
    return test.lr, "found by the LR range test", test


def build_module(
    config: Config,
    images: CIFAR10DataModule,
    weights: dict[str, Tensor] | None = None,
) -> LitCustomResNet:
    """A new module; its weights depend on the seed alone, not on what ran before.

    Args:
        config: All flags.
        images: The data module, set up.
        weights: Entries of the network's `state_dict` to begin with instead.
    """
    pl.seed_everything(config.seed, verbose=False)
    module = LitCustomResNet(
        images.classes,
        images.mean,
        images.std,
        float(config.lr),  # which is settled
        config.weight_decay,
        config.label_smoothing,
        config.base_width,
        config.tta,
        config.net,
        config.logit_scale,
    )
    net: Any = module.net  # some have these methods
    if is_wanted(module, "whiten", config.whiten):
        some = images.sample(WHITENED).permute(0, 3, 1, 2)
        net.whiten(module.normalise(some))
    if is_wanted(module, "dirac", config.dirac):
        net.dirac()
    if is_wanted(module, "norm_batch", config.norm_batch > 0):
        net.norm_batch(config.norm_batch)
    if weights is not None:
        net.load_state_dict(weights, strict=False)
    if config.compile:
        compile_objective(module, config.compile)
    return module


def is_wanted(module: LitCustomResNet, way: str, value: Start) -> bool:
    """Whether a new network is to be set up in a way that its class knows.

    Args:
        module: Its module.
        way: Flag of train.py, and method of the network.
        value: Of the flag; "auto" is whether the network has the method.

    Raises:
        InputError: It is wanted, and the network does not have it.
    """
    is_there = callable(getattr(module.net, way, None))
    if value is True and not is_there:
        raise InputError(
            f"--{way}: network {module.hparams['net']!r} has no method {way}; leave "
            "the flag out"
        )
    return is_there and bool(value)


def main() -> None:
    """The command line."""
    cli.run("train.py", train, flags=Config, outlasts_readers=True)


if __name__ == "__main__":
    main()
