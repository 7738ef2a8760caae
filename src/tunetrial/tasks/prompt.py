"""Prompts: a row's fields put into a Jinja template, in a sandbox and without silent gaps."""

import math
from functools import cache

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunetrial.core.errors import DataError


def fill(source: str, fields: dict) -> str:
    """Render the template `source` over the fields of one row, to the last newline.

    A field whose name is no word is reached through `row`: `{{ row["Ticket text"] }}`. A missing value (None, NaN)
    that would be printed is an error; `{{ body or "" }}` says that it may be missing.

    Raises:
        DataError: The template is none, names a field that is not there, prints a missing value, does what the
            sandbox forbids, fails on the values, or leaves nothing but white space. The caller adds where.
    """
    try:
        prompt = _template(source).render({"row": fields} | fields)
    except UndefinedError as error:
        gaps = [name for name, value in fields.items() if _is_missing(value) and {name, "row"} & names(source)]
        raise DataError(f"{error}{' in ' + ', '.join(gaps) if gaps else ''}") from None
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise DataError(f"input cannot be rendered ({type(error).__name__}: {error})") from None
    if not prompt.strip():
        raise DataError("prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"prompt is no valid Unicode, half a character at {error.start}") from None
    return prompt


@cache
def names(source: str) -> frozenset[str]:
    """The fields (and perhaps `row`) that a template asks for; DataError if it is none. The caller adds where."""
    _template(source)
    return frozenset(meta.find_undeclared_variables(ENVIRONMENT.parse(source)) - set(ENVIRONMENT.globals))


@cache
def _template(source: str) -> Template:
    try:
        return ENVIRONMENT.from_string(source)
    except TemplateSyntaxError as error:
        raise DataError(f"no Jinja template ({error.message} on its line {error.lineno}), got {source!r}") from None


def _refuse_missing(value: object) -> object:
    if _is_missing(value):
        raise UndefinedError("a printed field has no value")
    return value


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=_refuse_missing
)
