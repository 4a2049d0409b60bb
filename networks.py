"""The networks that `--net` names, and how one is built."""

from collections.abc import Callable

from torch import nn

from custom_resnet import CustomResNet

# From the number of classes and the base width to a network that maps normalised images
# (B, 3, 32, 32) to logits (B, num_classes). Its `cam_layer` is the layer that LayerCAM
# looks at, with an output (B, C, H, W).
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
