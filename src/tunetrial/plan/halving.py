"""Rungs: where the runs of a search stop, and which of them goes on to its end.

The search of a rate is of runs that are paused a third of the way through their own schedule: warm-up and decay are
those of the whole run, and a run that goes on does so from its checkpoint, so nothing of it is trained twice and none
is ever of a shortened schedule. Of all rates that were tried, the one that was found goes on alone: one seed to its
end, and a second where that did not hold what it had at the rung. Where neither held, the rate and all above it have
fallen (`analysis.rates.standing`), and the search goes on without them. A run that diverges at a rung ends there.

The rate so found is of unfinished runs. Where the best rate moves as training goes on, that is a loss that no seed of
the search can show; what is expected of it is allowed for by interval and tests.

After successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) with one rung. Of its argmax nothing is left: one
seed's best rate makes false verdicts, so all that the exhaustive search asks for is asked for at the rung.
"""

from collections.abc import Sequence

from tunetrial.analysis.rates import Rate, held_to_end, least_completed, nearest_point
from tunetrial.core.evidence import TrialRecord

SHARE = 1 / 3


def goes_on(rate: Rate, ends: Sequence[TrialRecord], measurement: str) -> tuple[float, int] | None:
    """Rate and seed of the run that goes on to its end next; None where one has held, or enough have not.

    Args:
        rate: As the rungs and the runs completed so far give it.
        ends: The completed runs of the arm on the task.
    """
    place = nearest_point(rate)
    point, held = rate.curve[place], held_to_end(rate.curve, place, ends, measurement)
    if any(held.values()) or len(held) >= least_completed(point):
        return None
    return point.learning_rate, min(set(point.scores) - set(held))
