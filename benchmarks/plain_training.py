"""A training in plain PyTorch, of changes of the recipe that train.py does not have."""

from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import stochastic_depth

from analysis.inference import to_probabilities
from benchmarks.factorial import Row
from config import IMAGE_SIZE, Asked
from custom_resnet import CustomResNet
from datamodule import CIFAR10DataModule
from images.augmentation import Augmentation
from images.loader import EvalLoader, TrainLoader

# What goes with a level: the rate that suits a batch size, the eps that suits a beta2.
LRS = {512: 0.005, 256: 0.0035, 128: 0.0025}
EPS = {0.999: 1e-8, 0.99: 1e-5}


def load_images(
    data: Asked, data_dir: str, val_size: int, seed: int = 0
) -> CIFAR10DataModule:
    """The images, `val_size` of them held out; their batches are made elsewhere."""
    images = CIFAR10DataModule(data, data_dir, 1, val_size=val_size, seed=seed)
    images.prepare_data()
    images.setup()
    return images


def shape_of(images: CIFAR10DataModule, epochs: int, base_width: int) -> Row:
    """What trainings must share to be compared, as columns of a record."""
    return {
        "epochs": epochs,
        "base_width": base_width,
        "val_size": images.val_size,
        "images": images.fingerprint,
    }


def build_net(row: Row, images: Tensor, base_width: int) -> CustomResNet:
    """The network with the start that a row asks for.

    Args:
        row: The levels.
        images: Normalised images (N, 3, 32, 32), to whiten.
        base_width: Channels of the first convolution.
    """
    torch.manual_seed(row["seed"])
    net = CustomResNet(base_width=base_width)
    if row["whiten"]:
        net.whiten(images.cpu())
    if row["dirac"]:
        net.dirac()
    with torch.no_grad():
        for residual in (net.residual1, net.residual3):
            last_norm: Any = residual[1].get_submodule("1")
            last_norm.weight.fill_(row["residual_gain"])
    net.norm_batch(row["norm_batch"])
    drop_at_random(net, row)
    set_momentum(net, row["norm_momentum"])
    return net.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def drop_at_random(net: CustomResNet, row: Row) -> None:
    """In training, let random features and residual branches be zero for an image.

    Args:
        net: It keeps its layers.
        row: `dropout` (Srivastava et al., JMLR 15, 2014) and `drop_path` (stochastic
            depth, arXiv 1603.09382), the shares that are zero.
    """
    if row["dropout"]:
        net.fc.register_forward_pre_hook(
            lambda layer, given: F.dropout(given[0], row["dropout"], layer.training)
        )
    if row["drop_path"]:
        for residual in (net.residual1, net.residual3):
            residual.register_forward_hook(
                lambda layer, _, maps: stochastic_depth(
                    maps, row["drop_path"], "row", layer.training
                )
            )


def set_momentum(net: nn.Module, momentum: float) -> None:
    """Let the statistics of every batch norm follow their batches so fast."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness and contrast of each normalised image (B, 3, 32, 32)."""
    if not strength:
        return images
    draws = torch.rand((2, len(images), 1, 1, 1), generator=generator)
    gain, shift = (strength * (2 * draws - 1)).to(images.device).unbind()
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = (images - middle) * (1 + gain) + middle + 2 * shift
    return changed


