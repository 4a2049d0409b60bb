"""Studies that were made once: each runs again, and its record is in results/."""
