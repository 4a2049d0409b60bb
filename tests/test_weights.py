"""Weights in `.safetensors` files: whole, small, refused when they are not ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from analysis.inference import predict_logits
from analysis.loading import load_model, read_trained
from analysis.weights import compact, read_weights, round_weights, save_weights
from common.errors import InputError
from export import export
from lightning_module import LitCustomResNet
from run_files import LAST

IMAGES = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).mul(37).remainder(256).byte()


@pytest.fixture
def model() -> LitCustomResNet:
    torch.manual_seed(0)
    module = LitCustomResNet(["b", "a"], [0.1, 0.2, 0.3], [1, 2, 3], 0.1, base_width=4)
    module.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module.eval()


def test_a_file_holds_all_of_a_network(model: LitCustomResNet) -> None:
    measured = {"test/acc": 0.5}
    save_weights(model, {"measured": measured}, Path("w.safetensors"))
    saved = read_weights(Path("w.safetensors"))
    assert saved["hyper_parameters"] == dict(model.hparams)
    assert saved["measured"] == measured
    assert "config" not in saved
    loaded = load_model(Path("w.safetensors"))
    torch.testing.assert_close(
        dict(loaded.net.state_dict()), dict(model.net.state_dict()), rtol=0, atol=0
    )
    torch.testing.assert_close(
        predict_logits(loaded, IMAGES), predict_logits(model, IMAGES)
    )


def test_rounded_weights_take_half_the_room(model: LitCustomResNet) -> None:
    save_weights(model, {}, Path("whole.safetensors"))
    before = predict_logits(model, IMAGES)
    round_weights(model)
    save_weights(model, {}, Path("half.safetensors"))
    sizes = [Path(f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.65  # the header is long for so small a net
    after = predict_logits(load_model(Path("half.safetensors")), IMAGES)
    torch.testing.assert_close(after, predict_logits(model, IMAGES))
    assert 0 < (after - before).abs().max() < 0.01


def test_only_what_loses_nothing_is_stored_as_float16() -> None:
    for value, dtype in (
        (torch.tensor([0.5, 2]), torch.float16),
        (torch.tensor([0.5, 2.0001]), torch.float32),
        (torch.tensor([1e6]), torch.float32),
        (torch.tensor(3), torch.int64),
    ):
        assert compact(value).dtype == dtype
        assert torch.equal(compact(value).to(value.dtype), value)


def test_an_export_says_what_shaped_the_network_but_not_where(
    quick_train: Callable[..., dict[str, Any]],
) -> None:
    quick_train(max_epochs=1, label_smoothing=0.2)
    export(format="safetensors", ckpt_path=str(LAST), half=True)
    path = LAST.with_suffix(".safetensors")
    config = read_trained(path)["config"]
    assert (config["label_smoothing"], config["max_epochs"]) == (0.2, 1)
    assert "data_dir" not in config
    export(format="weights", ckpt_path=str(path), output="again.ckpt")
    assert read_trained(Path("again.ckpt"))["config"] == config
    again = load_model(Path("again.ckpt"))
    assert torch.equal(
        predict_logits(again, IMAGES), predict_logits(load_model(path), IMAGES)
    )


@pytest.mark.parametrize("kind", ["torn", "text", "foreign", "other metadata"])
def test_other_files_are_refused(kind: str, model: LitCustomResNet) -> None:
    path = Path("w.safetensors")
    save_weights(model, {}, path)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:-10])
    if kind == "text":
        path.write_text("no weights")
    if kind == "foreign":
        save_file({"a": torch.ones(2)}, path)
    if kind == "other metadata":
        save_file({"a": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"^--ckpt_path w\.safetensors: ") as refused:
        load_model(path)
    assert "\n" not in str(refused.value)
