"""The module: schedule, optimizer, normalisation, metrics, learning."""

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from common.errors import InputError
from custom_resnet import whitening_filters
from images.loader import EvalLoader
from lightning_module import LitCustomResNet, one_cycle, smoothed_cross_entropy
from train import is_wanted

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def make_module(**options: Any) -> LitCustomResNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"lr": 0.01, "base_width": 4} | options
    return LitCustomResNet(("a", "b", "c"), MEAN, STD, **settings)


def test_the_scale_of_the_logits_is_part_of_the_model() -> None:
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    plain, scaled = (make_module(logit_scale=scale).eval() for scale in (1.0, 0.25))
    torch.testing.assert_close(scaled(images), 0.25 * plain(images))
    assert scaled.hparams["logit_scale"] == 0.25


def test_a_network_starts_with_the_statistics_of_normalised_images() -> None:
    images = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8)
    module = make_module()
    assert is_wanted(module, "whiten", "auto")
    module.net.whiten(module.normalise(images))  # type: ignore[operator]
    normal = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    first = module.net.state_dict()["prep.0.weight"]
    torch.testing.assert_close(first, whitening_filters(normal, 4), atol=1e-4, rtol=0)
    module.net = nn.Flatten()
    with pytest.raises(InputError, match="--whiten: network 'custom_resnet' has no"):
        is_wanted(module, "whiten", True)
    assert not is_wanted(module, "whiten", "auto")


def learning_rates(total_steps: int) -> list[float]:
    """The LR of every step of the cycle, as the Trainer would step it."""
    optimizer = make_module(lr=0.5).make_optimizer()
    cycle = one_cycle(optimizer, 0.02, total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    return rates


def test_cycle_peaks_at_epoch_5_of_24() -> None:
    rates = learning_rates(24 * 10)
    assert rates[0] == pytest.approx(0.0008)  # a 25th of the maximum
    assert rates[24] == pytest.approx(0.0008 + 24 / 49 * 0.0192)  # straight up
    assert rates[49] == pytest.approx(0.02)  # the last step of the fifth epoch
    assert max(rates) == rates[49]
    assert rates[144] == pytest.approx(0.01, rel=1e-5)  # straight down
    assert rates[239] == pytest.approx(8e-8)  # a 10,000th of the first


def test_the_trainer_steps_a_cycle_as_long_as_the_training() -> None:
    seen = []

    class Note(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            for group in trainer.optimizers[0].param_groups:
                seen.append((group["lr"], group["betas"][0]))

    images = torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8)
    loader = EvalLoader(images, torch.arange(12) % 3, batch_size=2, device=CPU)
    options: dict[str, Any] = {"max_epochs": 4, "limit_val_batches": 0}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[Note()], **options, **QUIET)
    trainer.fit(make_module(lr=0.02), loader, loader)
    expected = learning_rates(24)
    assert [lr for lr, _ in seen] == pytest.approx(
        [lr for lr in expected for _ in range(2)]  # with weight decay and without
    )
    assert seen[0] == pytest.approx((0.0008, 0.95))
    assert seen[8] == pytest.approx((0.02, 0.85))  # the fifth of 24


def test_six_views_are_weighted_two_to_one() -> None:
    """The image and two shifts along the diagonal, each with its mirror image."""
    module = make_module(tta="views").eval()
    seen: list[Tensor] = []

    def note(_: object, inputs: tuple[Tensor], __: object) -> Tensor:
        seen.append(inputs[0][0, 0])
        weight = (1.0, 1.0, -1.5, -1.5, -0.4, -0.4)[len(seen) - 1]
        return torch.tensor([[weight, 0.0, 0.0]])

    module.net.register_forward_hook(note)
    image = torch.arange(32 * 32).remainder(251).view(1, 1, 32, 32).repeat(1, 3, 1, 1)
    module.test_step((image.to(torch.uint8), torch.tensor([0])), 0)
    assert module.test_acc_views.compute() == 1  # 2 * 2 - 3 - 0.8 > 0 > 2 - 3 - 0.8
    plain, mirror, first, first_mirror, second, _ = seen
    assert torch.equal(mirror, plain.flip(1))
    assert torch.equal(first[:-1, :-1], plain[1:, 1:])
    assert torch.equal(first[-1, :-1], plain[-2, 1:])  # reflected
    assert torch.equal(first_mirror, first.flip(1))
    assert torch.equal(second[1:, 1:], plain[:-1, :-1])


