"""Splits: drawn without a seed from what the rows say, and kept apart."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tunetrial.core.evidence import Example
from tunetrial.core.records import canonical, digest

Examples = tuple[Example, ...]
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2


def draw(
    examples: Sequence[Example],
    share: float,
    *,
    group: Callable[[Example], str],
    by_label: bool = True,
    order: Callable[[str], str] = digest,
) -> tuple[Examples, Examples]:
    """Part off about a share of the examples; returns the rest and the part, both in the given order.

    Whole groups go to one side. Label by label (a group has that of most of its examples; numbers, and texts that are
    no labels, are one stratum) groups are taken in the `order` of a digest of their name, as long as the share of the
    labels so far is overshot by no more than half a group, and no more than half of a label's examples leave. Hence
    neither a seed nor the order of the rows matters, the same rows always part in the same way, and a label that leads
    groups keeps half of them.
    """
    members: dict[str, list[Example]] = {}
    for example in examples:
        members.setdefault(group(example), []).append(example)
    strata: dict[str, list[str]] = {}
    for name in sorted(members, key=order):
        strata.setdefault(stratum(members[name]) if by_label else "", []).append(name)
    taken: set[str] = set()
    wanted, got = 0.0, 0
    for names in strata.values():
        size_of = {name: len(members[name]) for name in names}
        rows = sum(size_of.values())
        wanted, left = wanted + share * rows, rows / 2
        for name, size in size_of.items():
            if got + size / 2 <= wanted and size <= left:
                taken.add(name)
                got, left = got + size, left - size
    return _without(examples, lambda e: group(e) in taken), _without(examples, lambda e: group(e) not in taken)


def drop_repeats(examples: Sequence[Example], *, several: bool = False) -> tuple[Examples, int, int]:
    """Keep the first of equal prompts; returns the kept, how many fell, and how many of these had another target.

    With `several` a prompt may have several targets, as a text has several good translations: equal are then examples
    whose targets are too.
    """
    first: dict[tuple[str, object], Example] = {}
    keys = [(asked(example), example.target if several else None) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        first.setdefault(key, example)
    conflicts = sum(example.target != first[key].target for key, example in zip(keys, examples, strict=True))
    return tuple(first.values()), len(examples) - len(first), conflicts


def drop_shared(examples: Sequence[Example], others: Iterable[Example]) -> tuple[Examples, int, int]:
    """Drop what has the prompt of one of the others; returns as `drop_repeats`."""
    theirs: dict[str, set[object]] = {}
    for other in others:
        theirs.setdefault(asked(other), set()).add(other.target)
    prompts = [asked(example) for example in examples]
    kept = tuple(example for example, key in zip(examples, prompts, strict=True) if key not in theirs)
    conflicts = sum(e.target not in theirs.get(key, {e.target}) for e, key in zip(examples, prompts, strict=True))
    return kept, len(examples) - len(kept), conflicts


def join_prompts(examples: Sequence[Example]) -> Examples:
    """Put the examples of one prompt into the cluster of the first: they are no independent evidence."""
    first: dict[str, str] = {}
    return tuple(replace(e, cluster=first.setdefault(asked(e), e.cluster)) for e in examples)


def asked(example: Example) -> str:
    """What a model is asked, as duplicates are compared: the prompt, or all turns before the answer. Tools do not tell
    them apart: the same turns beside other tools are mostly answered alike."""
    if example.messages is None:
        return normal(example.prompt)
    turns = json.loads(example.messages)[:-1]
    return canonical([{**turn, "content": normal(turn["content"])} for turn in turns])


def normal(prompt: str) -> str:
    """A prompt as duplicates are compared: Unicode composed (NFC), each run of white space one space. Case counts."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def stratum(members: Sequence[Example]) -> str:
    """The label of most of a group's examples; empty for numbers."""
    counts = Counter(example.target for example in members if isinstance(example.target, str))
    return max(sorted(counts), key=counts.__getitem__, default="")


def _without(examples: Sequence[Example], dropped: Callable[[Example], bool]) -> Examples:
    return tuple(example for example in examples if not dropped(example))
