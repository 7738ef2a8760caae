"""Typos, other case and other white space in a text: what people write, with the same meaning.

Each function takes the text, the share of words (of gaps, for white space) to alter, the words to keep, casefolded, and
the random stream. Words with a digit, an address or a mark of code are kept too. Nothing is altered in scripts without
case, or in words with combining marks. A typo may by chance make another word.
"""

import random
import re
from collections.abc import Callable

WORD = re.compile(r"\S+")
KEPT = re.compile(r"[\d@#/\\<>{}\[\]=_`]|\w\.\w")
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SHORTEST = 4
ACRONYM = 5


def words(text: str) -> set[str]:
    """The words of a text, casefolded, as `kept` has them."""
    return set(re.findall(r"\w+", text.casefold()))


def misspell(text: str, rate: float, kept: frozenset[str], rng: random.Random) -> str:
    """Put one typo into that share of words of four letters or more: two letters swapped, or the next key pressed.

    The first letter stays, and no typo makes a word that is to be kept. Keys are those of a QWERTY keyboard; letters
    that are not on it are only swapped.
    """

    def change(word: str) -> str:
        typo = _typo(word, rng) if len(word) >= SHORTEST and rng.random() < rate else word
        return word if typo.casefold() in kept else typo

    return _each_word(text, kept, change)


def recase(text: str, rate: float, kept: frozenset[str], rng: random.Random) -> str:
    """Write that share of words in lower case, in capitals or with a capital, the same of the three in all of the text.

    Short words in capitals (US, IT) stay, unless the whole text is in capitals, and so do letters that have no single
    counterpart, such as ß.
    """
    style = rng.choice((str.lower, str.upper, str.capitalize))
    shouted = text.isupper()

    def change(word: str) -> str:
        if rng.random() >= rate or (word.isupper() and 1 < len(word) <= ACRONYM and not shouted):
            return word
        other = style(word)
        return other if len(other) == len(word) and other.casefold() == word.casefold() else word

    return _each_word(text, kept, change)


def respace(text: str, rate: float, kept: frozenset[str], rng: random.Random) -> str:
    """Double that share of the single spaces between words, and end the text in a space or a line break."""
    if not text.strip():
        return text
    wider = re.sub(r"(?<=\S) (?=\S)", lambda _: "  " if rng.random() < rate else " ", text)
    return wider + rng.choice((" ", "  ", "\n"))


def _each_word(text: str, kept: frozenset[str], change: Callable[[str], str]) -> str:
    """Change the letters of every word, without the marks around it, that is not kept."""

    def one(match: re.Match) -> str:
        word = match[0]
        core = word.strip("".join({mark for mark in word if not mark.isalnum()}))
        if not core.isalpha() or core.casefold() in kept or KEPT.search(word):
            return word
        return word.replace(core, change(core), 1)

    return WORD.sub(one, text)


def _typo(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    near = NEAR.get(word[at].lower(), "")
    if near and rng.random() < 0.5:
        key = rng.choice(near)
        return word[:at] + (key.upper() if word[at].isupper() else key) + word[at + 1 :]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _neighbours() -> dict[str, str]:
    """The keys that touch each key: beside it, and in the rows above and below, which are set off by half a key."""
    near: dict[str, str] = {}
    for row, keys in enumerate(ROWS):
        for at, key in enumerate(keys):
            places = [(row, at - 1), (row, at + 1), (row - 1, at), (row - 1, at + 1), (row + 1, at - 1), (row + 1, at)]
            near[key] = "".join(ROWS[r][a] for r, a in places if 0 <= r < len(ROWS) and 0 <= a < len(ROWS[r]))
    return near


NEAR = _neighbours()
