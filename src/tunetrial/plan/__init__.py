"""What to run next, and what it will take: pure functions of a lock and of records."""

from tunetrial.plan.preview import Plan, preview
from tunetrial.plan.tuning import Point, Rate
from tunetrial.plan.waves import Wave, chosen_rate, next_wave

__all__ = ["Plan", "Point", "Rate", "Wave", "chosen_rate", "next_wave", "preview"]
