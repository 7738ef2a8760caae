"""In which order a study runs its arms: all of them, or step by step while a further step is worth its price."""

from pydantic import Field

from tunetrial.core.records import Record


class Escalation(Record):
    """Arms in the order in which they are run, the first of them the reference; each waits for those before it.

    `margin_usd` is what a gain of one margin on the task that decides is worth to the user.
    """

    steps: tuple[str, ...] = Field(min_length=2)
    margin_usd: float = Field(gt=0)
