"""What programs run on."""

import common  # noqa: F401  # before Lightning
