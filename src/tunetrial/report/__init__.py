"""Evidence and Decision into one self-contained HTML page, Markdown, JSON and a few lines to paste.

It draws and computes no statistics: every effect, interval and state is the decision's, every cost a record's.
Plots average curves, for drawing alone. Open verdicts are never turned into a winner.
"""

from tunetrial.report.page import html
from tunetrial.report.text import markdown, summary, to_json

__all__ = ["html", "markdown", "summary", "to_json"]
