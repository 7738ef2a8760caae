"""The text of a recipe to its keys: YAML, JSON, or a command line; and which tool it is for."""

import json
import re
import shlex
from pathlib import Path

import yaml

from tunetrial.core.errors import SpecError
from tunetrial.spec.faults import show
from tunetrial.spec.recipes import axolotl, llamafactory, trl
from tunetrial.spec.recipes.recipe import Recipe
from tunetrial.spec.text import NUMBER, read_text

_TRAINERS = {"dpo": "preferences", "kto": "preferences", "grpo": "rewards", "reward": "rewards", "rloo": "rewards"}


def read(path: Path, *, devices: int | None = None) -> Recipe:
    """Read a recipe of axolotl, LLaMA-Factory, or TRL and PEFT: the tool is told by the keys that only it has.

    Args:
        devices: GPUs that it runs on; one, or what its command line says, if not given.
    Raises:
        SpecError: It cannot be read, it is not told whose it is, or a value cannot be used.
    """
    where = str(path)
    text = read_text(path, where)
    values, launched = _values(text, where)
    tool = _tool(values, where)
    number = devices or launched or 1
    if tool == "axolotl":
        recipe = axolotl.read(values, where, devices=number)
    else:
        module = llamafactory if tool == "llamafactory" else trl
        recipe = module.read(values, where, path.parent, devices=number)
    return recipe


def _values(text: str, where: str) -> tuple[dict, int | None]:
    """The keys, and the number of processes that a command line starts."""
    first = next((line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")), "")
    if re.match(
        r"(\S*=\S* +)*(accelerate|torchrun|deepspeed|python3?|trl|llamafactory-cli|axolotl)\s", first
    ) or first.startswith("--"):
        return _command(text, where)
    try:
        value = json.loads(text) if first.startswith("{") else yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:120]
        raise SpecError(f"{where}: cannot be read as YAML, JSON or a command line, got {said}; mend it") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SpecError(f"{where}: no recipe, got {show(value)}; name a mapping of keys to values")
    return value, None


class _Loader(yaml.SafeLoader):
    """YAML as the tools read it, without aliases, which can be made to grow without end, and without keys twice."""

    def compose_node(self, parent: object, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias on line {self.peek_event().start_mark.line + 1}; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice!r} twice, on line {node.start_mark.line + 1} and after; remove one")
        return super().construct_mapping(node, deep)


def _command(text: str, where: str) -> tuple[dict, int | None]:
    """`--key value`, `--key=value` and `--flag`; what comes before the script's own name is the launcher's."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    try:
        words = shlex.split(lines.replace("\\\n", " "))
    except ValueError as error:
        raise SpecError(f"{where}: no command line, got {error}; mend its quotes") from None
    if trainer := next((word for word in words if word in _TRAINERS), None):
        raise SpecError(f"{where}: no supervised fine-tuning, got {trainer} ({_TRAINERS[trainer]}); use trl sft")
    starts = [n for n, word in enumerate(words) if word.endswith(".py") or word in ("sft", "train")]
    start = starts[0] + 1 if starts else 0
    launcher = _options(words[: max(start - 1, 0)], where)
    processes = launcher.get("num_processes") or launcher.get("nproc_per_node") or launcher.get("num_gpus")
    return _options(words[start:], where), int(processes) if str(processes).isdecimal() else None


def _options(words: list[str], where: str) -> dict[str, object]:
    options: dict[str, list[str]] = {}
    key = None
    for word in words:
        if found := re.fullmatch(r"--([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL):
            key = found[1].replace("-", "_")
            if key in options:
                raise SpecError(f"{where}: {key}: given twice, got {word}; remove one")
            options[key] = [] if found[2] is None else [found[2]]
        elif key is not None:
            options[key].append(word)
    return {key: _plain(words) for key, words in options.items()}


def _plain(words: list[str]) -> object:
    if len(words) != 1:
        return words or True
    text = words[0]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if NUMBER.fullmatch(text):
        return float(text) if re.search("[.eE]", text) else int(text)
    return text


def _tool(values: dict, where: str) -> str:
    """The tool with the most of its own keys; a tie is refused."""
    if "base_model" in values:
        return "axolotl"
    if any(isinstance(values.get(name), dict) for name in trl.SECTIONS):
        return "trl"
    own = {"llamafactory": llamafactory.MARKS, "trl": trl.MARKS - {"model_name_or_path"}}
    found = {tool: len(marks & values.keys()) for tool, marks in own.items()}
    best = max(found.values())
    tools = [tool for tool, count in found.items() if count == best]
    if not best and "model_name_or_path" in values:
        return "trl"
    if not best or len(tools) > 1:
        known = "base_model (axolotl), finetuning_type (LLaMA-Factory) or model_name_or_path (TRL)"
        raise SpecError(f"{where}: no recipe of a known tool, got keys {show(tuple(values))}; it needs {known}")
    return tools[0]
