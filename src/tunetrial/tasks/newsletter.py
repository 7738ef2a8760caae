"""`newsletter`: how relevant is an item to one stated reader, 1 to 10? Regression on the mean of two readers."""

from pathlib import Path

from tunetrial.tasks.task import Task

NEWSLETTER = Task(
    name="newsletter",
    kind="regress",
    folder=Path(__file__).parent.parent / "embedded" / "newsletter",
    splits=("train", "train_extra", "validation", "test"),
    input="{{ title }}: {{ snippet }} {{ sender }}",
    target="score",
    cluster="sender",
    metric="mae",
    margin=0.25,
    margin_reason=(
        "The label itself is a mean of two readers in half points, so a quarter point is half of its finest step "
        "and about the mean gap between the two readers: a smaller difference in mean absolute error is below what "
        "the labels can tell."
    ),
)
