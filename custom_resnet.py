"""The network: a nine-layer residual network with 6,573,120 parameters.

Page's cifar10-fast network (https://github.com/davidcpage/cifar10-fast) in the form
that courses teach as the "custom ResNet": pooling stands between convolution and batch
norm, and the 128 -> 256 convolution has no padding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Pixels: the side from which rows are long enough for the CPU. Without AVX-512 all are.
SMALL_MAP = 4 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 0


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that trains small maps several times faster on a CPU.

    A CPU's vector and matrix units work along the rows of a map, and rows of 3 pixels
    leave most of them idle. So the maps of a batch are laid side by side, a column of
    zeros between two, and are one wide map: the same sums of the same products. What it
    brings on which CPU is in docs/lab/speed.md. Filters are 3x3 and move by one pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps (B, C, H, W)."""
        batch, channels, height, width = x.shape
        is_small = self.padding == (1, 1) and width < SMALL_MAP
        if not (self.training and is_small and x.device.type == "cpu"):
            return super().forward(x)
        rows = F.pad(x, (0, 1)).permute(2, 0, 3, 1)  # (H, B, W + 1, C)
        wide = rows.reshape(1, height, -1, channels).permute(0, 3, 1, 2)
        rows = super().forward(wide).permute(0, 2, 3, 1)
        maps = rows.view(height, batch, width + 1, -1)[:, :, :width]
        return maps.permute(1, 3, 0, 2).contiguous(memory_format=torch.channels_last)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batches are counted by the network, for all at once.

    Attributes:
        together: Images that share statistics in training, a part of the batch (ghost
            batch norm, arXiv 1705.08741); 0 for all of the batch.
    """

    together = 0

    def is_counted_for(self) -> bool:
        """Whether the network counts: not where the statistics hang on the count."""
        return self.momentum is not None and self.num_batches_tracked is not None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W)."""
        if not self.is_counted_for():
            return super().forward(x)
        if not (self.training and self.together):
            return self._normalise(x, 1.0)
        parts = x.split(self.together)
        # A batch moves the statistics about as far as it would as a whole.
        return torch.cat([self._normalise(part, 1 / len(parts)) for part in parts])

    def _normalise(self, x: Tensor, share: float) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            share * (self.momentum or 0.0),  # it is never None here
            self.eps,
        )


def conv_block(
    in_channels: int, out_channels: int, *, pool: bool = False, padding: int = 1
) -> nn.Sequential:
    """3x3 convolution, optional 2x2 max pool, batch norm, ReLU."""
    conv = Conv2d(in_channels, out_channels, 3, padding=padding, bias=False)
    pooling = [nn.MaxPool2d(2)] if pool else []
    norm = BatchNorm2d(out_channels)
    return nn.Sequential(conv, *pooling, norm, nn.ReLU(inplace=True))


