"""`tickets_json`: write the routing of a message as a JSON object. Generation.

A completion is scored on three things: is it JSON, does it fit the schema, and what share of the three fields
is right. Nothing is repaired: text around the object makes it invalid.
"""

from typing import Literal

from tunetrial.core.records import Record, canonical
from tunetrial.tasks.task import Task
from tunetrial.tasks.tickets import QUEUES, TICKETS


class Routing(Record):
    """The object asked for; extra, missing or unlisted values break the schema."""

    queue: Literal[QUEUES]
    urgency: Literal["low", "normal", "high"]
    product: Literal["bicycle", "stove", "lamp", "clock", "none"]


TICKETS_JSON = Task(
    name="tickets_json",
    kind="generate",
    folder=TICKETS.folder,
    splits=TICKETS.splits,
    input="{{ message }}\n",
    target="json",
    json_schema=canonical(Routing.model_json_schema()),
    max_new_tokens=64,
    cluster="sender",
    metric="field_accuracy",
    margin=0.05,
    margin_reason="One field in twenty is about one ticket in seven with something to correct by hand.",
)
