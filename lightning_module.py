"""`LitCustomResNet`: the network with its loss, metrics, optimizer and schedule."""

from collections.abc import Sequence
from typing import Any, Self, TypedDict

import common  # noqa: F401  # puts right what the next ones stumble over

# isort: split
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
)

from config import Tta
from images.augmentation import shift
from images.loader import Batch
from networks import build_network

WITH_TTA = {"test/acc_tta": "with flip TTA", "test/acc_views": "with six views"}
PCT_START = 5 / 24  # the LR peaks at epoch 5 of 24, and at the same share of other runs


class Features(TypedDict):
    """Where the features of training images lie (networks.collected_features).

    Attributes:
        mean: Of each feature.
        variance: Of all together: the mean squared distance from the mean.
    """

    mean: list[float]
    variance: float


class LitCustomResNet(pl.LightningModule):
    """Cross-entropy, Adam and one cycle of the learning rate around a network.

    Its hyper-parameters are plain values, so a checkpoint explains itself and loads
    with `weights_only=True`.

    Args:
        classes: Name of each label.
        mean: Mean of each channel, in units of full brightness.
        std: Standard deviation of each channel, likewise.
        lr: Maximum learning rate of the cycle.
        weight_decay: Decoupled weight decay (arXiv 1711.05101) of convolutions and the
            linear layer; never of batch norm.
        label_smoothing: Share of each target that is spread over all classes, in
            training only.
        base_width: Channels of the first convolution.
        tta: How to test also with test-time augmentation: on the sum of logits for each
            image and its mirror image, or also for both moved by a pixel to either side
            along the diagonal, at half the weight (Jordan, arXiv 2404.00498).
        net: Name of the network in networks.py.
        logit_scale: Factor on the network's output.

    After a test, `confusion` counts the images of all processes by true and by
    predicted class, int64 (num_classes, num_classes). Within an epoch, `losses` and
    `accuracies` hold those of each step so far, on the device. `mirrors` says whether a
    mirror image is as good as the image, as it is after a training with both, and
    `features` where those of the training images lie, if that is known.
    """

    mean: Tensor
    std: Tensor
    confusion: Tensor
    mirrors = True
    features: Features | None = None

    def __init__(
        self,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        lr: float,
        weight_decay: float = 0.2,
        label_smoothing: float = 0.1,
        base_width: int = 64,
        tta: Tta = "none",
        net: str = "custom_resnet",
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        num_classes = len(classes)
        self.net = build_network(net, num_classes, base_width)
        self.logit_scale = logit_scale
        # Not persistent: they are hyper-parameters already.
        levels = 255 * torch.tensor([mean, std]).view(2, 1, 3, 1, 1)
        self.register_buffer("mean", levels[0], persistent=False)
        self.register_buffer("std", levels[1], persistent=False)

        # "disable": the other strategies look at every value and so wait for the GPU.
        # It also drops weights, so losses go in image by image, or by batches alike:
        # https://github.com/Lightning-AI/torchmetrics/issues/3434
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.train_acc = MeanMetric(nan_strategy="disable")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_confusion = MulticlassConfusionMatrix(num_classes)
        self.test_acc_tta = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc_views = MulticlassAccuracy(num_classes, average="micro")
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []
        self._settle_formats()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to another device or number format; the metrics stay in float32."""
        super().to(*args, **kwargs)
        self._settle_formats()
        return self

    def _settle_formats(self) -> None:
        self.net.to(memory_format=layout(self.device))  # type: ignore[call-overload]
        # In half precision a sum of losses stands still, or overflows.
        means = (self.train_loss, self.train_acc, self.val_loss, self.test_loss)
        for metric in means:
            metric.set_dtype(torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (B, 3, 32, 32) to logits (B, num_classes).

        Normalisation is part of the model, so nothing that uses it can get it wrong.
        """
        normalised = self.normalise(images)
        if self.device.type == "mps":  # batches are channels_last
            normalised = normalised.contiguous()
        logits: Tensor = self.net(normalised)
        return logits if self.logit_scale == 1 else self.logit_scale * logits

    def normalise(self, images: Tensor) -> Tensor:
        """Map uint8 images (B, 3, 32, 32) to what the network takes, in float."""
        return (images - self.mean) / self.std

    def objective(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of one augmented batch, the part of a step that is dear."""
        logits = self(images)
        loss = smoothed_cross_entropy(logits, labels, self.hparams["label_smoothing"])
        return loss, (logits.argmax(1) == labels).mean(dtype=torch.float32)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one augmented batch."""
        loss, accuracy = self.objective(*batch)
        self.losses.append(loss.detach())
        self.accuracies.append(accuracy)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Plain cross-entropy and accuracy of one batch of the held-out part."""
        self._evaluate(batch, self.val_loss, self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Plain cross-entropy, accuracy and confusion of one test batch."""
        images, labels = batch
        logits = self._evaluate(batch, self.test_loss, self.test_acc)
        self.test_confusion.update(logits, labels)
        if self.hparams["tta"] != "none":
            both = logits + self(images.flip(3))
            self.test_acc_tta.update(both, labels)
        if self.hparams["tta"] == "views":
            moved = [shift(images, pixels) for pixels in (1, -1)]
            others = [self(part) + self(part.flip(3)) for part in moved]
            self.test_acc_views.update(2 * both + sum(others), labels)

    # Logged once an epoch, not at every step: a call of `log` costs half a millisecond.

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean over its augmented batches, which are of one size."""
        self.train_loss.update(torch.stack(self.losses))
        self.train_acc.update(torch.stack(self.accuracies))
        self.losses.clear()
        self.accuracies.clear()
        self._log_epoch("train", self.train_loss, self.train_acc)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the held-out part."""
        self._log_epoch("val", self.val_loss, self.val_acc)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy of the test set; keep the confusion matrix."""
        self._log_epoch("test", self.test_loss, self.test_acc)
        self.confusion = self.test_confusion.compute()
        self.test_confusion.reset()  # as Lightning does with metrics that are logged
        if self.hparams["tta"] != "none":
            self.log("test/acc_tta", self.test_acc_tta)
        if self.hparams["tta"] == "views":
            self.log("test/acc_views", self.test_acc_views)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam, and one cycle that is stepped at every batch."""
        optimizer = self.make_optimizer()
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = one_cycle(optimizer, self.hparams["lr"], steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cycle, "interval": "step"},
        }

    def make_optimizer(self) -> torch.optim.Adam:
        """Adam without a schedule; weight decay is decoupled and spares batch norm."""
        weights = [p for p in self.net.parameters() if p.ndim > 1]
        norms = [p for p in self.net.parameters() if p.ndim <= 1]
        optimizer = torch.optim.Adam(
            [
                {"params": weights, "weight_decay": self.hparams["weight_decay"]},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=self.hparams["lr"],
            decoupled_weight_decay=True,
            # A Mac's fused kernel takes no notice of the loss scale of 16-mixed.
            fused=self.device.type in ("cpu", "cuda"),
        )
        optimizer.register_load_state_dict_post_hook(_lay_out_as_weights)
        return optimizer

    def _evaluate(self, batch: Batch, loss: Metric, accuracy: Metric) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        accuracy.update(logits, labels)
        return logits

    def _log_epoch(self, split: str, loss: Metric, accuracy: Metric) -> None:
        self.log_dict({f"{split}/loss": loss, f"{split}/acc": accuracy})


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The mean cross-entropy with label smoothing, in float32 or better.

    It is `F.cross_entropy(logits, labels, label_smoothing=smoothing)` in half of its
    operations, as that also looks for labels to leave out. Where the batch size is a
    power of two, the gradients are the same to the last bit.

    Args:
        logits: (B, num_classes).
        labels: int64 (B,).
        smoothing: Share of each target that is spread over all classes.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(wide, dim=1)
    picked = F.nll_loss(log_p, labels) * (1 - smoothing)
    return torch.add(picked, log_p.sum(), alpha=-smoothing / log_p.numel())


def one_cycle(optimizer: Optimizer, max_lr: float, steps: int) -> OneCycleLR:
    """One cycle of the learning rate, straight up and straight down.

    It begins at a 25th of the maximum, where there are five steps or more, and ends at
    1/250,000. It also moves Adam's first beta, from 0.95 to 0.85 and back.

    Args:
        optimizer: What it sets, now to the values of the first step.
        max_lr: The maximum.
        steps: Length of the cycle.
    """
    return OneCycleLR(
        optimizer,
        max_lr,
        total_steps=steps,
        pct_start=PCT_START,
        anneal_strategy="linear",
    )


def layout(device: torch.device) -> torch.memory_format:
    """How weights and maps lie in the memory of a device that trains.

    Channels last are faster. On a Mac's GPU batch norm gets its gradients wrong then:
    https://github.com/pytorch/pytorch/issues/175189.
    """
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last


def _lay_out_as_weights(optimizer: Optimizer) -> None:
    """Fit Adam's state to this device, whatever device saved it.

    Whether it is fused is in the state, too. Fused Adam pairs weights and means in the
    order in which they lie in memory, and counts steps where they are.
    """
    fused = optimizer.defaults["fused"]
    for group in optimizer.param_groups:
        group["fused"] = fused
    for weight, state in optimizer.state.items():
        state["step"] = state["step"].to(weight.device if fused else "cpu", torch.float)
        for name, value in state.items():
            if value.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(value)