class CustomResNet(nn.Module):
    """Three stages, with a residual pair of convolutions after the first and the third.

    Args:
        num_classes: Number of outputs.
        base_width: Channels of the first convolution; the others are 2, 4 and 8 times
            as wide. 64 gives the network of the README; tests use fewer.
    """

    def __init__(self, num_classes: int = 10, base_width: int = 64) -> None:
        super().__init__()
        width1, width2, width3 = 2 * base_width, 4 * base_width, 8 * base_width
        self.prep = conv_block(3, base_width)
        self.layer1 = conv_block(base_width, width1, pool=True)
        self.residual1 = nn.Sequential(
            conv_block(width1, width1), conv_block(width1, width1)
        )
        self.layer2 = conv_block(width1, width2, pool=True, padding=0)
        self.layer3 = conv_block(width2, width3, pool=True)
        self.residual3 = nn.Sequential(
            conv_block(width3, width3), conv_block(width3, width3)
        )
        self.pool = nn.MaxPool2d(3)
        self.fc = nn.Linear(width3, num_classes, bias=False)

    @property
    def cam_layer(self) -> nn.Module:
        """Where LayerCAM looks: the last layer that has more than 3 x 3 places."""
        return self.layer2

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Let the first convolution start as `whitening_filters` of images.

        Args:
            images: Normalised images, float (N, 3, 32, 32).
        """
        weight: Any = self.prep[0].weight
        weight.copy_(whitening_filters(images, len(weight)))

    @torch.no_grad()
    def dirac(self) -> None:
        """Let all other convolutions start by handing on what they are given.

        Each has the identity in as many of its filters as it has inputs, a Dirac
        initialisation (Zagoruyko and Komodakis, arXiv 1706.00388); its other filters
        stay random.
        """
        _, *others = [part for part in self.modules() if isinstance(part, nn.Conv2d)]
        for conv in others:
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def norm_batch(self, together: int) -> None:
        """Let so many images of a batch share batch statistics in training."""
        for norm in self._norms():
            norm.together = together

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, 32, 32) to logits (B, num_classes)."""
        if self.training:
            self._count_batch()
        x = self.prep(x)  # (B, 64, 32, 32)
        x = self.layer1(x)  # (B, 128, 16, 16)
        x = x + self.residual1(x)
        x = self.layer2(x)  # (B, 256, 7, 7): 16 -> 14 without padding, then pooled
        x = self.layer3(x)  # (B, 512, 3, 3)
        x = x + self.residual3(x)
        x = self.pool(x)  # (B, 512, 1, 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits

    def _count_batch(self) -> None:
        """Count a batch in every batch norm: eight additions, in one operation."""
        counts: Any = [
            norm.num_batches_tracked
            for norm in self._norms()
            if norm.training and norm.is_counted_for()
        ]
        if counts:
            torch._foreach_add_(counts, 1)

    def _norms(self) -> list[BatchNorm2d]:
        # Without nn.SyncBatchNorm, which may stand in their place and counts itself.
        return [layer for layer in self.modules() if isinstance(layer, BatchNorm2d)]


def whitening_filters(images: Tensor, count: int) -> Tensor:
    """Filters whose answers to the patches of images are not correlated.

    They are the eigenvectors of the patches' covariance, and their negatives, as a ReLU
    follows (Jordan, arXiv 2404.00498, who divides each by the root of its eigenvalue;
    here batch norm does that). Of more filters than these 54 the others are random
    mixtures, of fewer those of the largest eigenvalues. What no patch has, as colour in
    grey images, gets no filter.

    Args:
        images: Normalised images, float (N, 3, 32, 32).
        count: How many filters.

    Returns:
        float32 (count, 3, 3, 3); each filter has norm 1.
    """
    patches = F.unfold(images, 3).transpose(1, 2).reshape(-1, 27)
    values, vectors = torch.linalg.eigh((patches.T @ patches).double() / len(patches))
    there = values > 1e-9 * values.max()
    filters = vectors[:, there].T.float()
    pairs = min(len(filters), count // 2)
    largest = filters[len(filters) - pairs :]
    mixtures = F.normalize(
        torch.randn(count - 2 * pairs, len(filters), dtype=filters.dtype) @ filters
    )
    return torch.cat([largest, -largest, mixtures]).view(count, 3, 3, 3)


def layer_table(net: nn.Module) -> str:
    """The layers in the order in which an image passes them, as a table.

    One row a layer: its type and number, output shape and parameters.
    """
    rows: list[str] = []

    def add_row(layer: nn.Module, _: object, output: Tensor) -> None:
        name = f"{type(layer).__name__}-{len(rows) + 1}"
        count = sum(parameter.numel() for parameter in layer.parameters())
        shape = str([-1, *output.shape[1:]])
        rows.append(f"{name:>20} {shape:>20} {count:>12,}")

    layers = [layer for layer in net.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(add_row) for layer in layers]
    device, training = next(net.parameters()).device, net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32, device=device))
    net.train(training)
    for hook in hooks:
        hook.remove()
    total = sum(parameter.numel() for parameter in net.parameters())
    header = f"{'Layer':>20} {'Output shape':>20} {'Parameters':>12}"
    return "\n".join([header, *rows, f"{'Total':>20} {'':>20} {total:>12,}"])
