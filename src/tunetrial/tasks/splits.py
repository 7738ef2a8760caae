"""Splits: drawn without a seed from what the rows say, and kept apart."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tunetrial.core.evidence import Example
from tunetrial.core.records import digest

Examples = tuple[Example, ...]


def draw(examples: Sequence[Example], share: float, *, group: Callable[[Example], str]) -> tuple[Examples, Examples]:
    """Part off about a share of the examples; returns the rest and the part, both in the given order.

    Whole groups go to one side. Label by label (a group has that of most of its examples; numbers are one stratum)
    groups are taken in the order of a digest of their name, as long as the share of the labels so far is overshot by
    no more than half a group, and no more than half of a label's examples leave. Hence neither a seed nor the order
    of the rows matters, the same rows always part in the same way, and a label that leads groups keeps half of them.
    """
    members: dict[str, list[Example]] = {}
    for example in examples:
        members.setdefault(group(example), []).append(example)
    strata: dict[str, list[str]] = {}
    for name in sorted(members, key=digest):
        strata.setdefault(_stratum(members[name]), []).append(name)
    taken: set[str] = set()
    wanted, got = 0.0, 0
    for names in strata.values():
        size_of = {name: len(members[name]) for name in names}
        stratum = sum(size_of.values())
        wanted, left = wanted + share * stratum, stratum / 2
        for name, size in size_of.items():
            if got + size / 2 <= wanted and size <= left:
                taken.add(name)
                got, left = got + size, left - size
    return _without(examples, lambda e: group(e) in taken), _without(examples, lambda e: group(e) not in taken)


def drop_repeats(examples: Sequence[Example]) -> tuple[Examples, int, int]:
    """Keep the first of equal prompts; returns the kept, how many fell, and how many of these had another target."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(normal(example.prompt), example)
    kept = tuple(first.values())
    conflicts = sum(example.target != first[normal(example.prompt)].target for example in examples)
    return kept, len(examples) - len(kept), conflicts


def drop_shared(examples: Sequence[Example], others: Iterable[Example]) -> tuple[Examples, int, int]:
    """Drop what has the prompt of one of the others; returns as `drop_repeats`."""
    theirs = {normal(example.prompt): example.target for example in others}
    kept = _without(examples, lambda e: normal(e.prompt) in theirs)
    conflicts = sum(theirs.get(normal(e.prompt), e.target) != e.target for e in examples)
    return kept, len(examples) - len(kept), conflicts


def normal(prompt: str) -> str:
    """A prompt as duplicates are compared: Unicode composed (NFC), each run of white space one space. Case counts."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def _stratum(members: Sequence[Example]) -> str:
    counts = Counter(example.target for example in members if isinstance(example.target, str))
    return max(sorted(counts), key=counts.__getitem__, default="")


def _without(examples: Sequence[Example], dropped: Callable[[Example], bool]) -> Examples:
    return tuple(example for example in examples if not dropped(example))
