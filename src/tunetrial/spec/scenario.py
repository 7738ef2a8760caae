"""Scenario files: weights, anchors, limits, volumes and prices of a use, whatever the study; YAML in, `Scenario` out.

from tunetrial.spec import scenario
scenario.find("saas")                          # one of the built-in ones, by name
scenario.find("ours.yaml")                     # a user's own
"""

from functools import cache
from pathlib import Path

from pydantic import Field

from tunetrial.core.errors import SpecError
from tunetrial.core.records import Record
from tunetrial.core.scenario import Criterion, Inputs, Opinion, Scenario
from tunetrial.spec.explain import explain
from tunetrial.spec.faults import Fault, nearest, refuse, show
from tunetrial.spec.form import (
    Absent,
    Count,
    CriteriaForm,
    CriterionForm,
    LimitsForm,
    Name,
    OpinionForm,
    Positive,
    Price,
    Text,
)
from tunetrial.spec.resolve import anchor_faults, opinion_faults
from tunetrial.spec.text import read_text, read_tree

FOLDER = Path(__file__).parent / "scenarios"
BEGIN = "not a scenario, got {}; begin with name:, title: and criteria:"


class ScenarioCriteria(CriteriaForm):
    """What is weighed, each in its natural unit."""

    year_usd: CriterionForm | Absent = Field(None, description="weight of the US dollars of the first year")


class ScenarioLimits(LimitsForm):
    """What no recommended arm may exceed."""

    year_usd: Positive | Absent = Field(None, description="most US dollars in the first year", examples=[5000])


class InputsForm(Record):
    """Volumes and prices of the use."""

    tenants: Count = Field(1, description="number of variants that are kept", examples=[50])
    requests_per_month: Price | Absent = Field(None, description="requests of all tenants together", examples=[100000])
    retrainings_per_month: Price = Field(0.0, description="trainings of each variant a month", examples=[1])
    engineer_hours: Price | Absent = Field(None, description="hours of engineers in the first year", examples=[20])
    usd_per_hour: Price | Absent = Field(None, description="price of a machine like the one measured", examples=[0.8])
    usd_per_gb_month: Price | Absent = Field(None, description="price of a GB kept for a month", examples=[0.1])
    usd_per_engineer_hour: Price | Absent = Field(None, description="price of such an hour", examples=[90])
    room_gib: Positive | Absent = Field(None, description="GiB that a serving machine has for weights", examples=[16])


class ScenarioForm(Record):
    """A scenario file."""

    name: Name = Field(description="name of the scenario", examples=["saas"])
    title: Text = Field(description="title in a few words", examples=["Customer-service SaaS"])
    story: str = Field("", max_length=4000, description="story in a sentence or two", examples=["A team of three."])
    criteria: ScenarioCriteria = Field(
        default_factory=ScenarioCriteria,
        description="criteria and their weights",
        examples=[{"quality": {"weight": 1}}],
    )
    opinions: dict[Text, OpinionForm] = Field(
        {},
        description="criteria that nothing measures, with your own points",
        examples=[{"strategic fit": {"weight": 0.1, "scores": {"full": 6, "lora": 9}}}],
    )
    limits: ScenarioLimits = Field(default_factory=ScenarioLimits, description="limits", examples=[{"peak_gib": 15}])
    inputs: InputsForm = Field(default_factory=InputsForm, description="volumes and prices", examples=[{"tenants": 50}])


def names() -> tuple[str, ...]:
    """The built-in scenarios, by name."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def uses() -> tuple[str, ...]:
    """The built-in scenarios of a use, without the published matrices."""
    return tuple(name for name in names() if not name.startswith("seed-"))


def find(asked: str) -> Scenario:
    """A built-in scenario by its name, or a user's file by its path.

    Raises:
        SpecError: It is neither, or the file is not a scenario.
    """
    if asked in names():
        return _built_in(asked)
    if not Path(asked).exists() and not asked.endswith((".yaml", ".yml")):
        raise SpecError(f"--scenario: no such scenario or file, got {show(asked)}; {nearest(asked, names())}")
    return read(asked)


def read(path: str | Path) -> Scenario:
    """Read a scenario file.

    Raises:
        SpecError: The file cannot be read, or is not a scenario; up to five faults, each a line of its own.
    """
    where = str(path) if str(path).isprintable() else show(str(path))
    return parse(read_text(Path(path), where), where)


def parse(text: str, where: str = "scenario.yaml") -> Scenario:
    """Read a scenario from text; `where` names it in messages.

    Raises:
        SpecError: As `read`.
    """
    tree = read_tree(text, where, begin=BEGIN)
    refuse(where, tree, explain(tree, ScenarioForm))
    form = ScenarioForm.model_validate(tree.value, strict=True)
    criteria = form.criteria.model_dump(exclude_none=True)
    faults = [*anchor_faults(form.criteria, quality_rises=None), *opinion_faults(form.opinions)]
    if not criteria and not form.opinions:
        faults.append(Fault((), "nothing to weigh; give criteria: or opinions:"))
    refuse(where, tree, faults)
    return Scenario(
        name=form.name,
        title=form.title,
        story=form.story,
        criteria={name: Criterion(**one) for name, one in criteria.items()},
        opinions={name: Opinion(**one.model_dump()) for name, one in form.opinions.items()},
        limits=form.limits.model_dump(exclude_none=True),
        inputs=Inputs(**form.inputs.model_dump()),
    )


@cache
def _built_in(name: str) -> Scenario:
    return read(FOLDER / f"{name}.yaml")
