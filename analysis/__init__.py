"""Inference, evaluation, explanation, figures and pages of a trained network."""

import common  # noqa: F401  # before Lightning
