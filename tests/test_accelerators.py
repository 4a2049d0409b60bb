"""GPUs and Macs on a machine that has neither: fake tensors and mocked devices."""

import logging
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import custom_resnet
import train
from analysis.explanation import layer_cam
from analysis.figures import confusion_figure
from analysis.inference import predict_proba
from analysis.loading import settle_device
from benchmarks import scale
from benchmarks.step_profile import operations
from common import cli
from common.errors import InputError
from config import Config
from evaluate import evaluate
from evaluate import test as evaluate_on
from images import photo_like
from images.augmentation import Augmentation
from images.loader import EvalLoader, TrainLoader
from lightning_module import LitCustomResNet
from machine.hardware import (
    NEEDS_SCRIPT,
    _check_launcher,
    choose_hardware,
    cuda_problem,
    cudnn_benchmark,
    resolve_precision,
)
from run_files import LAST
from training.guard import first_bad

PROJECT = Path(__file__).resolve().parent.parent
CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
CLASSES = ("a", "b", "c")
IMAGES = torch.arange(40 * 32 * 32 * 3).view(40, 32, 32, 3).to(torch.uint8)
LABELS = torch.arange(40) % 3
TURING = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def make_module(**options: Any) -> LitCustomResNet:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
    return LitCustomResNet(CLASSES, mean, std, lr=0.01, base_width=4, **options)


def train_loader(device: torch.device) -> TrainLoader:
    augmentation = Augmentation(
        padding_mode="reflect", flip="alternate", photo_like=0.5
    )
    fill = torch.zeros(3, dtype=torch.uint8)
    options: Any = {"fill": fill, "augmentation": augmentation, "device": device}
    return TrainLoader(IMAGES, LABELS, batch_size=16, seed=0, **options)


def train_epoch(module: LitCustomResNet, device: torch.device) -> list[Tensor]:
    """An epoch's steps with what is done at each, and its metrics, still there."""
    optimizer = module.train().make_optimizer()
    for step, batch in enumerate(train_loader(device)):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = next(module.net.parameters())
    bad_step = first_bad(torch.stack(module.losses), 0)
    module.train_loss.update(torch.stack(module.losses))
    module.train_acc.update(torch.stack(module.accuracies))
    metrics = [module.train_loss.compute(), module.train_acc.compute()]
    return [loss, weight, bad_step, *metrics]


def evaluate_all(module: LitCustomResNet, device: torch.device) -> list[Tensor]:
    """The metrics of all images, still there."""
    module.eval()
    with torch.no_grad():
        for step, batch in enumerate(
            EvalLoader(IMAGES, LABELS, batch_size=16, device=device)
        ):
            module.validation_step(batch, step)
            module.test_step(batch, step)
    names = ("val_loss", "val_acc", "test_loss", "test_acc", "test_acc_tta")
    return [getattr(module, name).compute() for name in (*names, "test_confusion")]


# --- Tensors that claim to be on a GPU: a mix of devices, or a read, is an error. ---


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[LitCustomResNet]:
    """A module on a GPU that nothing computes on."""
    module = make_module(tta="flip")
    # Fake weights cannot be exchanged, and are channels_last already.
    monkeypatch.setattr(torch.utils, "swap_tensors", lambda *_: None)

    def backward(_: Tensor) -> None:  # autograd's engine asks for a real GPU
        for weight in module.parameters():
            weight.grad = torch.empty_like(weight)

    monkeypatch.setattr(Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield module.to(CUDA)
    for kept in (photo_like._on, photo_like._tables):
        kept.cache_clear()  # of constants that are no real ones


def test_no_training_step_mixes_devices_or_waits_for_the_gpu(
    fake_gpu: LitCustomResNet,
) -> None:
    for images, labels in train_loader(CUDA):
        assert (images.device, labels.device) == (CUDA, CUDA)
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert fake_gpu.make_optimizer().defaults["fused"]
    found = train_epoch(fake_gpu, CUDA)
    assert [value.device for value in found] == 5 * [CUDA]


def test_evaluation_mixes_no_devices(
    fake_gpu: LitCustomResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bincount(values: Tensor, minlength: int) -> Tensor:
        return values.new_zeros(minlength)  # how long it is only a real GPU can say

    monkeypatch.setattr(torch, "bincount", bincount)
    found = evaluate_all(fake_gpu, CUDA)
    assert [value.device for value in found] == 6 * [CUDA]


def test_what_a_report_shows_comes_back_from_the_gpu(fake_gpu: LitCustomResNet) -> None:
    fake_gpu.eval().requires_grad_(False)
    images = IMAGES.permute(0, 3, 1, 2)
    assert predict_proba(fake_gpu, images).device == CPU
    with pytest.MonkeyPatch.context() as patch:  # as for `backward`
        patch.setattr(torch.autograd, "grad", lambda _, maps: (maps,))
        heat = layer_cam(fake_gpu, images, LABELS)
    assert (heat.device, heat.shape) == (CPU, (40, 32, 32))


def test_the_first_bad_step_is_found() -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf, 2.0, torch.nan])
    assert first_bad(good, 7) == -1
    assert first_bad(bad, 7) == 8


