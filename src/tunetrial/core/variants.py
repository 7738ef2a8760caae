"""Variants of inputs as a study names them: the same meaning, worded otherwise (`tasks.vary` makes them)."""

from typing import Annotated, Literal

from pydantic import Field

from tunetrial.core.records import Record

PLAIN = "plain"  # the input as it is, which no variant may be called


class Template(Record):
    """Another wording of the prompt's frame: a Jinja template that asks for the same fields as the task's own."""

    name: str
    kind: Literal["template"] = "template"
    input: str = Field(description="template that asks for the same fields", examples=["Which desk? {{ message }}"])


class Order(Record):
    """Another order of the options or facts in one field: a list, an object, or text parted by `separator`."""

    name: str
    kind: Literal["order"] = "order"
    field: str = Field(description="field whose parts change places", examples=["options"])
    separator: str | None = Field(None, min_length=1, description="text between the parts", examples=[", "])


class Noise(Record):
    """Other case, white space, or typos, in `fields`, or in every text field that the prompt shows.

    `rate` is the share of words that are altered (of gaps between words, for white space).
    """

    name: str
    kind: Literal["case", "typos", "whitespace"]
    rate: float = Field(gt=0, le=1)
    fields: tuple[str, ...] = Field((), description="fields that change, if not all", examples=[["message"]])


class Paraphrase(Record):
    """The text of `field` as somebody else put it: from the row's field `column`, or from a file of objects with the
    example's `id` and the `field`."""

    name: str
    kind: Literal["paraphrase"] = "paraphrase"
    field: str = Field(description="field that is said otherwise", examples=["message"])
    column: str | None = Field(None, description="field of the rows with the other text", examples=["reworded"])
    file: str | None = Field(None, description="file of ids and other texts", examples=["reworded.jsonl"])


Variant = Annotated[Template | Order | Noise | Paraphrase, Field(discriminator="kind")]

USUAL: tuple[Noise, ...] = (
    Noise(name="case", kind="case", rate=1.0),
    Noise(name="typos", kind="typos", rate=0.1),
    Noise(name="whitespace", kind="whitespace", rate=0.1),
)
