"""Prompts: a row's fields put into a Jinja template, in a sandbox and without silent gaps.

The sandbox keeps a template from what it may not touch, not from taking hours or all memory. So nothing of it is
computed when it is compiled, and one that does more than put fields in their places, with loops or arithmetic, is
filled by a process of its own (this file, run as a script), which the kernel ends in time.
"""

import json
import math
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from jinja2 import (
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    UndefinedError,
    meta,
    nodes,
    pass_context,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunetrial.core.errors import DataError, RunawayError

ROW_S = 2.0
MEMORY_BYTES = 2**30
# What takes time and room in proportion to the fields that it is given.
PLAIN_NODES = (
    *(nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Const),
    *(nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test),
    *(nodes.Filter, nodes.Concat),
)
PLAIN_FILTERS = frozenset({"capitalize", "d", "default", "float", "int", "length", "lower", "string", "trim", "upper"})


@contextmanager
def filling(source: str) -> Iterator[Callable[[dict], str]]:
    """Give a function that fills the template like `fill`, row after row, within 2 s and 1 GiB each.

    Raises:
        DataError: The template is none; from the function, what `fill` raises.
        RunawayError: From the function, which gives no further row.
    """
    _template(source)
    if all(_is_plain(node) for node in ENVIRONMENT.parse(source).find_all(nodes.Node)):
        yield lambda fields: fill(source, fields)
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-P", __file__], **pipes) as process:

        def ask(fields: dict) -> str:
            pickle.dump((source, fields), process.stdin)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline() or "{}")
            if "prompt" in answer:
                return answer["prompt"]
            limits = f"{ROW_S:g} s and {MEMORY_BYTES // 2**30} GiB"
            raise DataError(answer["fault"]) if answer else RunawayError(f"input takes more than {limits} to render")

        try:
            yield ask
        finally:
            process.kill()


def _is_plain(node: nodes.Node) -> bool:
    return isinstance(node, PLAIN_NODES) and not (isinstance(node, nodes.Filter) and node.name not in PLAIN_FILTERS)


def _serve() -> None:
    """Fill what comes in on stdin; the kernel's alarm ends this process at the row that takes too long."""
    with suppress(ValueError, OSError):  # not every system limits memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        source, fields = pickle.load(sys.stdin.buffer)
        signal.setitimer(signal.ITIMER_REAL, ROW_S)
        try:
            answer = {"prompt": fill(source, fields)}
        except DataError as fault:
            answer = {"fault": str(fault)}
        print(json.dumps(answer), flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


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
    return asked(ENVIRONMENT.parse(source))


def asked(template: nodes.Template) -> frozenset[str]:
    """The fields that a parsed template asks for, as `meta.find_undeclared_variables`, and nothing is computed."""
    tracker = meta.TrackingCodeGenerator(ENVIRONMENT)
    tracker.optimizer = None
    tracker.visit(template)
    return frozenset(tracker.undeclared_identifiers - set(ENVIRONMENT.globals))


@cache
def _template(source: str) -> Template:
    try:
        return ENVIRONMENT.from_string(source)
    except TemplateSyntaxError as error:
        raise DataError(f"no Jinja template ({error.message} on its line {error.lineno}), got {source!r}") from None


@pass_context
def _refuse_missing(context: Context, value: object) -> object:
    if _is_missing(value):
        raise UndefinedError("a printed field has no value")
    return value


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=_refuse_missing, optimized=False
)

if __name__ == "__main__":
    _serve()
