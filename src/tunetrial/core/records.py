"""The base of all records: frozen, and strict about unknown fields."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable value; an unknown field is an error, so that a typo never passes silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")
