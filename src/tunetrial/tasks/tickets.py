"""`tickets`: which of six queues does a customer's message belong to? Classification."""

from pathlib import Path

from tunetrial.tasks.task import Task

QUEUES = ("billing", "delivery", "repair", "returns", "account", "advice")

TICKETS = Task(
    name="tickets",
    kind="classify",
    folder=Path(__file__).parent.parent / "embedded" / "tickets",
    splits=("train", "validation", "test"),
    input="{{ message }}",
    target="queue",
    cluster="sender",
    labels=QUEUES,
    metric="macro_f1",
    margin=0.05,
    margin_reason=(
        "One message in twenty sent to the wrong desk is what a support lead would notice in a day's work; with 420 "
        "test messages of which six in ten are right the standard error of a share is 2.4 points."
    ),
)
