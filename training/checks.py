"""Checks of a configuration against the machine and the images."""

from common.errors import InputError
from config import Config


def check_processes(config: Config, world_size: int, device_type: str) -> None:
    """Check what depends on the processes, before any image is read.

    Args:
        config: All flags.
        world_size: Number of processes.
        device_type: What each of them trains on, such as "cuda".

    Raises:
        InputError: They cannot share a batch evenly, or batch statistics as they are
            asked to, or compile so.
    """
    batch_size = config.batch_size
    if batch_size % world_size:
        raise InputError(
            f"--batch_size {batch_size} cannot be shared by {world_size} processes; "
            "give a multiple of their number"
        )
    share = batch_size // world_size
    if config.norm_batch and share % config.norm_batch:
        raise InputError(
            f"--norm_batch {config.norm_batch} does not divide the {share} images of a "
            "batch that a device has; give a number that does"
        )
    if config.sync_batchnorm and device_type != "cuda":  # PyTorch has it for no other
        raise InputError(
            f"--sync_batchnorm needs NVIDIA GPUs, the device is a {device_type}; leave "
            "it out"
        )
    if config.compile == "reduce-overhead" and device_type != "cuda":
        raise InputError(
            f"--compile reduce-overhead needs an NVIDIA GPU, the device is a "
            f"{device_type}; give --compile default"
        )
    if config.compile and config.cuda_graph:
        raise InputError(
            "--compile and --cuda_graph contradict each other; give one of them, or "
            "--compile reduce-overhead, which has CUDA graphs of its own"
        )


def check_images(config: Config, images: dict[str, int], world_size: int) -> None:
    """Check what depends on the number of images, before the training begins.

    Args:
        config: All flags.
        images: How many there are in "train", "val" and "test".
        world_size: Number of processes.

    Raises:
        InputError: A process would have nothing to evaluate, or a share of the batches
            is less than one.
    """
    for split, count in images.items():
        if 0 < count < world_size:
            raise InputError(
                f"--devices: {count} {split} images cannot be shared by {world_size} "
                "processes; give fewer processes or more images"
            )
        full, rest = divmod(count, config.batch_size)
        batches = full if split == "train" or not rest else full + 1
        share = getattr(config, f"limit_{split}_batches")
        if isinstance(share, float) and batches and 0 < share * batches < 1:
            raise InputError(
                f"--limit_{split}_batches {share} of {batches} batches is less than "
                f"one; give at least {1 / batches:.3g}, or a whole number"
            )
