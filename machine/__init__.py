"""The machine: hardware, memory, provenance of results."""

import common  # noqa: F401  # before Lightning
