"""The loggers of a run: TensorBoard, Weights & Biases, MLflow, CSV."""

import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from pytorch_lightning.utilities import rank_zero_only
from torchvision.utils import make_grid

from common.cli import is_first_process
from common.errors import InputError
from common.text import one_line
from config import SHAPING, Config
from training.history import History
from training.resume import Checkpoint
from training.run_folder import RunFolder
from training.tensorboard import TensorBoard

log = logging.getLogger(__name__)

PROJECT = "custom-resnet-cifar10"  # a project of W&B's, an experiment of MLflow's
PACKAGES = {
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),  # a database, without a server
}
GRID_IMAGES = 64  # augmented training images


class MLflow(MLFlowLogger):
    """MLflow's logger; a store that fails costs a line in the log, and no training."""

    _is_lost = False

    def log_hyperparams(self, params: Any) -> None:
        """Log the flags."""
        self._try(super().log_hyperparams, params)

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Log figures of a step."""
        self._try(super().log_metrics, metrics, step)

    def log_picture(self, name: str, image: NDArray[np.uint8]) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        self._try(self.experiment.log_image, self.run_id, image, f"{name}.png")

    def finalize(self, status: str = "success") -> None:
        """Say that the run has ended."""
        self._try(super().finalize, status)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> None:
        if self._is_lost:
            return
        try:
            call(*arguments)
        except Exception as error:  # of MLflow, a database, the network
            self._is_lost = True
            log.warning(
                f"--logger mlflow: {one_line(error)}; it logs no more of this run"
            )


def check_loggers(config: Config) -> None:
    """Check what the loggers need, before any image is read.

    Raises:
        InputError: A package is not there, or W&B does not know the user.
    """
    for name in config.loggers():
        for package in PACKAGES.get(name, ()):
            if find_spec(package) is None:
                raise InputError(
                    f"--logger {name} needs {package}; pip install -r "
                    "requirements-extras.txt"
                )
    if "tensorboard" in config.loggers() and not _is_text(config.output_dir):
        raise InputError(
            f"--output_dir {one_line(config.output_dir)}: TensorBoard cannot write in "
            "a folder whose name is not UTF-8; give another, or --logger none"
        )
    if "wandb" in config.loggers() and not config.fast_dev_run:
        _log_in()


def _is_text(path: str | Path) -> bool:
    """Whether all of a path is characters."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


@rank_zero_only
def _log_in() -> None:
    """Have W&B ask for the key that it may lack, while somebody looks on."""
    import wandb

    if wandb.setup().settings.mode == "online":
        try:
            wandb.login()
        except wandb.errors.Error as error:
            raise InputError(
                f"--logger wandb: {one_line(error)} WANDB_MODE=offline in the "
                "environment keeps the run on this machine"
            ) from None


def build_loggers(
    config: Config, run: RunFolder, saved: Checkpoint | None
) -> list[Logger]:
    """The loggers that the user wants, ready to log.

    A run that goes on is the same run to all of them.

    Args:
        config: All flags, settled.
        run: Where they write what they keep on this machine.
        saved: The checkpoint that the run goes on from, if any.

    Raises:
        InputError: W&B or MLflow refuses.
    """
    ids = (saved or {}).get("loggers", {})
    loggers: list[Logger] = []
    for name in config.loggers():
        if name == "tensorboard":
            loggers.append(TensorBoard(run, _steps_logged(saved)))
        elif is_first_process():
            loggers.append(_opened(name, run, ids.get(name)))
            if name not in ids:
                loggers[-1].log_hyperparams(hyperparameters(config))
    return loggers


def _steps_logged(saved: Checkpoint | None) -> int:
    """Steps of the epochs before a checkpoint: TensorBoard forgets what came after."""
    if saved is None:
        return 0
    return int(saved["global_step"]) - len(saved["callbacks"]["History"]["lrs"])


def _new_logger(name: str, run: RunFolder, version: str | None) -> Logger:
    if name == "csv":  # in a folder of its own, a new one at a resume
        return CSVLogger(run.path, "csv")
    if name == "wandb":
        return WandbLogger(
            name=run.path.name,
            save_dir=os.environ.get("WANDB_DIR", run.path),
            version=version,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
        )
    runs = run.path.parent.resolve()
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        uri, artifacts = mlflow_store(runs), (runs / "mlartifacts").as_uri()
    return MLflow(
        os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.path.name,
        tracking_uri=uri,
        artifact_location=artifacts,
        run_id=version,
    )


def mlflow_store(runs: Path) -> str:
    """Address of the SQLite file in a folder of runs, for `mlflow ui`."""
    return f"sqlite:///{(runs.resolve() / 'mlflow.db').as_posix()}"


def _opened(name: str, run: RunFolder, version: str | None) -> Logger:
    """A logger that has begun its run, or goes on with it."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        logger = _new_logger(name, run, version)
        _ = logger.experiment  # type: ignore[attr-defined]
        return logger
    except Exception as error:  # of theirs, of a database, of the network
        raise InputError(
            f"--logger {name}: {one_line(error)}; put that right, or leave it out"
        ) from None
    finally:
        if not given:  # Lightning sets it, for all runs to come
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def hyperparameters(config: Config) -> dict[str, Any]:
    """What decides how a network is trained, as loggers list it."""
    values = config.record()
    return {flag: values[flag] for flag in ("lr", "precision", "data", *SHAPING)}


@rank_zero_only
def log_picture(
    loggers: list[Logger], name: str, image: NDArray[np.uint8], step: int
) -> None:
    """Show a picture in all loggers that can.

    Args:
        loggers: Those of the run.
        name: Its name, perhaps with a slash.
        image: uint8 (H, W, 3).
        step: After how many steps of the training it is made.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)
        elif isinstance(logger, MLflow):
            logger.log_picture(name, image)


@rank_zero_only
def end_loggers(loggers: list[Logger]) -> None:
    """End a run that has come to its end, so that the next of a process is another."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


class LoggerDetails(Callback):
    """What all loggers show beside metrics, and what a resume needs of them."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log a grid of augmented images."""
        if trainer.is_global_zero:
            images, _ = next(iter(trainer.train_dataloader or ()))
            grid = make_grid(images[:GRID_IMAGES].cpu(), nrow=8).permute(1, 2, 0)
            step = trainer.global_step
            log_picture(trainer.loggers, "images/augmented", grid.numpy(), step)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Log the rate of the epoch's last step; TensorBoard has that of each."""
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                last = {"lr": self.history.lrs[-1]}
                logger.log_metrics(last, trainer.global_step - 1)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any
    ) -> None:
        """Keep the names under which W&B and MLflow know the run."""
        kinds = {WandbLogger: "wandb", MLflow: "mlflow"}
        checkpoint["loggers"] = {
            kinds[type(logger)]: logger.version
            for logger in trainer.loggers
            if type(logger) in kinds
        }

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Let W&B end its run, or the next one of this process would go on with it."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=1)
