"""The networks that `--net` names, and how one is built."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from custom_resnet import CustomResNet

# From the number of classes and the base width to a network that maps normalised images
# (B, 3, 32, 32) to logits (B, num_classes). Its `cam_layer` is the layer that LayerCAM
# looks at and that features are taken from, with an output (B, C, H, W).
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "custom_resnet": CustomResNet,
}


def build_network(name: str, num_classes: int, base_width: int) -> nn.Module:
    """A network with new weights.

    Raises:
        InputError: There is none of this name.
        AttributeError: It has no `cam_layer`, which the report would miss at the end.
    """
    if name not in NETWORKS:
        # Not above: `torch.hub` needs networks only, and nothing that `common` sets up.
        from common.errors import InputError

        raise InputError(
            f"network {name!r} is not in networks.py, which has {', '.join(NETWORKS)}; "
            "add it there"
        )
    net = NETWORKS[name](num_classes, base_width)
    assert isinstance(net.cam_layer, nn.Module), f"cam_layer of {name} is no layer"
    return net


@contextlib.contextmanager
def collected_features(net: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which every batch that passes a network adds its features.

    They are the means over each map of its `cam_layer`, float32 (B, C).
    """
    found: list[Tensor] = []
    layer: Any = net.cam_layer
    hook = layer.register_forward_hook(
        lambda _, __, maps: found.append(maps.float().mean(dim=(2, 3)))
    )
    try:
        yield found
    finally:
        hook.remove()
