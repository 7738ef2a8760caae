"""YAML text to plain values and the line of each: a small, safe part of YAML 1.2, read from the parser's events.

Scalars follow YAML 1.2: `1e-4` is a number; `yes`, `on`, `010`, `1:30`, `1_000` and dates are text, as they look.
Refused, with the line: duplicate keys, keys without a value, infinities and NaN, anchors, aliases and merge keys,
tags, keys that are not text, control characters, more than one document, and anything large or deep.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tunetrial.core.errors import SpecError
from tunetrial.core.quantities import Numeral
from tunetrial.spec.faults import Fault, Keys, Tree, refuse, show

LARGEST_BYTES = 256 * 1024
DEEPEST = 8
BEGIN = "not a study, got {}; begin with base_model:, tasks: and arms:"
MOST_ENTRIES = 2000
LONGEST_INTEGER = 18
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NOTHING = ("", "~", "null", "Null", "NULL")
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_REMEDIES = {
    "'\\t'": "indent with spaces, not tabs",
    "expected chomping or indentation": "put quotes round text that begins with > or |, such as '>= 0.8'",
    "block entry": "begin each item with '- ' on a line of its own",
    "cannot start any token": "put quotes round text that begins with one of @ ` % {{ [ * & ! | >",
    "key that is not": 'put quotes round text that begins with {{{{, [ or {{, such as "{{{{ title }}}}"',
    "nesting of more": "a {subject.name} is flatter",
    "entries": "a {subject.name} is a page of YAML, {subject.instead}",
    "mapping values are not allowed": "put quotes round text that holds ': ', or mend the indentation",
}


@dataclass(frozen=True)
class Subject:
    """What a file is of, in messages: what it is called, a name for it, how it begins, and what it is no place for.

    With `keeps_text` numbers that are not whole are read as `Numeral`, which know how they were written.
    """

    name: str = "study"
    example: str = "study.yaml"
    begins: str = "base_model:, tasks: and arms:"
    instead: str = "its rows belong in their own files"
    most: int = MOST_ENTRIES
    keeps_text: bool = False

    @property
    def too_large(self) -> str:
        return f"larger than 256 KiB; a {self.name} is a page of YAML, {self.instead}"


STUDY = Subject()


def read_text(path: Path, where: str, subject: Subject = STUDY) -> str:
    """Read a file as UTF-8, with or without a byte order mark; `where` names it in messages.

    Raises:
        SpecError: It is missing, no plain file, unreadable, larger than 256 KiB or not UTF-8.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing there"
            raise SpecError(f"{where}: not a file, got {found}; name a {subject.name} file such as {subject.example}")
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{where}: cannot be read, got {reason}; name a file that you may read") from None
    if len(content) > LARGEST_BYTES:
        raise SpecError(f"{where}: {subject.too_large}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError(f"{where}:{line}: not UTF-8, got byte 0x{content[error.start]:02x}; save it as UTF-8") from None


def read_tree(text: str, where: str, subject: Subject = STUDY, *, begin: str | None = None) -> Tree:
    """Read one YAML document whose top is a mapping; `begin` says what to do about one that is not.

    Raises:
        SpecError: The text is not YAML, or holds what the module's docstring refuses.
    """
    if len(text) > LARGEST_BYTES:
        raise SpecError(f"{where}: {subject.too_large}")
    reader = _Reader(subject)
    try:
        value = reader.document(text.removeprefix("\ufeff"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{where}:{line}: not text, got character U+{error.character:04X}; remove it") from None
    except (ValueError, OverflowError) as error:
        raise SpecError(f"{where}: cannot be read as YAML, got {error}; write a valid escape or directive") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise SpecError(f"{place}: cannot be read as YAML, {_remedy(error.problem or str(error), subject)}") from None
    tree = Tree(value, reader.lines)
    refuse(where, tree, reader.faults)
    if not isinstance(value, dict):
        found = "an empty file" if value is None else show(value)
        usual = f"not a {subject.name}, got {found}; begin with {subject.begins}"
        raise SpecError(f"{where}: {begin.format(found) if begin else usual}")
    return tree


def _remedy(problem: str, subject: Subject) -> str:
    usual = "mend the indentation, or put quotes round text that holds {{{{, ': ' or ' #'"
    remedy = next((text for part, text in _REMEDIES.items() if part in problem), usual)
    return f"{problem}; {remedy.format(subject=subject)}"


@dataclass
class _Reader:
    """Builds values from events, noting lines and faults as it goes."""

    subject: Subject = STUDY
    lines: dict[Keys, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def document(self, text: str) -> object:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        if not _is_start(next(events), next(events)):
            return None
        value = self.node(events, next(events), ())
        next(events)
        following = next(events)
        if isinstance(following, yaml.DocumentStartEvent):
            self.fault((), f"a second document begins; keep one {self.subject.name} in a file", following)
        return value

    def node(self, events: Iterator[yaml.Event], event: yaml.Event, keys: Keys) -> object:
        if len(keys) > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nesting of more than {DEEPEST} levels", problem_mark=event.start_mark)
        if len(self.lines) > self.subject.most:
            raise yaml.MarkedYAMLError(problem=f"more than {self.subject.most} entries", problem_mark=event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.fault(keys, f"aliases are not read, got '*{event.anchor}'; write the value itself", event)
            return None
        if event.anchor is not None:
            self.fault(keys, f"anchors are not read, got '&{event.anchor}'; remove it", event)
        if event.tag is not None:
            self.fault(
                keys, f"tags are not read, got {show(event.tag.replace('tag:yaml.org,2002:', '!!'))}; remove it", event
            )
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, keys)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(events, keys)
        return self.mapping(events, keys)

    def sequence(self, events: Iterator[yaml.Event], keys: Keys) -> tuple:
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            inner = (*keys, len(items))
            self.lines[inner] = event.start_mark.line + 1
            items.append(self.node(events, event, inner))
        return tuple(items)

    def mapping(self, events: Iterator[yaml.Event], keys: Keys) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
                problem = "a key that is not plain text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            inner = (*keys, event.value)
            if event.value in values:
                what = f"given twice, first at line {self.lines[inner]}; remove one"
                self.fault(inner, what, event)
            self.lines.setdefault(inner, event.start_mark.line + 1)
            values[event.value] = self.node(events, next(events), inner)
        return values

    def scalar(self, event: yaml.ScalarEvent, keys: Keys) -> object:
        text = event.value
        if _UNSEEN.search(text):
            self.fault(keys, f"holds a control character, got {show(text)}; remove it", event)
            return text
        if not event.implicit[0]:
            return text
        if text in _NOTHING:
            self.fault(keys, "has no value; write one, or remove the line", event)
            return None
        if _NOT_FINITE.fullmatch(text):
            self.fault(keys, f"must be a finite number, got {text}; write a number", event)
        return _BOOLEAN[text] if text in _BOOLEAN else self.number(event, keys)

    def number(self, event: yaml.ScalarEvent, keys: Keys) -> int | float | str:
        text = event.value
        whole = INTEGER.fullmatch(text)
        if (whole and len(text) > LONGEST_INTEGER) or (NUMBER.fullmatch(text) and math.isinf(float(text))):
            self.fault(keys, f"too large a number, got {show(text)}; write a smaller one", event)
            return text
        if whole:
            return int(text)
        if not NUMBER.fullmatch(text):
            return text
        # Adding zero turns -0.0 into 0.0: equal settings must have equal digests.
        return Numeral.of(text) if self.subject.keeps_text else float(text) + 0.0

    def fault(self, keys: Keys, what: str, event: yaml.Event) -> None:
        self.faults.append(Fault(keys, what, event.start_mark.line + 1))


def _is_start(stream: yaml.Event, document: yaml.Event) -> bool:
    return isinstance(stream, yaml.StreamStartEvent) and isinstance(document, yaml.DocumentStartEvent)