def test_a_gpu_tries_cudnns_algorithms_unless_it_must_repeat_itself() -> None:
    assert cudnn_benchmark(CUDA) is True
    assert cudnn_benchmark(CUDA, deterministic=True) is False
    assert cudnn_benchmark(CPU) is None
    assert cudnn_benchmark(MPS) is None


def test_training_range_test_and_evaluation_try_them(
    quick_train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn: Any = torch.backends.cudnn
    seen: list[bool] = []
    for place in ("training.trainer", "evaluate"):
        monkeypatch.setattr(f"{place}.cudnn_benchmark", lambda *_, **__: True)
    step, forward = LitCustomResNet.training_step, LitCustomResNet.test_step

    def note(original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            seen.append(cudnn.benchmark)
            cudnn.benchmark = False
            return original(*arguments)

        return call

    monkeypatch.setattr(cudnn, "benchmark", False)
    with monkeypatch.context() as patch:
        patch.setattr(train, "range_test", lambda *_: pytest.fail(str(_[-1])))
        with pytest.raises(pytest.fail.Exception, match="'benchmark': True"):
            quick_train(lr="auto", name="range_test")
    with monkeypatch.context() as patch:
        patch.setattr(LitCustomResNet, "training_step", note(step))
        quick_train(max_epochs=1)
    assert seen[0]
    with monkeypatch.context() as patch:
        patch.setattr(LitCustomResNet, "test_step", note(forward))
        hardware = choose_hardware("cpu", precision="32-true")
        loader = EvalLoader(IMAGES, LABELS, batch_size=40, device=CPU)
        evaluate_on(make_module(), loader, hardware)
    assert seen[-1]


# --- What a Mac's GPU cannot do. ---


class Mac(TorchDispatchMode):
    """Refuses float64, and channels_last in batch norm, where the gradients are wrong.

    https://github.com/pytorch/pytorch/issues/175189

    Args:
        device: Type of the device that plays the Mac's.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        for value in out if isinstance(out, Sequence) else (out,):
            is_double = isinstance(value, Tensor) and value.dtype == torch.float64
            if is_double and value.device.type == self.device:
                raise TypeError(f"{func} makes float64")
        if "batch_norm" in str(func):
            maps = [v for v in args if isinstance(v, Tensor) and v.ndim == 4]
            assert maps
            if not all(value.is_contiguous() for value in maps):
                raise TypeError(f"{func} gets channels_last")
        return out


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> LitCustomResNet:
    """A module that takes its device for a Mac's GPU."""
    monkeypatch.setattr(custom_resnet, "SMALL_MAP", 0)  # for CPUs only
    module = make_module(tta="flip")
    monkeypatch.setattr(LitCustomResNet, "device", MPS)
    return module.to(torch.float32)


def test_a_mac_trains_and_evaluates_without_what_it_cannot_do(
    on_a_mac: LitCustomResNet,
) -> None:
    batch, _ = next(iter(train_loader(CPU)))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    with Mac():
        found = [*train_epoch(on_a_mac, CPU), *evaluate_all(on_a_mac, CPU)]
    assert all(value.isfinite().all() for value in found)


def test_the_mac_of_the_tests_refuses_what_a_gpu_likes() -> None:
    module = make_module()
    with Mac(), pytest.raises(TypeError, match=r"batch_norm.* gets channels_last"):
        train_epoch(module, CPU)


def test_confusion_is_drawn_without_float64_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeTensorMode():
        counts = torch.empty(3, 3, dtype=torch.int64, device="mps")
    monkeypatch.setattr(Tensor, "cpu", lambda _: 2 * torch.eye(3, dtype=torch.int64))
    with Mac("mps"):
        figure = confusion_figure(counts, CLASSES)
    drawn: Any = figure.axes[0].images[0].get_array()
    assert drawn.tolist() == (100 * torch.eye(3)).tolist()


def test_a_mac_has_no_double_precision() -> None:
    with pytest.raises(InputError, match="--precision 64-true is not possible on a Ma"):
        resolve_precision("64-true", MPS)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_run_goes_on_on_another_device_with_the_same_steps(
    layout: torch.memory_format,
) -> None:
    """Fused Adam would pair the wrong numbers, and say nothing."""
    weights = []
    for saved_as in (None, layout):
        torch.manual_seed(0)
        module = make_module()
        optimizer = module.make_optimizer()
        for step in range(2):
            module.training_step((IMAGES.permute(0, 3, 1, 2), LABELS), 0).backward()
            optimizer.step()
            saved = optimizer.state_dict()
            for state in saved["state"].values() if saved_as and not step else ():
                for name in ("exp_avg", "exp_avg_sq"):
                    if state[name].ndim == 4:
                        state[name] = state[name].contiguous(memory_format=saved_as)
            optimizer = module.make_optimizer()
            optimizer.load_state_dict(saved)
        weights.append([weight.detach() for weight in module.net.parameters()])
    torch.testing.assert_close(*weights, rtol=0, atol=0)


# --- What a machine may have, and what is said of it. ---

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes PyTorch see GPUs, which nothing may compute on."""

    def make(
        count: int = 1,
        capability: tuple[int, int] = (9, 0),
        init: Exception | None = None,
        built: bool = True,
    ) -> None:
        def start() -> None:
            if init is not None:
                raise init

        mocked: dict[str, Any] = {
            "device_count": lambda: count,
            "init": start,
            "get_device_capability": lambda *_: capability,
            "get_device_name": lambda *_: "NVIDIA GPU",
            "get_arch_list": lambda: TURING,
            "is_current_stream_capturing": lambda: False,
            "get_rng_state_all": list,
            "set_rng_state_all": lambda _: None,
        }
        for name, value in mocked.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(shutil, "which", {"nvidia-smi": "nvidia-smi"}.get)

    return make


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# From c10/cuda/CUDAFunctions.cpp.
OLD_DRIVER = RuntimeError(
    "The NVIDIA driver on your system is too old (found version 11040). Please update "
    "your GPU driver by downloading and installing a new version from the URL: "
    "http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your "
    "version of the CUDA driver."
)
NO_DRIVER = RuntimeError(
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU "
    "and installed a driver from http://www.nvidia.com/Download/index.aspx"
)
PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no CUDA": (
        {"count": 0, "built": False},
        r"PyTorch [\w.+]+ is built without CUDA; install a build for CUDA",
    ),
    "old driver": (
        {"init": OLD_DRIVER},
        r"the NVIDIA driver is too old for CUDA [\w.]+, which this PyTorch uses; "
        "update it or install PyTorch for an older CUDA",
    ),
    "no driver": (
        {"count": 0, "init": NO_DRIVER},
        "there is no NVIDIA GPU, or no driver of it; install the driver",
    ),
    "no GPU": (
        {"count": 0, "init": RuntimeError("No CUDA GPUs are available")},
        "no NVIDIA GPU is visible; see what CUDA_VISIBLE_DEVICES says",
    ),
    "another error": (
        {
            "init": RuntimeError(
                "CUDA unknown error - this may be. Setting\nit to zero."
            )
        },
        "CUDA unknown error - this may be; put that right",
    ),
    "V100": (
        {"capability": (7, 0)},
        "NVIDIA GPU has compute capability 7.0, and this PyTorch code for 7.5, 8.0, "
        "8.6, 9.0, 10.0, 12.0 only; install PyTorch for an older CUDA, such as 12.6",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_gpu_that_cannot_be_used_is_named_and_auto_goes_on_without(
    problem: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    state, expected = PROBLEMS[problem]
    machine(**state)
    for accelerator in ("gpu", "cuda"):
        with pytest.raises(InputError) as raised:
            train.train(accelerator=accelerator, output_dir="runs")
        asked = f"--accelerator {accelerator} --devices 1 --strategy auto"
        full = f"{asked}: {expected}, or give --accelerator cpu"
        assert re.fullmatch(full, str(raised.value))
    for accelerator in ("auto", "cpu"):
        hardware = choose_hardware(accelerator, precision="32-true")
        assert (hardware.device, hardware.world_size) == (CPU, 1)
    [message] = warned(caplog)
    assert re.fullmatch(f"continuing without the GPU: {expected}", message)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 0), "install PyTorch for an older CUDA"),
        ((7, 5), None),
        ((8, 9), None),  # runs code for 8.6
        ((12, 1), None),
        ((13, 0), None),  # the driver compiles what is for any 12.0 or newer
    ],
)
def test_gpus_that_pytorch_has_code_for(
    capability: tuple[int, int], expected: str | None, machine: Machine
) -> None:
    machine(capability=capability)
    found = cuda_problem()
    assert found is None if expected is None else expected in str(found)


def test_a_gpu_that_is_newer_than_pytorch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(capability=(10, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a"])
    found = str(cuda_problem())
    assert found.endswith("for 8.0, 9.0 only; install a newer PyTorch")


def test_programs_that_take_a_device_say_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: CUDA)
    machine()
    assert settle_device("auto") == settle_device("cuda") == torch.device("cuda")
    machine(capability=(7, 0))
    with pytest.raises(
        InputError, match=r"--device cuda: .* 7.0.*, or give --device c"
    ):
        settle_device("cuda")
    assert settle_device("cpu") == CPU
    assert not warned(caplog)
    assert settle_device("auto") == CPU
    assert warned(caplog)[0].startswith("continuing without the GPU: NVIDIA GPU has")


def test_one_device_is_the_default_and_more_are_asked_for(machine: Machine) -> None:
    machine(count=4)
    for flags, processes in (
        ([], 1),
        (["--devices", "2"], 2),
        (["--devices", "1,3"], 2),
        (["--devices", "-1"], 4),
        (["--devices=auto"], 4),
    ):
        devices = cli.parse(Config, flags)["devices"]
        hardware = choose_hardware("auto", devices)
        assert hardware.world_size == processes
        assert hardware.device.type == "cuda"
        assert hardware.arguments["precision"] == "bf16-mixed"


def test_gpus_that_cannot_share_a_batch(machine: Machine) -> None:
    machine(count=3)
    with pytest.raises(InputError, match="--batch_size 256 cannot be shared by 3 proc"):
        train.train(devices="auto", output_dir="runs")
    assert not Path("runs").exists()


def test_whoever_asks_for_the_cpu_hears_nothing_of_the_gpu(
    machine: Machine,
    quick_train: Callable[..., Any],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine()
    # Newer optimizers ask for its stream.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "GPU available but not used")
        with pytest.raises(UserWarning):
            pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        quick_train(lr="auto", lr_steps=40, max_epochs=1, report=False)
        evaluate(str(LAST), data_dir=str(image_folder), accelerator="cpu")


# --- Several processes. ---


def test_several_processes_on_gpus_of_windows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategy = SimpleNamespace(launcher=SimpleNamespace(), root_device=CUDA)
    trainer: Any = SimpleNamespace(strategy=strategy, num_devices=2, num_nodes=1)
    _check_launcher(trainer, "--devices 2")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match=r"--devices 2: several .* need NCCL"):
        _check_launcher(trainer, "--devices 2")
    strategy.launcher = None
    _check_launcher(trainer, "--devices 1")


@pytest.mark.parametrize(
    "strategy",
    ["ddp_fork", "ddp_spawn", "ddp_notebook", "ddp_spawn_find_unused_parameters_true"],
)
@pytest.mark.parametrize("devices", [1, 2])
def test_no_process_is_forked_or_spawned(strategy: str, devices: int) -> None:
    with pytest.raises(
        InputError, match=f"--strategy {strategy}: several processes ar"
    ):
        train.train(
            accelerator="cpu", devices=devices, strategy=strategy, output_dir="runs"
        )
    assert not Path("runs").exists()


def test_interactive_python_refuses_several_processes() -> None:
    lines = [
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})",
        "from train import train",
        "train(accelerator='cpu', devices=2)",
        "train(accelerator='cpu', devices=2, strategy='ddp')",
    ]
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input="\n".join([*lines, ""]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = re.findall(r"InputError: (.*)", done.stderr)
    asked = "--accelerator cpu --devices 2 --strategy"
    assert said == [
        f"{asked} auto: {NEEDS_SCRIPT}",
        f"{asked} ddp: {NEEDS_SCRIPT}",
    ]
    assert [path for path in Path.cwd().iterdir() if path.name != "home"] == []


def test_a_command_that_cannot_be_repeated_starts_no_other_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_hardware("cpu", 2, 1, "ddp", "32-true").world_size == 2
    monkeypatch.setattr(sys, "argv", ["-c"])  # as with python -c
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    with pytest.raises(InputError, match="started from a script"):
        choose_hardware("cpu", 2, 1, "ddp", "32-true")
    assert choose_hardware("cpu", strategy="ddp", precision="32-true").world_size == 1


def test_devices_are_as_many_as_torchrun_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "RANK": "0"}
    started |= {"LOCAL_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for strategy in ("auto", "ddp"):
        with pytest.raises(
            InputError, match="torchrun has started 4 processes, not 1;"
        ):
            choose_hardware("cpu", strategy=strategy, precision="32-true")
    assert choose_hardware("cpu", 2, 2, "ddp", "32-true").world_size == 4


def test_tasks_of_slurm_do_not_train_each_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(
        InputError, match=r"srun has started 2 processes, not 1; .*node"
    ):
        choose_hardware("cpu", precision="32-true")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert choose_hardware("cpu", precision="32-true").world_size == 1


def test_an_allocation_of_slurm_without_srun_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    with pytest.raises(InputError, match="; start it with srun, or with env -u SLURM_"):
        choose_hardware("cpu", precision="32-true")


def test_arguments_of_lightning_in_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_TRAINER_LIMIT_TEST_BATCHES", "1")
    with pytest.raises(InputError, match=r"^PL_TRAINER_LIMIT_TEST_BATCHES in the env"):
        choose_hardware("cpu", precision="32-true")


# --- Benchmarks and pages. ---


def test_a_profile_counts_every_kernel_once() -> None:
    def event(key: str, device: str, time: float, **others: bool) -> Any:
        kind = SimpleNamespace(name=device)
        known = {"self_device_time_total": time, "self_cpu_time_total": 9e3, "count": 4}
        known |= {"is_user_annotation": False} | others
        return SimpleNamespace(key=key, device_type=kind, **known)

    events = [
        event("aten::conv", "CPU", 6e3),
        event("conv_kernel", "CUDA", 6e3),
        event("aten::relu", "CPU", 2e3),
        event("relu_kernel", "CUDA", 2e3),
        event("Optimizer.step", "CUDA", 2e3, is_user_annotation=True),
    ]
    profiler: Any = SimpleNamespace(
        profile=SimpleNamespace(key_averages=lambda: events),
        setting=SimpleNamespace(device="cuda"),
        steps=2,
    )
    assert operations(profiler).to_numpy().tolist() == [
        ["`conv_kernel`", "2", "3.00", "75.0 %"],
        ["`relu_kernel`", "2", "1.00", "25.0 %"],
    ]
    profiler.setting.device = "cpu"
    on_host = operations(profiler).to_numpy().tolist()
    assert ["`aten::conv`", "2", "4.50", "20.0 %"] in on_host


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("cpu", 1, {1, 2}), ("cuda", 1, {1}), ("cuda", 2, {1, 2})],
)
def test_scale_asks_for_the_gpus_that_are_there(
    device: Any,
    gpus: int,
    expected: set[int],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(count=gpus)
    asked: list[int] = []

    class MeasuredError(Exception):
        pass

    def train_once(flags: dict[str, Any]) -> dict[str, Any]:
        asked.append(flags["processes"])
        if len(asked) == 10:
            raise MeasuredError
        return flags

    monkeypatch.setattr(scale, "train_once", train_once)
    with pytest.raises(MeasuredError):
        scale.scale("rows.csv", device, repeats=2)
    assert set(asked) == expected


def test_more_gpus_than_there_are_are_refused_before_the_work(machine: Machine) -> None:
    machine(count=1)
    with pytest.raises(InputError, match="--accelerator cuda --devices 2"):
        scale.scale("rows.csv", "cuda", processes=(1, 2))
    assert not Path("rows.csv").exists()


def test_every_page_loads_checkpoints_on_any_machine() -> None:
    pages = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]
    text = "".join(
        page.read_text("utf-8") for page in [*pages, *PROJECT.glob("notebooks/*")]
    )
    calls = re.findall(r"load_from_checkpoint\(([^)]*)\)", text)
    assert len(calls) == 2
    assert all('map_location="cpu"' in call for call in calls)


def test_what_is_asked_stays_where_the_cpu_takes_over(machine: Machine) -> None:
    machine(capability=(7, 0))
    hardware = choose_hardware("auto", precision="64-true")
    assert hardware.device.type == "cpu"
    assert hardware.arguments["precision"] == "64-true"


def test_the_gpu_that_trains_is_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(count=2)

    def capability(device: Any = 0) -> tuple[int, int]:
        index = device.index if isinstance(device, torch.device) else device
        return (7, 0) if index == 1 else (9, 0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    assert choose_hardware("gpu", [0]).device.index == 0
    with pytest.raises(InputError, match=r"capability 7\.0"):
        choose_hardware("gpu", [1])
