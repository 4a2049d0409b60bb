"""Around the training: LR range test, callbacks, checkpoints, run folder."""

import common  # noqa: F401  # before Lightning
