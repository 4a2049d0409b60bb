"""CUDA graphs without a GPU: why there are none, and what is done with a mocked one."""

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from common.errors import InputError
from images.loader import Batch
from lightning_module import LitCustomResNet
from run_files import assert_same, weights
from training.cuda_graph import CudaGraph, capture, obstacle

Train = Callable[..., dict[str, Any]]
LABELS = torch.tensor([0, 1, 2, 0])


def make_module() -> LitCustomResNet:
    torch.manual_seed(0)
    colour = (0.5, 0.4, 0.3)
    return LitCustomResNet(("a", "b", "c"), colour, colour, 0.01, base_width=4)


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return images.permute(0, 3, 1, 2), LABELS


def mocked_graphs(step: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Warms up, then fills the inputs and overwrites what it has given before."""
    original = step.forward
    given: list[Tensor] = []
    for _ in range(3):
        original(*inputs)

    def replay(*new: Tensor) -> tuple[Tensor, Tensor]:
        for old in given:
            old.fill_(torch.nan)
        given.clear()
        for room, value in zip(inputs, new, strict=True):
            room.copy_(value)
        loss, accuracy = original(*inputs)
        given.extend((loss.detach(), accuracy))
        return loss, accuracy

    step.forward = replay


@pytest.mark.parametrize(
    ("device", "world_size", "precision", "problem"),
    [
        ("cpu", 1, "32-true", "it needs an NVIDIA GPU, the device is a cpu"),
        ("mps", 1, "32-true", "it needs an NVIDIA GPU, the device is a mps"),
        ("cuda", 2, "bf16-mixed", "it is for one process, not 2"),
        ("cuda", 1, "16-mixed", "it does not scale gradients as --precision 16-mixed"),
        ("cuda", 1, "bf16-mixed", None),
    ],
)
def test_who_can_have_graphs(
    device: str, world_size: int, precision: str, problem: str | None
) -> None:
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        world_size=world_size,
        precision=precision,
    )
    found = obstacle(trainer)
    assert found == problem or (found and problem and found.startswith(problem))


def test_a_run_without_a_gpu_says_so_once_and_trains_as_usual(
    quick_train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    quick_train()
    expected = weights()
    quick_train(cuda_graph=True, overwrite=True)
    assert_same(weights(), expected)
    assert caplog.text.count("--cuda_graph is left out, the training is as usual") == 1
    assert "it needs an NVIDIA GPU, the device is a cpu" in caplog.text


def test_steps_with_a_graph_are_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", mocked_graphs)
    plain, graphed = make_module(), make_module()
    first = batch(0)
    kept = first[0].clone()
    assert capture(graphed, first) is None
    assert list(graphed.state_dict()) == list(plain.state_dict())
    for module in (plain, graphed):
        optimizer = module.make_optimizer()
        for step in range(3):
            loss = module.training_step(batch(step), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same(graphed.state_dict(), plain.state_dict())  # batch statistics, too
    assert_same(graphed.losses, plain.losses)
    assert_same(graphed.accuracies, plain.accuracies)
    assert torch.equal(first[0], kept)  # another batch was copied elsewhere
    assert not any(value.requires_grad for value in graphed.accuracies)


def failing(error: RuntimeError) -> Callable[..., None]:
    def fail(step: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step(*inputs)
        raise error

    return fail


def test_without_memory_for_a_graph_the_module_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", failing(error))
    module = make_module()
    assert capture(module, batch(0)) == "the GPU has too little memory for it"
    assert_same(module.state_dict(), make_module().state_dict())
    assert "objective" not in vars(module)


def test_a_network_that_cannot_be_captured_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("operation not permitted\nwhen capturing")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", failing(error))
    said = r"--cuda_graph: .* \(operation not permitted\); leave it out"
    with pytest.raises(InputError, match=said):
        capture(make_module(), batch(0))


def test_each_capture_has_a_stream_of_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", mocked_graphs)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", "of another GPU")
    assert capture(make_module(), batch(0)) is None
    assert torch.cuda.graph.default_capture_stream is None


def test_the_graphs_go_when_the_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.nn.Module]] = []

    def note(step: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        made.append(weakref.ref(step))
        mocked_graphs(step, inputs)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", note)
    module, trainer = make_module(), pl.Trainer(accelerator="cpu", barebones=True)
    capture(module, batch(0))
    assert "objective" in vars(module)
    CudaGraph().on_train_end(trainer, module)
    assert "objective" not in vars(module)
    assert made[0]() is None  # nor is what holds their memory


def test_a_run_captures_before_its_first_step(
    quick_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", mocked_graphs)
    monkeypatch.setattr("training.cuda_graph.obstacle", lambda _: None)
    quick_train(sam_radius=0.1)
    expected = weights()
    quick_train(sam_radius=0.1, cuda_graph=True, overwrite=True)
    assert_same(weights(), expected)