def mix(
    images: Tensor, labels: Tensor, row: Row, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """In some batches, add to each image some of another one.

    With CutMix (arXiv 1905.04899) that is a box in its place, with mixup
    (arXiv 1710.09412) some of its light.

    Args:
        images: (B, 3, 32, 32).
        labels: int64 (B,).
        row: `cutmix` and `mixup`, the shares of the batches.
        generator: Decides.

    Returns:
        The images, the labels of what is added, and how much of an image that is.
    """
    dice, share = torch.rand(2, generator=generator).tolist()
    if dice >= row["cutmix"] + row["mixup"]:
        return images, labels, 0.0
    other = torch.randperm(len(images), generator=generator).to(images.device)
    if dice >= row["cutmix"]:
        return images.lerp(images[other], share), labels[other], share
    side = int(IMAGE_SIZE * (1 - share) ** 0.5)
    places = torch.randint(IMAGE_SIZE + 1 - side, (2,), generator=generator)
    top, left = places.tolist()
    box = (..., slice(top, top + side), slice(left, left + side))
    mixed = images.clone()
    mixed[box] = images[other][box]
    return mixed, labels[other], side**2 / IMAGE_SIZE**2


def best_loss(scores: Tensor, labels: Tensor, smoothing: float) -> float:
    """Cross-entropy at the temperature at which it is least.

    Args:
        scores: float (N, C), logits.
        labels: int64 (N,).
        smoothing: That of the labels in training. It is undone first, as no temperature
            can do that, and the more of it, the worse a network would seem.
    """
    probabilities = to_probabilities(scores.double().cpu(), smoothing)
    scores, labels = probabilities.log(), labels.cpu()

    def loss(sharpness: float) -> float:
        return float(F.cross_entropy(scores * 2**sharpness, labels))

    return float(minimize_scalar(loss, bounds=(-3, 6), method="bounded").fun)


class Training:
    """A row of a design, trained epoch after epoch without a trainer.

    Args:
        row: The levels, and the seed.
        images: The data module, set up.
        epochs: Length of the training.
        base_width: Channels of the first convolution.
        device: What trains.
    """

    def __init__(
        self,
        row: Row,
        images: CIFAR10DataModule,
        epochs: int,
        base_width: int,
        device: torch.device,
    ) -> None:
        self.row, self.device, self.epochs = row, device, epochs
        self.mean = 255 * torch.tensor(images.mean, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(images.std, device=device).view(1, 3, 1, 1)
        pixels, labels = images.train_set
        some = images.sample(5000).permute(0, 3, 1, 2)
        self.net = build_net(row, self._normalised(some.to(device)), base_width)
        self.judged: nn.Module = self.net
        if row["ema_decay"]:
            mean = get_ema_multi_avg_fn(row["ema_decay"])
            self.judged = AveragedModel(self.net, multi_avg_fn=mean, use_buffers=True)
        self.batches = TrainLoader(
            pixels,
            labels,
            batch_size=row["batch_size"],
            augmentation=self._augmentation(row["cutout"]),
            fill=images.fill,
            seed=row["seed"],
            device=device,
        )
        steps = epochs * len(self.batches)
        self.first_sharp = round((1 - row["sam_share"]) * steps)
        self.optimizer, self.schedule = self._make_optimizer(steps)

    def _augmentation(self, cutout: int) -> Augmentation:
        crop, share = self.row["crop_padding"], self.row["photo_like"]
        return Augmentation(crop, "reflect", "alternate", cutout, share)

    def _make_optimizer(self, steps: int) -> tuple[Any, Any]:
        row, (first, *others) = self.row, [*self.net.parameters()]
        lr, beta2 = row["lr"] * LRS[row["batch_size"]], row["beta2"]
        named = [*self.net.named_parameters()]
        decayed = {"weight_decay": row["weight_decay"]}
        norms = {
            kind: [p for name, p in named if p.ndim == 1 and name.endswith(kind)]
            for kind in ("weight", "bias")
        }
        groups = [
            {"params": [p for p in others if p.ndim > 1], **decayed},
            {"params": [first], **decayed},
            {"params": norms["weight"]},
            {"params": norms["bias"]},
        ]
        of_norms = row["scale_lr"], row["bias_lr"]
        optimizer = torch.optim.Adam(
            groups,
            lr=lr,
            betas=(0.9, beta2),
            eps=row["eps"] or EPS[beta2],
            decoupled_weight_decay=True,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[lr * times for times in (1.0, row["first_lr"], *of_norms)],
            total_steps=steps,
            pct_start=row["pct_start"],
            anneal_strategy=row["anneal"],
            cycle_momentum=row["cycle_momentum"],
        )
        return optimizer, schedule

    def train(self) -> None:
        """Train from the first epoch to the last."""
        for epoch in range(self.epochs):
            self.train_epoch(epoch)

    def train_epoch(self, epoch: int) -> None:
        """Train one epoch, counted from 0; they must follow each other."""
        self.net.train()
        self.batches.set_epoch(epoch)
        if epoch >= self.epochs - self.row["uncut_epochs"]:
            self.batches.augmentation = self._augmentation(cutout=0)
        draws = torch.Generator().manual_seed(1000 * self.row["seed"] + epoch)
        for raw, labels in self.batches:
            self._step(raw, labels, draws)

    def _step(self, raw: Tensor, labels: Tensor, draws: torch.Generator) -> None:
        row, smoothing = self.row, self.row["label_smoothing"]
        images = jitter(self._normalised(raw), row["colour_jitter"], draws)
        images, others, share = mix(images, labels, row, draws)

        def loss() -> Tensor:
            logits = self._logits(self.net, images)
            own = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            if not share:
                return own
            other = F.cross_entropy(logits, others, label_smoothing=smoothing)
            return torch.lerp(own, other, share)

        self.optimizer.zero_grad()
        loss().backward()
        if row["sam"] and self.schedule.last_epoch >= self.first_sharp:
            self._look_nearby(loss)
        if row["centred"]:
            self._centre()
        self.optimizer.step()
        self.schedule.step()
        if isinstance(self.judged, AveragedModel):
            self.judged.update_parameters(self.net)

    def _look_nearby(self, loss: Callable[[], Tensor]) -> None:
        """Take the gradients where the loss is worst nearby (SAM, arXiv 2010.01412)."""
        weights: list[Tensor] = [*self.net.parameters()]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        radius = self.row["sam"] / nn.utils.get_total_norm(gradients).clamp(min=1e-12)
        steps: Any = torch._foreach_mul(gradients, radius)
        before = [weight.detach().clone() for weight in weights]
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_add_(weights, steps)
        set_momentum(self.net, 0.0)  # statistics stay those of the weights themselves
        loss().backward()
        set_momentum(self.net, self.row["norm_momentum"])
        with torch.no_grad():
            torch._foreach_copy_(weights, before)

    def _centre(self) -> None:
        convolutions = [p.grad for p in self.net.parameters() if p.ndim == 4]
        gradients = [grad for grad in convolutions if grad is not None]
        means = [grad.mean(dim=(1, 2, 3), keepdim=True) for grad in gradients]
        torch._foreach_sub_(gradients, means)

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Accuracy and best loss without and with flip TTA.

        Args:
            images: uint8 (N, 32, 32, 3).
            labels: int64 (N,).
        """
        self.judged.eval()
        plain, flipped = [], []
        with torch.inference_mode():
            for raw, _ in EvalLoader(
                images, labels, batch_size=500, device=self.device
            ):
                part = self._normalised(raw)
                plain.append(self._logits(self.judged, part))
                flipped.append(plain[-1] + self._logits(self.judged, part.flip(3)))
        found, smoothing = {}, self.row["label_smoothing"]
        for name, parts in (("", plain), ("_tta", flipped)):
            scores = torch.cat(parts).cpu()
            found[f"acc{name}"] = float((scores.argmax(1) == labels).float().mean())
            found[f"loss{name}"] = best_loss(scores, labels, smoothing)
        return found

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def _logits(self, net: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            logits: Tensor = net(images)
        return float(self.row["logit_scale"]) * logits.float()
