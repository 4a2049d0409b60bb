"""From images on a disk to augmented batches on the device."""

import common  # noqa: F401  # before Lightning
