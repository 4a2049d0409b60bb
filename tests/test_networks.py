"""The networks by name, and the one that a page adds."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import networks
from analysis.explanation import layer_cam
from analysis.loading import load_model, read_trained
from common.errors import InputError
from config import Config
from custom_resnet import CustomResNet
from export import export
from lightning_module import LitCustomResNet
from networks import build_network
from run_files import LAST, assert_same, rows, weights
from training.checkpoint import AtomicCheckpointIO
from training.guard import Guard

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs" / "networks.md").read_text(encoding="utf-8")
Train = Callable[..., dict[str, Any]]


def with_addition(source: str, diff: str) -> str:
    """A source with the added lines of a diff, each after the line that it follows."""
    for before, added in re.findall(r"^ (.*)\n\+(.*)$", diff, re.M):
        assert source.count(f"\n{before}\n") == 1, before
        source = source.replace(f"\n{before}\n", f"\n{before}\n{added}\n")
    return source


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """The network of the page, added as the page says."""
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)
    [diff] = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.DOTALL | re.M)
    module = ModuleType("plain_net")
    exec(compile(code, "plain_net.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "plain_net", module)
    source = with_addition(Path(networks.__file__).read_text(encoding="utf-8"), diff)
    changed = ModuleType("networks")
    exec(compile(source, "networks.py", "exec"), changed.__dict__)
    assert [*changed.NETWORKS] == ["custom_resnet", "plain"]
    monkeypatch.setitem(networks.NETWORKS, "plain", changed.NETWORKS["plain"])
    made: type[nn.Module] = module.PlainNet
    return made


def test_the_network_of_the_page_trains_resumes_exports_and_is_explained(
    plain: type[nn.Module], quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")  # for the report
    metrics = quick_train(net="plain", max_epochs=4, name="unbroken", report=True)
    assert metrics["test/acc"] > 0.8
    assert Path("runs/unbroken/report.html").exists()
    with monkeypatch.context() as patch:
        end_epoch = Guard.on_train_epoch_end

        def killed(guard: Guard, trainer: Any, *rest: Any) -> None:
            end_epoch(guard, trainer, *rest)
            if trainer.current_epoch == 2:
                raise ValueError("killed")

        patch.setattr(Guard, "on_train_epoch_end", killed)
        with pytest.raises(ValueError, match="killed"):
            quick_train(net="plain", max_epochs=4)
    with pytest.raises(InputError, match=r"--net is custom_resnet, .* with plain"):
        quick_train(max_epochs=4, ckpt_path="last")
    quick_train(net="plain", max_epochs=4, ckpt_path="last")
    assert_same(weights(), weights(Path("runs/unbroken/checkpoints/last.ckpt")))
    assert rows() == rows("unbroken")

    images = torch.arange(2 * 3 * 1024).reshape(2, 3, 32, 32).remainder(256).byte()
    expected = load_model(LAST)(images)
    for format, suffix in (("safetensors", ".safetensors"), ("weights", ".w.ckpt")):
        path = LAST.with_suffix(suffix)
        export(format=format, ckpt_path=str(LAST), output=str(path))  # type: ignore[arg-type]
        assert read_trained(path)["hyper_parameters"]["net"] == "plain"
        model = load_model(path)
        assert isinstance(model.net, plain)
        torch.testing.assert_close(model(images), expected)
    export(format="torch", ckpt_path=str(LAST))
    heat = layer_cam(model, images, torch.tensor([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat.max() == 1


def test_a_file_without_the_name_is_the_custom_resnet(quick_train: Train) -> None:
    quick_train(max_epochs=1)
    old = torch.load(LAST, weights_only=True)
    assert old["hyper_parameters"].pop("net") == "custom_resnet"
    assert old["config"].pop("net") == "custom_resnet"
    AtomicCheckpointIO().save_checkpoint(old, LAST)
    assert type(load_model(LAST).net) is CustomResNet
    quick_train(max_epochs=1, ckpt_path="last")  # its other flags are compared
    with pytest.raises(InputError, match="--seed is 1, but the checkpoint"):
        quick_train(max_epochs=1, ckpt_path="last", seed=1)


@pytest.mark.usefixtures("plain")
def test_a_file_of_a_network_that_is_not_here_is_one_line(quick_train: Train) -> None:
    quick_train(net="plain", max_epochs=1, report=False)
    del networks.NETWORKS["plain"]
    with pytest.raises(InputError) as refused:
        load_model(LAST)
    networks.NETWORKS["plain"] = CustomResNet  # for the fixture to take away
    assert str(refused.value) == (
        "network 'plain' is not in networks.py, which has custom_resnet; add it there"
    )


def test_an_unknown_name_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match=r"--net must be a name in networks\.py \("):
        Config(net="nosuch")


def test_a_network_without_a_layer_for_layer_cam_is_no_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blind(classes: int, width: int) -> nn.Module:
        return nn.Linear(width, classes)

    monkeypatch.setitem(networks.NETWORKS, "blind", blind)
    with pytest.raises(AttributeError, match="cam_layer"):
        build_network("blind", 2, 3)


def test_layer_cam_looks_at_the_layer_that_the_network_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    module = LitCustomResNet(["a", "b"], [0.5] * 3, [0.2] * 3, 0.1, base_width=4).eval()
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8) % 2
    by_default = layer_cam(module, images, labels)
    monkeypatch.setattr(CustomResNet, "cam_layer", property(lambda net: net.layer1))
    assert not torch.equal(layer_cam(module, images, labels), by_default)
