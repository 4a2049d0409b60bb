"""Measurements, each a script of its own; `results/` holds what they found."""