def test_flip_tta_adds_the_mirror_image() -> None:
    module = make_module(tta="flip").eval()
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        says = (module(images) + module(images.flip(3))).argmax(1)
        module.test_step((images, says), 0)
        assert module.test_acc_tta.compute() == 1
        module.test_step((images, (says + 1) % 3), 0)
        assert module.test_acc_tta.compute() == 0.5
        # Neither the order nor the mirror image matters to it.
        module.test_acc_tta.reset()
        module.test_step((images.flip(3), says), 0)
    assert module.test_acc_tta.compute() == 1


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 24, 48])
def test_cycle_of_any_length(total_steps: int) -> None:
    rates = learning_rates(total_steps)
    assert rates[-1] == pytest.approx(8e-8)
    assert all(0 < rate <= 0.02 for rate in rates)


def test_weight_decay_is_decoupled_and_spares_batch_norm() -> None:
    module = make_module(weight_decay=0.1, lr=0.5)
    optimizer = module.make_optimizer()
    names = {parameter: name for name, parameter in module.net.named_parameters()}
    before = {name: value.clone() for value, name in names.items()}
    for parameter in names:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, name in names.items():
        is_norm = parameter.ndim == 1
        expected = before[name] * (1 if is_norm else 1 - 0.5 * 0.1)
        torch.testing.assert_close(parameter.detach(), expected)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_normalisation_is_part_of_the_model() -> None:
    module = make_module().eval()
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    shape = (1, 3, 1, 1)
    mean, std = torch.tensor(MEAN).view(shape), torch.tensor(STD).view(shape)
    normalised = (images / 255 - mean) / std
    torch.testing.assert_close(module(images), module.net(normalised))


def test_weights_and_activations_are_channels_last() -> None:
    module = make_module(base_width=8)
    layouts: list[bool] = []

    def see(layer: nn.Module, inputs: tuple[Tensor], _: object) -> None:
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for layer in module.net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(see)
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    module(images)
    assert layouts == [True] * 8


def test_label_smoothing_in_training_only() -> None:
    module = make_module(label_smoothing=0.2)
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = module(images).detach()
    loss = module.training_step((images, labels), 0)
    log_p = logits.log_softmax(1)
    picked = log_p[range(6), labels]
    expected = -(0.8 * picked + 0.2 * log_p.mean(1)).mean()
    torch.testing.assert_close(loss, expected)
    module.eval()
    module.validation_step((images, labels), 0)
    plain = F.cross_entropy(module(images), labels)
    torch.testing.assert_close(module.val_loss.compute(), plain.detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
@pytest.mark.parametrize(("count", "classes"), [(128, 10), (256, 3), (100, 10)])
def test_the_loss_is_pytorchs_and_its_gradient_to_the_last_bit(
    smoothing: float, count: int, classes: int
) -> None:
    torch.manual_seed(0)
    labels = torch.arange(count) % classes
    ours, theirs = (
        value.requires_grad_()
        for value in (3 * torch.randn(count, classes)).expand(2, -1, -1).unbind()
    )
    loss = smoothed_cross_entropy(ours, labels, smoothing)
    expected = F.cross_entropy(
        theirs, labels, label_smoothing=smoothing, reduction="none"
    ).mean()
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, theirs)[0]
    if count & (count - 1):  # it is no power of two
        torch.testing.assert_close(*found)
    else:
        assert torch.equal(*found)


def test_half_precision_has_a_loss_in_float32() -> None:
    logits = torch.full((8, 3), 300.0, dtype=torch.float16)
    logits[:, 0] = -60000
    loss = smoothed_cross_entropy(logits, torch.zeros(8, dtype=torch.int64), 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        (1 - 0.5 + 0.5 / 3) * 60300 + math.log(2), rel=1e-6
    )
    double = smoothed_cross_entropy(logits.double(), torch.zeros(8).long(), 0.5)
    assert double.dtype == torch.float64


