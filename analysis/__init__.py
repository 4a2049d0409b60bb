"""What a trained network says of images, and pages and pictures of it."""

import common  # noqa: F401  # before Lightning
