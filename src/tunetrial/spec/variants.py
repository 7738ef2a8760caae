"""Variants of inputs that a task of a study file asks for, and what is wrong with them before any row is seen."""

from collections.abc import Iterator

from tunetrial.core.errors import DataError
from tunetrial.core.study import TaskSpec
from tunetrial.core.variants import PLAIN, USUAL, Noise, Order, Paraphrase, Template, Variant
from tunetrial.spec.faults import show
from tunetrial.tasks import prompt

_CORE = {
    kind: one for one in (Template, Order, Noise, Paraphrase) for kind in one.model_fields["kind"].annotation.__args__
}


def resolve_variants(forms: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The variants as a study keeps them."""
    usual = {variant.kind: {"rate": variant.rate} for variant in USUAL}
    return tuple(_CORE[form.kind](**usual.get(form.kind, {}) | form.model_dump(exclude_none=True)) for form in forms)


def check_variants(spec: TaskSpec) -> dict[str, str]:
    """What is wrong, by the field of the task."""
    names = [variant.name for variant in spec.variants]
    wrong = {}
    for number, variant in enumerate(spec.variants):
        faults = [*_named(variant.name, names[:number]), *_fitted(spec, variant)]
        wrong |= {f"variants {number} {field}".rstrip(): what for field, what in reversed(faults)}
    return wrong


def _named(name: str, earlier: list[str]) -> Iterator[tuple[str, str]]:
    if name in earlier:
        yield "name", f"given twice, got {show(name)}; remove one, or choose another name"
    if name == PLAIN:
        yield "name", f"is what the rows as they are go by, got {show(name)}; choose another name"


def _fitted(spec: TaskSpec, variant: Variant) -> Iterator[tuple[str, str]]:
    """What does not fit the task's prompt, as far as the template tells."""
    if isinstance(variant, Paraphrase) and (variant.column is None) == (variant.file is None):
        got = "got neither" if variant.file is None else "got both"
        yield "", f"needs the other texts from a column or a file, {got}; name one of them"
    if spec.messages:
        if not isinstance(variant, Noise) or variant.fields:
            got = variant.kind if not isinstance(variant, Noise) else "fields"
            yield "", f"conversations take case, typos and whitespace in all user turns, got {got}; use these"
        return
    try:
        shown = prompt.names(spec.input)
    except DataError:  # said of the input itself
        return
    if isinstance(variant, Template):
        yield from _same_fields(variant, shown)
        return
    fields = variant.fields if isinstance(variant, Noise) else (variant.field,)
    for field in fields if "row" not in shown else ():
        if field not in shown:
            what = f"is not shown by the prompt, got {show(field)}; name one of {', '.join(sorted(shown))}"
            yield ("fields" if isinstance(variant, Noise) else "field"), what


def _same_fields(variant: Template, shown: frozenset[str]) -> Iterator[tuple[str, str]]:
    try:
        asked = prompt.names(variant.input)
    except DataError as fault:
        yield "input", f"{fault}; mend the template"
        return
    if asked != shown:
        got = ", ".join(sorted(asked)) or "none"
        yield "input", f"must ask for the task's own fields, {', '.join(sorted(shown))}, got {got}; ask for these"