@pytest.mark.parametrize("shared", [False, True])
def test_every_batch_norm_counts_its_batches(shared: bool) -> None:
    module: Any = make_module()
    if shared:  # among GPUs
        module = TorchSyncBatchNorm().apply(module)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for _ in range(3):
        module(images)
    module.eval()(images)
    state = module.state_dict()
    counts = [value.item() for name, value in state.items() if "num_batches" in name]
    assert counts == [3] * 8


@pytest.mark.parametrize("fused", [True, False])
def test_adam_is_fused_as_here_whatever_device_saved_it(fused: bool) -> None:
    module, images = make_module(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    optimizer = module.make_optimizer()
    module(images).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["fused"] = fused  # False is a Mac's
    other = make_module().make_optimizer()
    other.load_state_dict(saved)
    assert [group["fused"] for group in other.param_groups] == [True, True]
    for state in other.state.values():
        assert state["step"].dtype == torch.float32
        assert state["step"].device == CPU


def test_a_second_test_counts_anew() -> None:
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    batches: Any = TensorDataset(images, torch.arange(10) % 3)
    module = make_module()
    for _ in range(2):
        trainer = pl.Trainer(accelerator="cpu", **QUIET)
        trainer.test(module, dataloaders=DataLoader(batches), verbose=False)
        assert module.confusion.sum() == 10


def test_metrics_are_means_over_images_not_batches() -> None:
    module = make_module().eval()
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(10) % 3
    for part in (slice(0, 7), slice(7, 10)):
        module.test_step((images[part], labels[part]), 0)
    logits = module(images).detach()
    loss = F.cross_entropy(logits, labels)
    hits = (logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(module.test_loss.compute(), loss)
    torch.testing.assert_close(module.test_acc.compute(), hits)
    confusion = module.test_confusion.compute()
    assert confusion.sum() == 10
    assert confusion.diagonal().sum() == round(10 * hits.item())
    for true in range(3):
        predicted = logits.argmax(1)[labels == true].bincount(minlength=3)
        assert torch.equal(confusion[true], predicted)


def test_one_batch_is_learnt_by_heart() -> None:
    plain = {"label_smoothing": 0.0, "weight_decay": 0.0}
    module = make_module(base_width=8, lr=3e-3, **plain)
    optimizer = module.make_optimizer()
    images = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8)
    batch = images, torch.arange(32) % 3
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.02
    assert (module(images).argmax(1) == batch[1]).all()


def test_losses_add_up_in_float32_in_every_precision() -> None:
    images = torch.randint(256, (600, 32, 32, 3), dtype=torch.uint8)
    labels = torch.arange(600) % 3  # so many losses are too many for bfloat16
    losses = {}
    for precision in ("32-true", "bf16-true", "64-true"):
        trainer: Any = pl.Trainer(accelerator="cpu", precision=precision, **QUIET)
        for size in (1, 512) if precision == "bf16-true" else (512,):
            module = make_module(base_width=2)
            loader = EvalLoader(images, labels, batch_size=size, device=CPU)
            [found] = trainer.test(module, loader, verbose=False)
            losses[precision, size] = found["test/loss"]
            assert module.test_loss.mean_value.dtype == torch.float32
    expected = losses["32-true", 512]
    assert losses["bf16-true", 1] == pytest.approx(losses["bf16-true", 512], rel=1e-4)
    assert losses["bf16-true", 1] == pytest.approx(expected, rel=1e-3)
    assert losses["64-true", 512] == pytest.approx(expected, rel=1e-5)


def test_losses_of_half_precision_do_not_overflow() -> None:
    module = make_module().to(torch.float16)
    for _ in range(3):
        module.train_loss.update(torch.full((512,), 60.0, dtype=torch.float16))
    assert module.train_loss.compute() == 60
    module.train_loss.reset()
    assert module.train_loss.mean_value.dtype == torch.float32


def test_means_add_up_in_float32_whatever_the_weights_are() -> None:
    module = LitCustomResNet("abc", (0.5,) * 3, (0.2,) * 3, 0.1, base_width=2)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        module.to(dtype)
        for metric in (
            module.train_loss,
            module.train_acc,
            module.val_loss,
            module.test_loss,
        ):
            metric.update(torch.tensor([0.25, 0.25, 0.2501]))
            assert metric.compute().item() == pytest.approx(0.7501 / 3, rel=1e-6)
            metric.reset()
