"""`tickets_json`: write the routing of a message as a JSON object. Generation.

A completion is scored on three things: is it JSON, does it fit the schema, and what share of the three fields
is right. Nothing is repaired: text around the object makes it invalid.
"""

import json
from typing import Literal

from pydantic import ConfigDict, ValidationError

from tunetrial.core.records import Record
from tunetrial.tasks.task import Task
from tunetrial.tasks.tickets import QUEUES, TICKETS


class Routing(Record):
    """The object asked for; extra, missing or unlisted values break the schema."""

    model_config = ConfigDict(strict=True)

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
    cluster="sender",
    metric="field_accuracy",
    margin=0.05,
    margin_reason="One field in twenty is about one ticket in seven with something to correct by hand.",
)


def score(completion: str, row: dict) -> dict[str, float]:
    """Score one completion against a row of the task; each value is in [0, 1], higher is better.

    `valid`: it is one JSON value and nothing else. `schema_valid`: it is an object of the schema.
    `field_accuracy`: right fields out of three, whatever else is wrong, and 0 without a JSON object.
    """
    try:
        value = json.loads(completion, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return {"valid": 0.0, "schema_valid": 0.0, "field_accuracy": 0.0}
    try:
        Routing.model_validate(value)
        fits = 1.0
    except ValidationError:
        fits = 0.0
    fields = value if isinstance(value, dict) else {}
    right = sum(fields.get(name) == row[name] for name in Routing.model_fields)
    return {"valid": 1.0, "schema_valid": fits, "field_accuracy": right / len(Routing.model_fields)}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
