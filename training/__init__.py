"""What happens around the training: rate, callbacks, checkpoints, run folder."""

import common  # noqa: F401  # before Lightning
