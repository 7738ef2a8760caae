"""A study as YAML, nothing left to defaults."""

import json
import re

import yaml

from tunetrial import tasks
from tunetrial.core.study import Arm, Setting, Study, TaskSpec
from tunetrial.spec.text import NUMBER

_SHARED = ("epochs", "batch_examples", "max_tokens", "weight_decay", "precision", "readout", "retention", "frontier")
_SHARED += ("drift", "keep", "pack", "seed")
_OVER_BUILT_IN = ("name", "metric", "margin", "epochs", "variants", "criterion")


class Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else, and never uses aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({NUMBER.pattern})\Z"), list("-+.0123456789"))
Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def to_yaml(study: Study) -> str:
    """Write every field of a study."""
    document = {
        "question": study.question,
        "base_model": study.base_model,
        "tasks": [_task(task) for task in study.tasks],
        "arms": {arm.name: _arm(arm) for arm in study.arms},
        "reference": study.reference,
        "rule": study.rule.model_dump(),
        "replicates": {"looks": study.looks, "folds": study.folds, "repeats": study.repeats},
        "tuning": study.tuning.model_dump(exclude_none=True),
        "limits": study.limits,
        "require": study.require,
        "criteria": {name: c.model_dump(exclude_none=True) for name, c in study.criteria.items()},
        "opinions": {name: o.model_dump(exclude_none=True) for name, o in study.opinions.items()},
        "hardware": study.hardware.model_dump(exclude_none=True),
        "budget": study.budget.model_dump(exclude_none=True),
        "costs": study.costs.model_dump(exclude_none=True),
    }
    document |= {field: getattr(study, field) for field in _SHARED}
    if study.ladder is not None:
        document["ladder"] = study.ladder.model_dump(exclude_none=True)
    if study.strategy is not None:
        document["strategy"] = {"name": "escalate", **study.strategy.model_dump(mode="json")}
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def scalar(value: Setting) -> str:
    """One value on one line, as `to_yaml` would write it."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return yaml.dump([value], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)[1:-2]


def _arm(arm: Arm) -> dict:
    other = {} if arm.base_model is None else {"base_model": arm.base_model}
    return {"method": arm.method, **arm.settings, **other}


def _task(task: TaskSpec) -> dict:
    """A built-in task by its name and what may differ; an own one in full."""
    fields = {name: value for name, value in task.model_dump(exclude_none=True).items() if value != ""}
    if task.data is not None or task.name not in tasks.BUILT_IN:
        return fields
    return {key: fields[key] for key in _OVER_BUILT_IN if key in fields}
