"""The network against its literal table and an independent reference."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from custom_resnet import (
    BatchNorm2d,
    Conv2d,
    CustomResNet,
    layer_table,
    whitening_filters,
)

TABLE = [
    ("Conv2d", (64, 32, 32), 1728),
    ("BatchNorm2d", (64, 32, 32), 128),
    ("ReLU", (64, 32, 32), 0),
    ("Conv2d", (128, 32, 32), 73728),
    ("MaxPool2d", (128, 16, 16), 0),
    ("BatchNorm2d", (128, 16, 16), 256),
    ("ReLU", (128, 16, 16), 0),
    ("Conv2d", (128, 16, 16), 147456),
    ("BatchNorm2d", (128, 16, 16), 256),
    ("ReLU", (128, 16, 16), 0),
    ("Conv2d", (128, 16, 16), 147456),
    ("BatchNorm2d", (128, 16, 16), 256),
    ("ReLU", (128, 16, 16), 0),
    ("Conv2d", (256, 14, 14), 294912),
    ("MaxPool2d", (256, 7, 7), 0),
    ("BatchNorm2d", (256, 7, 7), 512),
    ("ReLU", (256, 7, 7), 0),
    ("Conv2d", (512, 7, 7), 1179648),
    ("MaxPool2d", (512, 3, 3), 0),
    ("BatchNorm2d", (512, 3, 3), 1024),
    ("ReLU", (512, 3, 3), 0),
    ("Conv2d", (512, 3, 3), 2359296),
    ("BatchNorm2d", (512, 3, 3), 1024),
    ("ReLU", (512, 3, 3), 0),
    ("Conv2d", (512, 3, 3), 2359296),
    ("BatchNorm2d", (512, 3, 3), 1024),
    ("ReLU", (512, 3, 3), 0),
    ("MaxPool2d", (512, 1, 1), 0),
    ("Linear", (10,), 5120),
]


def test_layers_shapes_and_parameters_are_the_table() -> None:
    net = CustomResNet()
    seen: list[tuple[str, tuple[int, ...], int]] = []

    def see(layer: nn.Module, _: object, output: Tensor) -> None:
        count = sum(parameter.numel() for parameter in layer.parameters())
        seen.append((type(layer).__name__, tuple(output.shape[1:]), count))

    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(see)
    net(torch.zeros(2, 3, 32, 32))
    assert seen == TABLE
    assert sum(parameter.numel() for parameter in net.parameters()) == 6_573_120


def correlated_images() -> Tensor:
    """Random images whose neighbours and channels are alike, (200, 3, 32, 32)."""
    torch.manual_seed(0)
    mixing = torch.randn(3, 3)
    images = F.avg_pool2d(torch.randn(200, 3, 34, 34), 3, 1)
    return torch.einsum("cd,ndhw->nchw", mixing, images)


def test_whitened_patches_are_not_correlated() -> None:
    images = correlated_images()
    filters = whitening_filters(images, 60)
    assert torch.allclose(filters.flatten(1).norm(dim=1), torch.ones(60), atol=1e-5)
    assert torch.equal(filters[27:54], -filters[:27])
    answers = F.conv2d(images, filters[:27]).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(answers) - torch.eye(27)
    assert correlation.abs().max() < 1e-2


def test_grey_images_have_no_filter_that_sees_nothing() -> None:
    grey = correlated_images()[:, :1].expand(-1, 3, -1, -1)
    filters = whitening_filters(grey, 64)
    answers = F.conv2d(grey, filters).transpose(0, 1).flatten(1)
    assert answers.abs().amax(dim=1).min() > 0.1
    assert torch.equal(filters[9:18], -filters[:9])  # a pair a pixel of a patch


def test_filters_are_float32_whatever_the_default_is() -> None:
    images = correlated_images()
    torch.set_default_dtype(torch.float64)
    try:
        assert whitening_filters(images, 64).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_few_filters_are_those_of_the_largest_eigenvalues(count: int) -> None:
    images = correlated_images()
    few, all_of_them = (whitening_filters(images, number) for number in (count, 60))
    assert few.shape == (count, 3, 3, 3)
    half = count // 2
    assert torch.equal(few[:half], all_of_them[27 - half : 27])
    assert torch.equal(few[half : 2 * half], -few[:half])


def test_only_the_first_convolution_starts_with_them() -> None:
    images = correlated_images()
    torch.manual_seed(1)
    net = CustomResNet(base_width=64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.whiten(images)
    changed = [
        name
        for name, value in net.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert changed == ["prep.0.weight"]
    expected = whitening_filters(images, 54)  # the others are drawn
    torch.testing.assert_close(net.state_dict()["prep.0.weight"][:54], expected)


def test_printed_table_holds_the_same_rows() -> None:
    header, *rows, total = layer_table(CustomResNet()).splitlines()
    assert header.split() == ["Layer", "Output", "shape", "Parameters"]
    for number, (row, (layer, shape, count)) in enumerate(
        zip(rows, TABLE, strict=True), start=1
    ):
        expected = [f"{layer}-{number}", *str([-1, *shape]).split(), f"{count:,}"]
        assert row.split() == expected
    assert total.split() == ["Total", "6,573,120"]


def as_pytorch_has_it(net: CustomResNet) -> nn.Module:
    """A copy with PyTorch's own batch norm, which counts for itself."""
    copied = copy.deepcopy(net)
    for norm in copied.modules():
        if isinstance(norm, BatchNorm2d):
            norm.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return copied


