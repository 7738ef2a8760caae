"""Statistics of the verdict: arrays and records only, no files, no torch."""
