"""Statistics of the verdict: arrays and records only, no files, no torch."""

from tunetrial.analysis.compare import compare, extend
from tunetrial.analysis.decide import decide
from tunetrial.analysis.fairness import ledger

__all__ = ["compare", "decide", "extend", "ledger"]
