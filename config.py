"""The configuration of a training: every flag of train.py, written once.

Command line, configuration files, checks, checkpoints and records all follow from the
fields of `Config`. A new flag is a new field.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    get_args,
    get_type_hints,
)

import numpy as np

from common.errors import InputError
from common.files import expanded
from common.wording import describe, fits, parts
from networks import NETWORKS

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal[
    "auto", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"
]
Finder = Literal["lightning", "torch-lr-finder"]
Source = Literal["cifar10", "folder", "synthetic"]
Asked = Literal["auto", "cifar10", "folder", "synthetic"]
PaddingMode = Literal["constant", "reflect"]
Flip = Literal["none", "random", "alternate"]
Tta = Literal["none", "flip", "views"]  # test-time augmentation
Compile = bool | Literal["default", "reduce-overhead"]  # modes of torch.compile
Start = bool | Literal["auto"]  # of a new network
Logger = Literal["tensorboard", "wandb", "mlflow", "csv", "none"]

IMAGE_SIZE = 32  # pixels a side
DEFAULT_DIR = "data"  # where CIFAR-10 is downloaded to where nothing is said
MOST_DEVICES = 1024  # of a machine; Lightning fills the memory with more on a CPU
MIN_LR_STEPS = 40  # of a range test: fewer are too far apart for the pick
Value = TypeVar("Value")


class Valid(NamedTuple):
    """What a value may be, where its type says too little.

    Attributes:
        is_right: Whether a value is right.
        words: What a right value is.
    """

    is_right: Callable[[Any], bool]
    words: str


class Marks(NamedTuple):
    """What a field is annotated with.

    Attributes:
        valid: What its value may be; None for all of its type.
        shapes: Whether it decides how a network is trained, so that a run can only go
            on with the value that it began with.
        reason: Why, where that is not plain.
        places: Whether it only says where a run goes, and how it treats what is there.
    """

    valid: Valid | None = None
    shapes: bool = False
    reason: str = ""
    places: bool = False


def option(
    default: Value,
    valid: Valid | None = None,
    *,
    shapes: bool = False,
    reason: str = "",
    places: bool = False,
    section: str = "",
) -> Value:
    """A field of `Config`: its default and its `Marks`.

    `section` is the title in the help above it and those after it.
    """
    metadata: dict[str, Any] = {"marks": Marks(valid, shapes, reason, places)}
    metadata |= {"section": section} if section else {}
    metadata |= {"words": valid.words} if valid else {}
    made: Value = field(default=default, metadata=metadata)
    return made


def whole(low: int, high: float = math.inf) -> Valid:
    """A whole number in a range, with both ends."""
    ends = f"at least {low}" if high == math.inf else f"from {low} to {high:.0f}"
    return Valid(lambda value: low <= value <= high, f"a whole number, {ends}")


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def is_batches(value: float) -> bool:
    """Whether it is a number of batches (int) or a share of them (float)."""
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


def are_devices(value: int | str) -> bool:
    """Whether it is a number of devices, or may be a list of them."""
    try:
        return int(value) == -1 or 1 <= int(value) <= MOST_DEVICES
    except (TypeError, ValueError):  # from Python, it may be a list by itself
        return value != "" and not str(value).startswith("-")


BATCHES = "a whole number of batches, or a share above 0 and up to 1.0"
SOME_BATCHES = Valid(is_batches, BATCHES)
ANY_BATCHES = Valid(
    lambda value: value == 0 or is_batches(value), f"{BATCHES}, or 0 for none"
)
SHARE = Valid(lambda value: 0 <= value <= 1, "from 0 to 1")
ABOVE_ZERO = Valid(
    lambda value: math.isfinite(value) and value > 0, "a finite number above 0"
)
BELOW_ONE = Valid(lambda value: 0 <= value < 1, "from 0 to below 1")
NOT_NEGATIVE = Valid(
    lambda value: math.isfinite(value) and value >= 0, "a finite number, at least 0"
)
DEVICES = Valid(
    are_devices, f"from 1 to {MOST_DEVICES}, a list such as 0,1, or -1 or auto for all"
)
RATE = Valid(
    lambda value: value == "auto" or (math.isfinite(value) and value > 0),
    "a finite number above 0, or auto",
)
COUNT = Valid(
    lambda value: value == "auto" or value >= 0, "a whole number, at least 0, or auto"
)
NETWORK = Valid(
    lambda value: value in NETWORKS, f"a name in networks.py ({', '.join(NETWORKS)})"
)
LOGGERS = Valid(
    lambda value: {*_listed(value)} <= {*get_args(Logger)},
    f"{', '.join(get_args(Logger))}, or a list such as [tensorboard, csv]",
)
SWITCH_OR_NUMBER = Valid(lambda value: value >= 0, "true, false or a number of batches")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the custom ResNet on CIFAR-10 and leave a run folder.

    Raises:
        InputError: A value is out of its range, or two contradict each other.
    """

    accelerator: Accelerator = option("auto", section="hardware")
    """What trains; auto takes a GPU where there is one."""
    devices: int | str | list[int] = option(1, DEVICES)
    """Number of devices, a list of GPUs such as 0,1, or auto for all."""
    num_nodes: int = option(1, whole(1))
    """Number of machines."""
    strategy: str = "auto"
    """Lightning's strategy for several devices, such as ddp."""
    precision: Precision = "auto"
    """Number format; auto takes bf16-mixed where the device is good at it."""
    max_epochs: int = option(
        24,
        whole(1),
        section="training",
        shapes=True,
        reason="one cycle has one length, so it cannot be made longer, but --init_from "
        "starts another from its weights",
    )
    """Length of the training in epochs."""
    batch_size: int = option(256, whole(1), shapes=True)
    """Images in a batch, shared out among the devices."""
    lr: float | Literal["auto"] = option("auto", RATE, section="learning rate")
    """Maximum learning rate of the one cycle; auto finds it by a range test."""
    lr_steps: int = option(100, whole(MIN_LR_STEPS))
    """Length of the range test in steps."""
    lr_finder: Finder = "lightning"
    """Package that runs the range test."""
    weight_decay: float = option(0.2, NOT_NEGATIVE, shapes=True, section="training")
    """Decoupled weight decay, per step and unit of learning rate."""
    label_smoothing: float = option(0.1, BELOW_ONE, shapes=True)
    """Share of each target that is spread over all classes."""
    ema_decay: float = option(0.0, BELOW_ONE, shapes=True)
    """Decay of an average of the weights (EMA), at most; 0 for no average."""
    sam_radius: float = option(0.0, NOT_NEGATIVE, shapes=True)
    """SAM: take gradients where the loss is worst within this distance; 0 for not."""
    sam_share: float = option(0.25, SHARE, shapes=True)
    """Last share of the training with SAM, whose steps take twice as long."""
    norm_batch: int = option(0, whole(0), shapes=True)
    """Images that share batch statistics in training, on each device; 0 for all."""
    net: str = option("custom_resnet", NETWORK, shapes=True)
    """Network to train, a name in networks.py."""
    base_width: int = option(64, whole(1, 512), shapes=True)  # 512: 420 million
    """Channels of the first convolution; 64 gives 6,573,120 parameters."""
    whiten: Start = option("auto", shapes=True)
    """Start a first convolution with whitening filters; auto if the network can."""
    dirac: Start = option("auto", shapes=True)
    """Start other convolutions as identities (Dirac); auto if the network can."""
    logit_scale: float = option(1.0, ABOVE_ZERO, shapes=True)
    """Factor on the logits; below 1, a new network is less sure of itself."""
    seed: int = option(0, whole(0, 2**32 - 1), shapes=True)
    """Seed of weights, split, order and augmentation."""
    data: Asked = option("auto", section="images")
    """Images: CIFAR-10, class folders or drawn shapes; auto looks into data_dir."""
    data_dir: str | Path = DEFAULT_DIR
    """Folder of the images, CIFAR-10's or train/CLASS/ and test/CLASS/."""
    download_url: str | None = None
    """Where to look for CIFAR-10's archive before the known mirrors."""
    val_size: int | Literal["auto"] = option("auto", COUNT, shapes=True)
    """Training images held out; auto takes val/, or else a tenth, at most 5000."""
    # A border that reflects the image reaches no further than the image.
    crop_padding: int = option(
        4, whole(0, IMAGE_SIZE - 1), shapes=True, section="augmentation"
    )
    """Border for the random crop in pixels; 0 for no crop."""
    padding_mode: PaddingMode = option("reflect", shapes=True)
    """What the border shows: black, or the image reflected."""
    flip: Flip = option("alternate", shapes=True)
    """Mirror images at random, or (alternate) each in every other epoch."""
    cutout: int = option(8, whole(0, IMAGE_SIZE), shapes=True)
    """Side of the cutout square in pixels; 0 for none."""
    photo_like: float = option(0.0, SHARE, shapes=True)
    """Share of the images that are changed like photos: zoom, light, noise, JPEG."""
    tta: Tta = option("none", section="results")
    """Test also on each image and its mirror image, or on six views of it."""
    output_dir: str | Path = option("runs", places=True, section="run folder")
    """Folder of all runs."""
    name: str | None = option(None, places=True)
    """Name of this run's folder; null for a name of time and seed."""
    overwrite: bool = option(False, places=True)
    """Replace the run that is in the folder."""
    ckpt_path: str | Path | None = option(None, places=True, section="resume")
    """Checkpoint to resume from, or last for the run's newest."""
    init_from: str | Path | None = option(
        None, shapes=True, reason="weights are taken once, at its start"
    )
    """Trained weights to start from: a file of export.py, or a checkpoint."""
    ckpt_every_n_steps: int = option(0, whole(0))
    """Save a checkpoint also every so many steps; 0 for never."""
    report: bool = option(True, section="results")
    """Write report.html at the end."""
    logger: Logger | list[Logger] = option("tensorboard", LOGGERS)
    """Where curves and pictures go, besides the run folder."""
    show_layers: bool = option(False, places=True)
    """Show the table of layers at the start."""
    fast_dev_run: bool | int = option(
        False, SWITCH_OR_NUMBER, places=True, section="quick tries"
    )
    """Try everything on one batch, or this number of them, and write nothing."""
    limit_train_batches: int | float = option(1.0, SOME_BATCHES, shapes=True)
    """Batches an epoch: a number, or a share such as 0.1."""
    limit_val_batches: int | float = option(1.0, ANY_BATCHES)
    """Validation batches, likewise; 0 for none."""
    limit_test_batches: int | float = option(1.0, ANY_BATCHES)
    """Test batches, likewise; 0 for no test and no report."""
    deterministic: bool = option(False, section="hardware")
    """Use only algorithms that repeat bit for bit; slower on a GPU."""
    compile: Compile = False
    """Compile a training step up to its loss with torch.compile; for long runs."""
    cuda_graph: bool = False
    """Replay forward and backward pass as CUDA graphs; for small batches."""
    sync_batchnorm: bool = option(False, shapes=True)
    """Share batch statistics among the GPUs; slower."""

    def __post_init__(self) -> None:
        """Make values plain, as a file can hold them, and check what no type can."""
        for name, marks in MARKS.items():
            value = getattr(self, name)
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, tuple):
                value = list(value)
            if name in PATHS and isinstance(value, str | Path):
                value = str(expanded(value))
            if type(value) is int and {float, int} & {*parts(TYPES[name])} == {float}:
                value = float(value)
            object.__setattr__(self, name, value)  # it is frozen
            valid = marks.valid or Valid(lambda _: True, describe(TYPES[name]))
            if not fits(value, TYPES[name]) or not valid.is_right(value):
                raise InputError(f"--{name} must be {valid.words}, got {value!r}")
        if self.overwrite and self.ckpt_path is not None:
            raise InputError(
                "--overwrite and --ckpt_path contradict each other; give one of them"
            )
        if self.norm_batch and self.sync_batchnorm:
            raise InputError(
                "--norm_batch and --sync_batchnorm contradict each other: one takes "
                "fewer images together, the other more; give one of them"
            )
        for name in ("ema_decay", "sam_radius"):
            value = getattr(self, name)
            if value and self.precision in ("bf16-true", "16-true"):
                raise InputError(
                    f"--{name} {value} needs more digits than --precision "
                    f"{self.precision} has: its steps would be rounded away; give "
                    f"{self.precision.replace('true', 'mixed')}"
                )

    def loggers(self) -> list[str]:
        """The loggers, each once."""
        return [name for name in dict.fromkeys(_listed(self.logger)) if name != "none"]

    def record(self) -> dict[str, Any]:
        """What config.yaml holds: all fields but those that only place the run."""
        values = asdict(self)
        return {name: values[name] for name, marks in MARKS.items() if not marks.places}


MARKS: dict[str, Marks] = {
    one.name: one.metadata.get("marks", Marks()) for one in fields(Config)
}
LIMITS = [name for name in MARKS if name.startswith("limit_")]
SHAPING = [name for name, marks in MARKS.items() if marks.shapes]
TYPES = get_type_hints(Config)
PATHS = {name for name, kind in TYPES.items() if Path in get_args(kind)}


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def configured(
    make: Callable[Parameters, Config],
) -> Callable[[Callable[[Config], Result]], Callable[Parameters, Result]]:
    """Let a function of a `Config` be called with the fields as keywords."""

    def decorate(function: Callable[[Config], Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            return function(make(*args, **kwargs))

        # What `help` shows; `wraps` would say that it takes a Config.
        given, gives = inspect.signature(make), inspect.signature(function)
        call.__dict__["__signature__"] = given.replace(
            return_annotation=gives.return_annotation
        )
        return call

    return decorate
