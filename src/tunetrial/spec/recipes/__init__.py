"""Recipes of other tools: in as a study file, out with the settings that a study found.

from tunetrial.spec import recipes
recipes.study_file(recipes.read(path), path, Path("study.yaml"))
recipes.write("axolotl", recipe, seed=3, remarks=[])
"""

import textwrap
from collections.abc import Sequence
from typing import get_args

import yaml

from tunetrial.core.errors import SpecError
from tunetrial.spec.faults import nearest, show
from tunetrial.spec.recipes import axolotl, llamafactory, trl
from tunetrial.spec.recipes.reading import read
from tunetrial.spec.recipes.recipe import Dataset, Recipe, Tool
from tunetrial.spec.recipes.study_file import MARGIN_SAID, study_file

TOOLS = get_args(Tool)
LARGEST_MICRO_BATCH = 4
_WRITERS = {"axolotl": axolotl.write, "llamafactory": llamafactory.write, "trl": trl.write, "peft": trl.write_peft}
_USE = {
    "axolotl": "axolotl train FILE",
    "llamafactory": "llamafactory-cli train FILE",
    "trl": "trl sft --config FILE",
    "peft": "LoraConfig(**lora_config), BitsAndBytesConfig(**quantization_config), SFTConfig(**training_args)",
}

__all__ = ["MARGIN_SAID", "TOOLS", "Dataset", "Recipe", "check_tool", "read", "study_file", "write"]


def write(tool: str, recipe: Recipe, *, seed: int, remarks: Sequence[str] = ()) -> str:
    """Write a recipe as a tool's own, what it cannot express in comments above.

    The micro-batch is a divisor of the batch, 4 at most: only its product with the accumulation matters, on one device.

    Raises:
        SpecError: The tool is unknown, or cannot have such an arm.
    """
    check_tool(tool)
    if (share := recipe.settings.get("warm_start")) is not None:
        what = f"{tool} has no recipe that merges an adapter half-way, got warm_start {share:g}"
        raise SpecError(f"recipe: {what}; name another arm, or write its two halves yourself")
    micro = max(n for n in range(1, LARGEST_MICRO_BATCH + 1) if recipe.batch_examples % n == 0)
    keys, notes = _WRITERS[tool](recipe, micro, seed)
    if recipe.settings.get("base") == "int8":
        notes.append("the study's 8 bits are rows with a scale each; bitsandbytes also keeps outliers apart")
    head = [
        f"For {tool}: {_USE[tool]}",
        *remarks,
        f"A step is of {recipe.batch_examples} examples on one device; with more, divide gradient_accumulation_steps.",
        *(f"not expressed: {note}" for note in notes),
    ]
    comments = [line for text in head for line in textwrap.wrap(text, 98, subsequent_indent="  ")]
    body = yaml.dump(keys, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return "".join(f"# {line}\n" for line in comments) + body


def check_tool(tool: str) -> None:
    """Refuse the name of a tool that there are no recipes for.

    Raises:
        SpecError: It is unknown.
    """
    if tool not in TOOLS:
        raise SpecError(f"recipe: unknown tool, got {show(tool)}; {nearest(tool, TOOLS)}")


class _Dumper(yaml.SafeDumper):
    """Floats that every YAML reads as numbers: `2.0e-05`, never `2e-05`, which YAML 1.1 takes for text."""


def _float(dumper: yaml.Dumper, value: float) -> yaml.Node:
    digits = repr(value)
    if "e" in digits and "." not in digits:
        digits = digits.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", digits)


_Dumper.add_representer(float, _float)
