"""What to run next, and what it will take: pure functions of a lock and of records."""

from tunetrial.analysis.rates import Point, Rate
from tunetrial.plan.budget import allowed_s, fit_budget, reduced
from tunetrial.plan.estimate import Sizes
from tunetrial.plan.machine import Machine, check_disk
from tunetrial.plan.noise import Pilot, Prior, pilot, prior_of
from tunetrial.plan.packs import most_members, packs
from tunetrial.plan.peaks import beside
from tunetrial.plan.power import Power, power_of
from tunetrial.plan.preview import Plan, preview
from tunetrial.plan.scored import scored
from tunetrial.plan.timing import Gauge, Known, Timed, timed
from tunetrial.plan.waves import Wave, chosen_rate, first_packs, next_wave, resumable

__all__ = [
    "Gauge",
    "Known",
    "Machine",
    "Pilot",
    "Plan",
    "Point",
    "Power",
    "Prior",
    "Rate",
    "Sizes",
    "Timed",
    "Wave",
    "allowed_s",
    "beside",
    "check_disk",
    "chosen_rate",
    "first_packs",
    "fit_budget",
    "most_members",
    "next_wave",
    "packs",
    "pilot",
    "power_of",
    "preview",
    "prior_of",
    "reduced",
    "resumable",
    "scored",
    "timed",
]
