"""The base of all records: frozen, strict about unknown fields, and with one digest."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """An immutable value; an unknown field is an error, so that a typo never passes silently.

    What checks it is built at its first use: of a hundred kinds a process meets a few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal for equal content, whatever the order of keys."""
        return digest(self.model_dump(mode="json"))


def added(default: object = None) -> Any:
    """A field that came after records of its kind were kept: at its default it is left out of the JSON, so that what
    does not use it keeps its digest."""
    return Field(default=default, exclude_if=lambda value: value == default)


def canonical(value: object) -> str:
    """Write a JSON value in one way only: sorted keys, no spaces, ASCII, shortest floats, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of a JSON value's canonical form, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
