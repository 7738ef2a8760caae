"""What the page needs to weigh again as weights, prices and volumes move, and the script that does; computes nothing.

The data are text in the page, never code: `<`, `>` and `&` are written as escapes, so that no name can end the element
that holds them. The script makes text of them alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunetrial.analysis import draws, scoring, smaa, weighing
from tunetrial.core import money
from tunetrial.report import words

FILES = ("weighing.js", "sliders.js")
RULES = {
    "sure": scoring.SURE,
    "shake": scoring.SHAKE,
    "close": smaa.CLOSE,
    "steps": scoring.STEPS,
    "farthest": weighing.FARTHEST,
    "inputs": weighing.INPUTS,
    "hours_per_month": money.HOURS_PER_MONTH,
    "gb_bytes": money.GB_BYTES,
}
FIGURES = frozenset(
    "tuning_s finals_s evaluation_s artifact_bytes base_bytes resident_bytes resident_base_bytes alone_per_s "
    "together_per_s".split()
)
ESCAPES = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"})


def again(sheet: Mapping[str, Any] | None, templates: Path) -> dict[str, Any]:
    """What the page's templates ask for: the data, the whole script, which is empty without data, and how many draws
    there are."""
    weighable = data(sheet)
    script = "".join((templates / name).read_text(encoding="utf-8") for name in FILES) if weighable else ""
    return {"weighable": weighable, "script": script, "drawn": words.number(draws.DRAWS, 0)}


def data(sheet: Mapping[str, Any] | None) -> Markup | None:
    """The data as JSON that may stand inside a script element; None where nothing can be weighed again: nothing was
    asked for, no scenario could be weighed, or finals are not complete."""
    found = None if sheet is None else gather(sheet)
    return (
        None if found is None else Markup(json.dumps(found, allow_nan=False, separators=(",", ":")).translate(ESCAPES))
    )


def gather(sheet: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scenarios that were weighed, arms, what arms take and draws, as far as one of the scenarios weighs them."""
    uses = [_use(one) for one in sheet["weighed"] if one["standings"]]
    if not uses or sheet["draws"] is None:
        return None
    criteria = {scale["name"] for use in uses for scale in use["scales"]}
    varying = {"run_length" if name == "year_usd" else name for name in criteria}
    names = [sheet["reference"], *(arm for arm in sheet["arms"] if arm != sheet["reference"])]
    return {
        "rules": RULES,
        "arms": [_arm(arm, sheet["arms"][arm]) for arm in names],
        "limits": sheet["limits"],
        "taken": [_taken(one) for one in sheet["taken"]] if "run_length" in varying or _limited(uses) else [],
        "draws": {name: drawn for name, drawn in sheet["draws"].items() if name in varying},
        "drawn": draws.DRAWS,
        "uses": uses,
    }


def _limited(uses: list[dict[str, Any]]) -> bool:
    return any("year_usd" in use["limits"] for use in uses)


def _arm(name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    measured = {criterion: one["value"] for criterion, one in known["measured"].items()}
    if known["untrained"]:
        measured["forgetting_nats"] = 0.0
    return {
        "name": name,
        "shown": words.name(name),
        "method": known["method"],
        "weighed": known["weighed"],
        "measured": measured,
    }


def _use(one: Mapping[str, Any]) -> dict[str, Any]:
    asked = one["asked"]
    return {
        "name": asked["name"],
        "shown": words.clean(asked["title"], 80),
        "scales": [
            {key: weight[key] for key in ("name", "share", "worst", "best", "log")}
            | {"shown": words.clean(words.criterion(weight["name"]), 60), "opinion": weight["basis"] == "opinion"}
            for weight in one["weights"]
        ],
        "opinions": {name: said["scores"] for name, said in asked["opinions"].items()},
        "limits": asked["limits"],
        "inputs": one["inputs"],
    }


def _taken(one: Mapping[str, Any]) -> dict[str, Any]:
    """Figures alone, and seconds of one more run; null where they were not measured."""
    parts = [one["cycle_s"][part] for part in ("train", "export", "test")]
    figures = {name: said["value"] if said else None for name, said in one.items() if name in FIGURES}
    iteration = None if None in parts else sum(part["value"] for part in parts)
    return {"arm": one["arm"], "shares_base": one["shares_base"], "iteration_s": iteration, **figures}
