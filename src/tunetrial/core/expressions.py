"""Arithmetic as written in a claim file, worked out without running anything: `sum(a, b) * 12`, `X.T @ Y`.

Known are numbers, names that are given, `+ - * / **`, one comparison, of matrices `@` and `.T`, and functions that are
given. All else is refused, as is what is long or deep, so that a claim file cannot do anything but compute.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from tunetrial.core.quantities import NONE, Quantity

LONGEST, DEEPEST = 400, 24
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
}
_COMPARED = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_ANYTHING = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.USub, ast.UAdd, ast.Name, ast.Load, ast.Constant, ast.Call)
Function = Callable[..., Any]


def tree(text: str, functions: Mapping[str, Function], *, compares: bool = False, matrices: bool = False) -> ast.expr:
    """The expression, checked; `@` and `.T` are of matrices alone.

    Raises:
        ValueError: It is no such expression; the message says what is wrong and what to do.
    """
    if len(text) > LONGEST:
        raise ValueError(f"must have at most {LONGEST} characters, got {len(text)}; write several claims")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"must be an expression, got {text[:60]!r}; write one such as a * b + 12") from None
    _check(body, functions, DEEPEST, matrices)
    if isinstance(body, ast.Compare) != compares:
        wanted = "one comparison, such as a == b" if compares else "without a comparison, such as a / b"
        raise ValueError(f"must be {wanted}, got {text[:60]!r}; write it so")
    return body


def names(body: ast.expr) -> set[str]:
    """What has to be given a value."""
    called = {node.func for node in ast.walk(body) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and node not in called}


def value(body: ast.expr, given: Mapping[str, Any], functions: Mapping[str, Function], number: Function) -> Any:
    """What it comes to; `number` makes a value of a written number.

    Raises:
        ValueError: Units or shapes do not go together, or a result is not finite.
        KeyError: A name has no value.
    """
    if isinstance(body, ast.Constant):
        if abs(body.value) > 1e300:
            raise ValueError("a number is too large")
        return number(body.value)
    if isinstance(body, ast.Name):
        return given[body.id]
    if isinstance(body, ast.Attribute):
        return value(body.value, given, functions, number).T
    if isinstance(body, ast.UnaryOp):
        inner = value(body.operand, given, functions, number)
        return -inner if isinstance(body.op, ast.USub) else inner
    if isinstance(body, ast.Call):
        return functions[body.func.id](*(value(part, given, functions, number) for part in body.args))
    left, right = (value(part, given, functions, number) for part in (body.left, body.right))
    try:
        return _BINARY[type(body.op)](left, right)
    except OverflowError:
        raise ValueError("the result is not a finite number") from None
    except ZeroDivisionError:
        raise ValueError("the divisor may be 0") from None


def sides(body: ast.Compare) -> tuple[ast.expr, str, ast.expr]:
    """Left, relation and right of a comparison."""
    return body.left, _COMPARED[type(body.ops[0])], body.comparators[0]


def _check(node: ast.AST, functions: Mapping[str, Function], depth: int, matrices: bool) -> None:
    if depth == 0:
        raise ValueError(f"must be at most {DEEPEST} deep, got more; write several claims")
    if isinstance(node, ast.Constant) and (isinstance(node.value, bool) or not isinstance(node.value, int | float)):
        raise ValueError(f"must hold numbers and names, got {ast.unparse(node)[:40]!r}; put text elsewhere")
    if isinstance(node, ast.Call) and (node.keywords or not isinstance(node.func, ast.Name)):
        raise ValueError(f"must call functions plainly, got {ast.unparse(node)[:40]!r}; write f(a, b)")
    if isinstance(node, ast.Call) and node.func.id not in functions:
        raise ValueError(f"must use known functions, got {node.func.id!r}; use one of {', '.join(functions)}")
    if isinstance(node, ast.Compare) and (len(node.ops) != 1 or type(node.ops[0]) not in _COMPARED):
        raise ValueError(f"must have one comparison, got {ast.unparse(node)[:40]!r}; write two claims")
    if isinstance(node, ast.Attribute) and node.attr != "T":
        raise ValueError(f"must use .T alone, got .{node.attr}; write a function instead")
    if isinstance(node, ast.Attribute | ast.MatMult) and not matrices:
        what = ".T" if isinstance(node, ast.Attribute) else "@"
        raise ValueError(f"must be arithmetic of numbers, got {what}; write + - * / or **")
    known = (*_ANYTHING, *_BINARY, ast.Compare, *_COMPARED, ast.Attribute)
    if not isinstance(node, known):
        raise ValueError(f"must be arithmetic, got {ast.unparse(node)[:40]!r}; use + - * / ** and functions")
    for inner in ast.iter_child_nodes(node):
        _check(inner, functions, depth - 1, matrices)


def _total(*parts: Quantity) -> Quantity:
    _some(parts)
    return reduce(operator.add, parts)


def _mean(*parts: Quantity) -> Quantity:
    return _total(*parts) / Quantity.of(len(parts))


def _picked(pick: Callable[[list[float]], float]) -> Function:
    def function(*parts: Quantity) -> Quantity:
        _some(parts)
        for part in parts[1:]:
            parts[0].same(part)
        low, high = pick([part.low for part in parts]), pick([part.high for part in parts])
        return Quantity(low, high, parts[0].dimensions)

    return function


def _plain(function: Callable[[float], float], least: float, most: float, dimensions: tuple = NONE) -> Function:
    """Of a monotone function of a plain number from `least` to `most`; what rounding adds beyond these is left out."""

    def of(part: Quantity) -> Quantity:
        part.same(Quantity.of(0.0))
        if part.high < least or part.low > most:
            raise ValueError(f"a function has no value at {part.low:.4g}")
        ends = [function(min(max(end, least), most)) for end in (part.low, part.high)]
        return Quantity(min(ends), max(ends), dimensions)

    return of


def _some(parts: tuple) -> None:
    if not parts:
        raise ValueError("a function needs at least one value")


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _functions() -> dict[str, Function]:
    degrees = (0, 0, 0, 1)
    return {
        "sum": _total,
        "mean": _mean,
        "median": _picked(_median),
        "min": _picked(min),
        "max": _picked(max),
        "sqrt": _plain(math.sqrt, 0.0, math.inf),
        "arccos": _plain(lambda cosine: math.degrees(math.acos(cosine)), -1.0, 1.0, degrees),
    }


FUNCTIONS = _functions()


def quantity(text: str, given: Mapping[str, Quantity]) -> Quantity:
    """What an expression of quantities comes to; its written numbers are exact.

    Raises:
        ValueError: As `tree` and `value`, or a name has no value.
    """
    body = tree(text, FUNCTIONS)
    if missing := sorted(names(body) - set(given)):
        raise ValueError(f"must use names that have values, got {missing[0]!r}; give it under `with`")
    try:
        return value(body, given, FUNCTIONS, Quantity.of)
    except TypeError:
        raise ValueError(f"must call functions with the values that they take, got {text[:60]!r}; mend it") from None