@pytest.mark.parametrize("way", ["usual", "cumulative", "frozen", "untracked"])
def test_batch_statistics_are_those_of_pytorch(way: str) -> None:
    """Also in ways in which weight averaging and fine-tuning leave batch norm."""
    torch.manual_seed(0)
    images, net = torch.randn(3, 8, 3, 32, 32), CustomResNet(base_width=4)
    for norm in net.modules():
        if isinstance(norm, BatchNorm2d) and way == "untracked":
            for name in [*dict(norm.named_buffers())]:
                setattr(norm, name, None)
    nets = net, as_pytorch_has_it(net)
    found = []
    for one in nets:
        if way == "cumulative":
            update_bn(list(images[:2]), one)
        one.train()
        if way == "frozen":
            one.get_submodule("residual1").eval()
        answers = [one(images[2]), one.eval()(images[2])]
        found.append([*answers, *one.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parts_of_a_batch_have_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    net, images = CustomResNet(base_width=4), torch.randn(12, 3, 32, 32)
    whole = net(images)
    parts = net.prep[0](images).split(4)  # what the first batch norm is given
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.norm_batch(4)
    alone = [reference(part, before) for part in images.split(4)]
    torch.testing.assert_close(net(images), torch.cat(alone))
    assert not torch.allclose(net(images), whole, atol=1e-3)

    net.load_state_dict(before)
    net(images)
    mean, var = before["prep.1.running_mean"], before["prep.1.running_var"]
    for part in parts:  # a third of the momentum each
        mean = mean.lerp(part.mean(dim=(0, 2, 3)), 0.1 / 3)
        var = var.lerp(part.transpose(0, 1).flatten(1).var(dim=1), 0.1 / 3)
    state = net.state_dict()
    torch.testing.assert_close(state["prep.1.running_mean"], mean)
    torch.testing.assert_close(state["prep.1.running_var"], var)
    assert state["prep.1.num_batches_tracked"] == 2
    net.eval()
    torch.testing.assert_close(net(images)[:4], net(images[:4]))


def reference(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The network in training mode, written with functions only."""

    def block(x: Tensor, name: str, *, pool: bool = False, padding: int = 1) -> Tensor:
        norm = 2 if pool else 1
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=padding)
        x = F.max_pool2d(x, 2) if pool else x
        weight, bias = state[f"{name}.{norm}.weight"], state[f"{name}.{norm}.bias"]
        return F.batch_norm(x, None, None, weight, bias, training=True).relu()

    x = block(x, "prep")
    x = block(x, "layer1", pool=True)
    x = x + block(block(x, "residual1.0"), "residual1.1")
    x = block(x, "layer2", pool=True, padding=0)
    x = block(x, "layer3", pool=True)
    x = x + block(block(x, "residual3.0"), "residual3.1")
    return F.max_pool2d(x, 3).flatten(1) @ state["fc.weight"].T


def test_output_and_gradient_equal_the_functional_reference() -> None:
    torch.manual_seed(0)
    net = CustomResNet(num_classes=7, base_width=8).double()
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for value in state.values():
        value.requires_grad_(value.is_floating_point())
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    ours, theirs = net(x), reference(x, state)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad)


def test_layer_table_leaves_the_network_as_it_was() -> None:
    net = CustomResNet(base_width=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layer_table(net)
    assert net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(layer._forward_hooks for layer in net.modules())


@pytest.mark.parametrize("side", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 5])
def test_maps_side_by_side_are_convolved_one_by_one(
    side: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom_resnet.SMALL_MAP", 4)
    generator = torch.Generator().manual_seed(0)
    ours = Conv2d(4, 6, 3, padding=1, bias=False).double()
    plain = nn.Conv2d(4, 6, 3, padding=1, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    maps = torch.randn(batch, 4, side, side, generator=generator).double()
    weighting = torch.randn(batch, 6, side, side, generator=generator).double()
    gradients = []
    for conv in (ours, plain):
        given = maps.clone().requires_grad_()
        output = conv(given)
        assert output.shape == (batch, 6, side, side)
        output.mul(weighting).sum().backward()
        assert given.grad is not None
        assert conv.weight.grad is not None
        gradients.append((output.detach(), given.grad, conv.weight.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_only_small_maps_in_training_are_laid_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("custom_resnet.SMALL_MAP", 4)
    widths: list[int] = []

    class Seen(Conv2d):
        def _conv_forward(
            self, input: Tensor, weight: Tensor, bias: Tensor | None
        ) -> Tensor:
            widths.append(input.shape[-1])
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output

    conv = Seen(2, 2, 3, padding=1)
    conv(torch.zeros(5, 2, 3, 3))
    conv(torch.zeros(5, 2, 4, 4))
    conv.eval()(torch.zeros(5, 2, 3, 3))
    Seen(2, 2, 3)(torch.zeros(5, 2, 3, 3))  # without padding
    assert widths == [20, 4, 3, 3]


def test_dirac_leaves_the_other_filters_random() -> None:
    torch.manual_seed(0)
    net = CustomResNet(base_width=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.dirac()
    for name, part in net.named_modules():
        if isinstance(part, torch.nn.Conv2d):
            weight, old = part.weight, before[f"{name}.weight"]
            inputs = 0 if name == "prep.0" else part.in_channels
            x = torch.randn(1, part.in_channels, 5, 5)
            if inputs:
                handed_on = F.conv2d(x, weight[:inputs], padding=1)
                torch.testing.assert_close(handed_on, x)
            assert torch.equal(weight[inputs:], old[inputs:]), name
