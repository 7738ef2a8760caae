"""What to run next, and what it will take: pure functions of a lock and of records."""

from tunetrial.analysis.rates import Point, Rate
from tunetrial.plan.budget import allowed_s, reduced
from tunetrial.plan.estimate import Sizes
from tunetrial.plan.preview import Plan, fit_budget, preview, trial_seconds
from tunetrial.plan.waves import Wave, chosen_rate, next_wave

__all__ = [
    "Plan",
    "Point",
    "Rate",
    "Sizes",
    "Wave",
    "allowed_s",
    "chosen_rate",
    "fit_budget",
    "next_wave",
    "preview",
    "reduced",
    "trial_seconds",
]
