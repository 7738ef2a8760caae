"""Trials: a study is locked and carried out, wave by wave, by worker processes that may die."""

from tunetrial.trial.conclusion import conclude, post_hoc
from tunetrial.trial.execution import Interrupted, Terms, Watch, carry_out
from tunetrial.trial.openings import count_openings
from tunetrial.trial.pinning import Pinned, pin
from tunetrial.trial.progress import Progress, Running
from tunetrial.trial.waves import Outcome, preview, run

__all__ = [
    "Interrupted",
    "Outcome",
    "Pinned",
    "Progress",
    "Running",
    "Terms",
    "Watch",
    "carry_out",
    "conclude",
    "count_openings",
    "pin",
    "post_hoc",
    "preview",
    "run",
]
