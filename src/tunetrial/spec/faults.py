"""What is wrong in a study file, and how it is said: `file:line: field: what is wrong, got value; what to do`."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tunetrial.core.errors import SpecError

MOST_SHOWN = 5
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """One thing wrong: at which field, in words, and at which line if that is not the field's own."""

    keys: Keys
    what: str
    line: int | None = None


@dataclass(frozen=True)
class Tree:
    """A document: sequences are tuples, mappings dicts; `lines` has the line of every key and item, from 1."""

    value: object
    lines: Mapping[Keys, int]

    def known(self, keys: Keys) -> Keys:
        """The longest beginning of `keys` that stands in the document."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return keys

    def at(self, keys: Keys) -> object:
        """The value at `keys`, which stand in the document."""
        value = self.value
        for key in keys:
            value = value[key]
        return value


def refuse(where: str, tree: Tree, faults: Sequence[Fault]) -> None:
    """Raise the first five faults, in order of lines, one for each field; without faults do nothing."""
    first: dict[Keys, Fault] = {}
    for fault in faults:
        first.setdefault(fault.keys, fault)
    if first:
        refuse_all(where, tree, first.values())


def refuse_all(where: str, tree: Tree, faults: Iterable[Fault]) -> NoReturn:
    """Raise these faults, of which there is at least one."""
    placed = sorted(((f.line or tree.lines.get(tree.known(f.keys), 0), f) for f in faults), key=lambda pair: pair[0])
    said = []
    for line, fault in placed[:MOST_SHOWN]:
        place = f"{where}:{line}" if line else where
        said.append(": ".join([place, *filter(None, [_name(tree, fault.keys)]), fault.what]))
    if len(placed) > MOST_SHOWN:
        said.append(f"{where}: and {len(placed) - MOST_SHOWN} more; mend these first")
    raise SpecError("\n".join(said))


def show(value: object) -> str:
    """A value in at most 60 characters of one line, as one would write it in YAML."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple | list):
        text = "[" + ", ".join(show(item) for item in value[:8]) + (", ...]" if len(value) > 8 else "]")
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """What to do about an unknown word: the known one that is nearest, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(word[:100], known, 1)
    return f"did you mean {close[0]!r}?" if close else f"use {'one of ' if len(known) > 1 else ''}{', '.join(known)}"


def _name(tree: Tree, keys: Keys) -> str:
    """`arms.lora.rank`; a listed task, arm or claim goes by its name, another item by its number from 1."""
    text = ""
    for depth, key in enumerate(keys):
        shown = str(key) if isinstance(key, str) else f"[{key + 1}]"
        if isinstance(key, int) and depth == 1 and keys[0] in ("tasks", "arms", "claims"):
            item = tree.at(keys[:2])
            named = item.get("name", item.get("id")) if isinstance(item, dict) else item
            shown = named if isinstance(named, str) and re.fullmatch(r"[\w.-]{1,64}", named) else shown
        elif isinstance(key, str) and not (key.isprintable() and 0 < len(key) <= 64):
            shown = show(key)
        text += shown if shown.startswith("[") else f".{shown}"
    return text.removeprefix(".")
