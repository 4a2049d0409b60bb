"""TensorBoard's logger, and what it shows of a training beside its metrics."""

import functools
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard._pytorch_graph import graph
from torch.utils.tensorboard.summary import hparams

from common.text import one_line
from config import IMAGE_SIZE
from networks import build_network
from training.history import History
from training.run_folder import RunFolder

log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Draws training, validation and test into the same charts.

    A chart of TensorBoard's shows one tag of several runs, so `val/acc` becomes the tag
    `curves/acc` of the run `NAME/val`, as in Keras. All else is in the run `NAME`.

    Args:
        run: The run folder.
        purge_step: From where on to forget what an interrupted run has logged.
    """

    def __init__(self, run: RunFolder, purge_step: int) -> None:
        self.NAME_HPARAMS_FILE = run.config.name  # or it writes an empty one
        super().__init__(
            run.path, "", "", default_hp_metric=False, purge_step=purge_step
        )
        self.writers: dict[str, SummaryWriter] = {}

    @rank_zero_only
    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None
    ) -> None:
        """Add a point to each curve; the epoch, which goes with the step, is none."""
        for name, value in metrics.items():
            if "/" in name:
                part, tag = place(name)
                if part not in self.writers:
                    folder = Path(self.log_dir) / part
                    self.writers[part] = SummaryWriter(folder, **self._kwargs)
                self.writers[part].add_scalar(tag, value, step)

    @rank_zero_only
    def log_results(self, params: dict[str, Any], metrics: Sequence[str]) -> None:
        """List the run among others, with the last value of metrics that are logged.

        Args:
            params: The hyper-parameters.
            metrics: The same ones for every run, logged or not: TensorBoard has the
                columns of one run for all, and takes any.
        """
        experiment, start, end = hparams(params, dict.fromkeys(metrics, 0.0))
        plugin = experiment.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(plugin.content)
        for info in data.experiment.metric_infos:
            info.display_name = info.name.tag
            info.name.group, info.name.tag = place(info.name.tag)
        plugin.content = data.SerializeToString()
        for summary in (experiment, start, end):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Write all to the files."""
        super().save()
        for writer in self.writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write all to the files, and close them."""
        super().finalize(status)
        for writer in self.writers.values():
            writer.close()


def place(metric: str) -> tuple[str, str]:
    """Where a metric is drawn: the run below the run, and the tag.

    `test/acc_tta` is a point in the chart of accuracies, too.
    """
    split, name = metric.split("/")
    name, _, variant = name.partition("_")
    return "_".join(filter(None, (split, variant))), f"curves/{name}"


class TensorBoardDetails(Callback):
    """What the logger does not write by itself: LR per step and graph."""

    def __init__(self, logger: TensorBoardLogger, history: History) -> None:
        self.writer = logger.experiment
        self.history = history

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the network's graph; before `Guard` starts, as it takes a while."""
        known = pl_module.hparams
        if trainer.is_global_zero:
            built = (known["net"], len(known["classes"]), known["base_width"])
            try:
                self.writer.file_writer.add_graph(_traced(*built))
            except RuntimeError as error:  # such as of a folder that is not UTF-8
                log.warning(f"TensorBoard shows no graph: {one_line(error)}")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write the LRs of the epoch at once: writing at each step costs time."""
        if trainer.is_global_zero:
            lrs = self.history.lrs
            for step, lr in enumerate(lrs, trainer.global_step - len(lrs)):
                self.writer.add_scalar("lr", lr, step)
            self.writer.flush()  # before the checkpoint that says it is written


@functools.cache  # torch never frees what it has traced
def _traced(name: str, num_classes: int, base_width: int) -> Any:
    """The network's graph for TensorBoard."""
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # torch.jit.trace is deprecated: https://github.com/pytorch/pytorch/issues/49823
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        net = build_network(name, num_classes, base_width).eval()
        return graph(net, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
