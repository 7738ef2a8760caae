"""Methods: families of update rules. One file a method; to add one, write its file and enter it in METHODS.

from tunetrial import methods
methods.settle("lora", {"rank": 8})            # every setting, defaults filled in
methods.find(arm).trainable_parameters(shape, outputs=6)
"""

from typing import get_args

from pydantic import ValidationError

from tunetrial.core.errors import SpecError
from tunetrial.core.study import Arm, Setting
from tunetrial.methods.full import Full
from tunetrial.methods.lora import Lora
from tunetrial.methods.method import AdapterSpec, Method, PeftSpec
from tunetrial.methods.peft import Peft
from tunetrial.methods.qlora import QLora
from tunetrial.methods.untuned import NoTuning, Tfidf

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "lora": Lora,
    "qlora": QLora,
    "peft": Peft,
    "none": NoTuning,
    "tfidf": Tfidf,
}

__all__ = ["METHODS", "AdapterSpec", "Full", "Method", "PeftSpec", "find", "settle"]


def settle(method: str, settings: dict[str, Setting]) -> dict[str, Setting]:
    """Check a method's settings and fill in its defaults; what is absent by default stays absent.

    Raises:
        SpecError: The method or a setting is unknown, or a value is out of range; the text begins with the field.
    """
    if method not in METHODS:
        raise SpecError(f"method: unknown, got {method!r}; use one of {', '.join(METHODS)}")
    try:
        return METHODS[method].model_validate(settings).model_dump(exclude_none=True)
    except ValidationError as error:
        first = {part["loc"][:1]: part for part in reversed(error.errors())}
        raise SpecError("; ".join(_explain(METHODS[method], part) for part in first.values())) from None


def find(arm: Arm) -> Method:
    """The method of an arm, with its settings."""
    return METHODS[arm.method].model_validate(arm.settings)


def _explain(method: type[Method], part: dict) -> str:
    field = ".".join(str(key) for key in part["loc"][:1])
    if part["type"] == "extra_forbidden":
        known = ", ".join(method.model_fields) or "none"
        return f"{field}: no such setting of this method, got {part['input']!r}; its settings are {known}"
    annotation = method.model_fields[field].annotation if field in method.model_fields else None
    literal = " or ".join(repr(value) for value in get_args(annotation) if isinstance(value, str))
    hint = f"use {literal}" if literal else "see the method's settings"
    message = part["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if ", got " in message:
        return f"{field}: {message}" if field else message
    message = message.replace("greater than or equal to", ">=").replace("greater than", ">")
    return f"{field or 'settings'}: {message}, got {part['input']!r}; {hint}"
