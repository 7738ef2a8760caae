"""The tasks of GLUE by id, `glue/sst2` and its like (Wang et al. 2018, arXiv:1804.07461): a table.

Their test labels are hidden, so the published validation rows are the sealed test split, and validation rows are drawn
from train: numbers compare with the published validation numbers, not with the leaderboard's.
"""

from typing import Literal

from tunetrial.core.records import Record
from tunetrial.core.study import TaskSpec

REPOSITORY = "hub:nyu-mll/glue"


class GlueTask(Record):
    """One task. `margin` is in units of `metric`, GLUE's own where it has one alone; `margin_reason` says why."""

    name: str
    fields: tuple[str, ...]
    margin: float
    margin_reason: str
    metric: str = "accuracy"
    kind: Literal["classify", "regress"] = "classify"
    test: str = "validation"

    @property
    def spec(self) -> TaskSpec:
        """The task as a study states it."""
        data = f"{REPOSITORY}:{self.name}"
        alone = "{{ " + self.fields[0] + " }}"
        titled = "\n".join(f"{field.capitalize()}: {{{{ {field} }}}}" for field in self.fields)
        return TaskSpec(
            name=f"glue/{self.name}",
            kind=self.kind,
            metric=self.metric,
            margin=self.margin,
            data=f"{data}#train",
            test=f"{data}#{self.test}",
            input=titled if len(self.fields) > 1 else alone,
            target="label",
        )


_TASKS = (
    GlueTask(
        name="cola",
        fields=("sentence",),
        metric="mcc",
        margin=0.03,
        margin_reason="1,043 test rows: at an MCC of 0.6 its standard error is about 2.5 points, and published "
        "seeds of one model differ by as much.",
    ),
    GlueTask(
        name="sst2",
        fields=("sentence",),
        margin=0.01,
        margin_reason="872 test rows, nine of which are one point; at 94 % right the standard error is 0.8 points.",
    ),
    GlueTask(
        name="mrpc",
        fields=("sentence1", "sentence2"),
        margin=0.02,
        margin_reason="408 test rows, eight of which are two points; at 88 % right the standard error is 1.6 points.",
    ),
    GlueTask(
        name="stsb",
        kind="regress",
        metric="pearson",
        fields=("sentence1", "sentence2"),
        margin=0.01,
        margin_reason="1,500 test rows: at r = 0.9 the standard error, (1 - r^2) / sqrt(n), is 0.5 points.",
    ),
    GlueTask(
        name="qqp",
        fields=("question1", "question2"),
        margin=0.01,
        margin_reason="One question in a hundred judged otherwise; with 40,430 test rows less could be told, and "
        "would not change what one deploys.",
    ),
    GlueTask(
        name="mnli",
        fields=("premise", "hypothesis"),
        test="validation_matched",
        margin=0.01,
        margin_reason="One pair in a hundred judged otherwise; with 9,815 matched test rows the standard error at "
        "85 % right is 0.4 points.",
    ),
    GlueTask(
        name="qnli",
        fields=("question", "sentence"),
        margin=0.01,
        margin_reason="One pair in a hundred judged otherwise; with 5,463 test rows the standard error at 91 % right "
        "is 0.4 points.",
    ),
    GlueTask(
        name="rte",
        fields=("sentence1", "sentence2"),
        margin=0.03,
        margin_reason="277 test rows, eight of which are three points; at 70 % right the standard error is 2.8 points.",
    ),
    GlueTask(
        name="wnli",
        fields=("sentence1", "sentence2"),
        margin=0.05,
        margin_reason="71 test rows, of which four are about five points; the standard error is six, so no study of "
        "this task alone will tell much.",
    ),
)

GLUE: dict[str, GlueTask] = {task.spec.name: task for task in _TASKS}
