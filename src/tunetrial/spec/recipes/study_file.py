"""A recipe as a study file: `yours` beside full fine-tuning and LoRA, and what was not carried over."""

import os
import re
import textwrap
from pathlib import Path

from tunetrial import methods
from tunetrial.core.study import Setting
from tunetrial.spec.recipes.recipe import Dataset, Recipe
from tunetrial.spec.write import scalar

WIDTH = 100
MARGIN = 0.02
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MARGIN_SAID = (
    f"margin {MARGIN:g} IS A CHOICE MADE FOR YOU: a difference below 0.02 nats a token, two per cent of perplexity, "
    "counts as none. Write the smallest difference that would change what you do, before anything runs."
)


def study_file(recipe: Recipe, source: Path, to: Path, *, margin: float | None = None) -> str:
    """Write the study file of a recipe, with paths as seen from the folder of `to`."""
    arms, yours = _arms(recipe)
    lines = _comments(recipe, source, yours)
    lines += [f"base_model: {scalar(_located(recipe.base_model, source, to))}", *_task(recipe, source, to, margin)]
    lines += ["arms:", *(f"  {name}: {{{', '.join(_pairs(method, own))}}}" for name, (method, own) in arms.items())]
    lines += [
        "reference: full" if "full" in arms else f"reference: {yours}",
        f"tuning: {{centres: {{{yours}: {recipe.learning_rate!r}}}}}",
        f"epochs: {recipe.epochs}",
        f"batch_examples: {recipe.batch_examples}",
        f"max_tokens: {recipe.max_tokens}",
        f"weight_decay: {recipe.weight_decay!r}",
        f"precision: {recipe.precision}",
    ]
    return "\n".join(lines) + "\n"


def _arms(recipe: Recipe) -> tuple[dict[str, tuple[str, dict[str, Setting]]], str]:
    """The arms by name, and which is the recipe's: `full` or `lora` itself, where it is just that."""
    arms: dict[str, tuple[str, dict[str, Setting]]] = {"full": ("full", {}), "lora": ("lora", {})}
    settled = methods.settle(recipe.method, recipe.settings)
    same = next((n for n, (m, own) in arms.items() if m == recipe.method and methods.settle(m, own) == settled), None)
    if same is None:
        arms["yours"] = (recipe.method, recipe.settings)
    return arms, same or "yours"


def _comments(recipe: Recipe, source: Path, yours: str) -> list[str]:
    paragraphs = [f"From {source.name}, a recipe for {recipe.tool}. What it will take: tunetrial plan."]
    if yours != "yours":
        paragraphs.append(f"Your recipe is the arm {yours}: the same method and settings.")
    paragraphs.append(
        f"{yours}: its learning rate, {recipe.learning_rate:g}, is the centre of its own search, hence one of the "
        "rates tried. It is not held to that rate: a verdict would then be about rates as much as about methods."
    )
    if recipe.same:
        paragraphs.append(f"As every arm has it: {'; '.join(recipe.same)}.")
    paragraphs += [f"not carried over: {left}" for left in recipe.left]
    if recipe.data is None:
        paragraphs.append("not carried over: data: the recipe names none; write the file of rows below.")
    return [f"# {line}" for paragraph in paragraphs for line in _wrapped(paragraph)]


def _wrapped(paragraph: str) -> list[str]:
    plain = "".join(c if c.isprintable() else " " for c in paragraph)
    return textwrap.wrap(plain, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _task(recipe: Recipe, source: Path, to: Path, margin: float | None) -> list[str]:
    data = recipe.data or Dataset(path="rows.jsonl", messages="messages")
    path = _located(data.path, source, to, hub="hub:")
    stem = re.sub(r"[^a-z0-9._-]+", "-", Path(path).stem.lower().split(":")[-1]).strip("-._")[:40] or "rows"
    lines = ["tasks:", f"  - name: {scalar(stem)}", f"    data: {scalar(path)}", "    kind: generate"]
    if data.messages:
        lines.append(f"    messages: {scalar(data.messages)}")
    else:
        lines += [f"    input: {scalar(data.input)}", f"    target: {scalar(data.target)}"]
    said = [] if margin is not None else [f"    # {line}" for line in _wrapped(MARGIN_SAID)]
    return [*lines, "    metric: nll", *said, f"    margin: {MARGIN if margin is None else margin!r}"]


def _pairs(method: str, own: dict[str, Setting]) -> list[str]:
    return [f"method: {method}", *(f"{key}: {scalar(value)}" for key, value in own.items())]


def _located(name: str, source: Path, to: Path, *, hub: str = "") -> str:
    """A path of the recipe as seen from the study file; what is no file here and looks like an id is on the Hub."""
    if name.startswith("hub:"):
        return name
    found = next((p for p in (source.parent / name, Path(name)) if p.expanduser().exists()), None)
    if found is not None:
        return os.path.relpath(found.expanduser().resolve(), to.parent.resolve())
    is_file = Path(name).suffix in (".jsonl", ".json", ".csv", ".parquet")
    return f"{hub}{name}" if HUB_ID.fullmatch(name) and not is_file else name
