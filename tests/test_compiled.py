"""A compiled step: one graph, the same steps, and who may ask for what."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import train
from common import cli
from common.errors import InputError
from config import Compile, Config
from lightning_module import LitCustomResNet
from run_files import assert_same, weights
from training.checks import check_processes
from training.compiled import compile_objective, replaying

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compiles without a compiler, in one graph or not at all; notes the modes."""
    modes: list[str] = []
    real = torch.compile

    def compile(function: Any, mode: str, dynamic: bool) -> Any:
        assert not dynamic
        modes.append(mode)
        return real(function, backend="eager", fullgraph=True)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(train, "check_compiler", lambda _: None)
    return modes


def test_a_compiled_run_has_the_same_weights_and_names(
    quick_train: Train, eager: list[str]
) -> None:
    flags = {"ema_decay": 0.9, "sam_radius": 0.1}
    plain = quick_train(name="plain", **flags)
    compiled = quick_train(name="compiled", compile=True, **flags)
    assert eager == ["default"]
    paths = [
        Path(f"runs/{name}/checkpoints/last.ckpt") for name in ("plain", "compiled")
    ]
    assert_same(weights(paths[1]), weights(paths[0]))
    for key in ("train/loss", "val/loss", "test/loss"):
        assert compiled[key] == plain[key]
    saved = yaml.safe_load(Path("runs/compiled/config.yaml").read_text())
    assert saved["compile"] is True  # as in older files


def test_normalisation_network_and_loss_are_one_graph(eager: list[str]) -> None:
    module = LitCustomResNet(("a", "b"), (0.5,) * 3, (0.2,) * 3, 0.01, base_width=4)
    graphs: list[list[str]] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(_compile_with, note))
        compile_objective(module, True)
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        module.training_step((images, torch.tensor([0, 1, 0, 1])), 0)
    [operations] = graphs
    text = " ".join(operations)
    for name in ("sub", "conv2d", "batch_norm", "log_softmax", "nll_loss", "argmax"):
        assert name in text


def _compile_with(backend: Any, function: Any, mode: str, dynamic: bool) -> Any:
    return torch._dynamo.optimize(backend, nopython=True)(function)


def test_what_a_replay_overwrites_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = torch.zeros(2)
    calls: list[str] = []

    def graph(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append("replay")
        memory.copy_(torch.stack([images.sum(), labels.sum()]))
        return memory[0], memory[1]

    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("mark")
    )
    objective = replaying(graph)
    first = objective(torch.tensor([1.0]), torch.tensor([2.0]))
    second = objective(torch.tensor([3.0]), torch.tensor([4.0]))
    assert [value.item() for value in (*first, *second)] == [1, 2, 3, 4]
    assert calls == ["mark", "replay", "mark", "replay"]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--compile"], True),
        (["--compile", "true"], True),
        (["--compile=false"], False),
        (["--compile", "default"], "default"),
        (["--compile", "reduce-overhead"], "reduce-overhead"),
    ],
)
def test_the_flag_takes_a_switch_or_a_mode(
    arguments: list[str], value: Compile
) -> None:
    assert cli.parse(Config, arguments)["compile"] == value


def test_a_wrong_mode_is_refused() -> None:
    choices = "true, false, default or reduce-overhead"
    with pytest.raises(InputError, match=f"--compile must be {choices}, got 'fast'"):
        cli.parse(Config, ["--compile", "fast"])


@pytest.mark.parametrize(
    ("flags", "device", "message"),
    [
        (
            {"compile": "reduce-overhead"},
            "cpu",
            "--compile reduce-overhead needs an NVIDIA GPU, the device is a cpu",
        ),
        (
            {"compile": True, "cuda_graph": True},
            "cuda",
            "--compile and --cuda_graph contradict each other",
        ),
        (
            {"norm_batch": 48},
            "cpu",
            "--norm_batch 48 does not divide the 256 images of a batch",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_image_is_read(
    flags: Any, device: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_processes(Config(**flags), 1, device)
    check_processes(Config(compile="reduce-overhead"), 1, "cuda")
    check_processes(Config(cuda_graph=True), 1, "cpu")
