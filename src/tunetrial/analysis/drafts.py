"""Claims drafted from Markdown or plain text: totals of tables, ratios of two cells, "500x smaller (4MB vs 2GB)".

What can be recomputed from one line or one table is drafted with its terms. Of what cannot ("3x faster", "17GB"), the
draft says what a person has to add. It reads patterns, not meaning: every draft wants a reader.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from tunetrial.analysis.claims import CHECKS, FITS
from tunetrial.core.claims import AnyClaim, Arithmetic, Matrix, Ratio, Share, Untestable
from tunetrial.core.quantities import NONE, SAID, TIMES, Said, read, said_of

LONGEST = 2000
_TOTAL = re.compile(r"(?:grand |sub)?(?:total|sum)\b", re.IGNORECASE)
_TOTAL_ALONE = re.compile(rf"(?:{_TOTAL.pattern}):?", re.IGNORECASE)
_RATE = re.compile(r"/|\b(?:per|each|an?)\b", re.IGNORECASE)
_RULE = re.compile(r"[\s:|]*-[\s:|-]*")
_FENCE = re.compile(r"\s{0,3}(```+|~~~)([^`]*)")
_PAIR = re.compile(r"\(([^()]{1,60}?)\s(?:vs\.?|versus|against|instead of)\s([^()]{1,60}?)\)")
_LESS = r"fewer|less|lower|smaller|reduc\w*|sav\w*|cheaper|shorter"
_MORE = r"more|higher|larger|longer|slower|greater|increase\w*"
_KINDS = (
    (re.compile(r"\d\s?(?:x|×)(?!\w)(?!\s?\d)"), "say what is compared with what: kind ratio, with `of` and `to`"),
    (re.compile(rf"%\s(?:\w+\s)?(?:{_LESS}|{_MORE})"), "say of what: kind share, with `part` and `whole`"),
    (
        re.compile(r"(?<![A-Za-z])p\s?[<>=]\s?\.?\d"),
        "give n and either t, means and SDs, or differences: kind statistic",
    ),
    (re.compile(r"±\s?\.?\d"), "say of how many runs: kind statistic"),
    (re.compile(r"\d\s?[KMGT]i?B(?![A-Za-z])"), "name model, method and device: kind size or memory"),
    (re.compile(r"\$\s?\d"), "give amounts and prices with their units: kind money"),
    (re.compile(r"\d\s?%"), "say what it rests on: kind share, measured or unsupported"),
)
_ALONE = re.compile(r"[+−-]?\d[\d.,]*")
_OPERATION = re.compile(r"\s*([+×*·])\s*")
_FIGURE = re.compile(r"(?<![\w.])\$?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?(?:\s?[A-Za-z%]+)?")
_BEFORE = re.compile(rf"(?<![\w.,$]){SAID.pattern}")
_FEWER = re.compile(rf"\s(?:\w+\s){{0,2}}?(?:{_LESS})", re.IGNORECASE)
_ANOTHER = re.compile(r"[,;:.!?+]|\band\b")


class Line(NamedTuple):
    number: int
    text: str


def draft(text: str, name: str) -> tuple[AnyClaim, ...]:
    """The claims of a text, in its order; places are `name:line`, lines counted from 1."""
    lines = [Line(number, _mended(line[:LONGEST])) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    kept = "".join(mark if mark.isprintable() and not mark.isspace() and mark != ":" else "-" for mark in name)
    document = kept[:80].strip("-") or "text"
    claims: list[AnyClaim] = []
    inside: set[int] = set()
    code = set(_coded(lines))
    for block in _tables(lines):
        inside |= {line.number for line in block}
        claims += _of_table(block, document)
    for line in lines:
        if line.number not in inside and not _ALONE.fullmatch(line.text.strip()):
            claims += _of_line(line, document, code=line.number in code)
    claims.sort(key=lambda claim: int(claim.at.rpartition(":")[2]))
    return tuple(_numbered(claims))


def _coded(lines: Iterable[Line]) -> Iterator[int]:
    """Numbers of the lines of code: those between fences the first of which names a language."""
    fence, code = "", False
    for line in lines:
        mark = _FENCE.fullmatch(line.text)
        if mark and not fence:
            fence, code = mark[1][:3], bool(mark[2].strip())
        elif mark and mark[1][:3] == fence and not mark[2].strip():
            fence, code = "", False
        elif code:
            yield line.number


def _numbered(claims: Sequence[AnyClaim]) -> Iterator[AnyClaim]:
    seen: dict[str, int] = {}
    for claim in claims:
        line = claim.at.rpartition(":")[2]
        seen[line] = seen.get(line, 0) + 1
        yield claim.model_copy(update={"id": f"line-{line}" + (f".{seen[line]}" if seen[line] > 1 else "")})


def _mended(line: str) -> str:
    """UTF-8 that was read as Mac Roman, put right; control characters as spaces."""
    try:
        line = line.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        pass
    return "".join(mark if mark.isprintable() else " " for mark in line)


def _tables(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Header and rows of each Markdown table, the rule between them left out."""
    rows: list[Line] = []
    for before, line in pairwise([Line(0, ""), *lines]):
        if rows and "|" in line.text:
            rows.append(line)
            continue
        if rows:
            yield rows
        begins = "|" in before.text and "|" in line.text and _RULE.fullmatch(line.text)
        rows = [before] if begins else []
    if rows:
        yield rows


def _cells(line: Line) -> list[str]:
    parts = re.split(r"(?<!\\)\|", line.text.strip().removeprefix("|").removesuffix("|"))
    return [part.replace("*", "").replace("`", "").strip() for part in parts]


def _of_table(block: Sequence[Line], document: str) -> Iterator[AnyClaim]:
    head, rows = _cells(block[0]), [(line, _cells(line)) for line in block[1:]]
    totals = [number for number, (_, cells) in enumerate(rows) if _TOTAL.match(cells[0])]
    alone = [number for number in totals if _TOTAL_ALONE.fullmatch(rows[number][1][0])]
    for total in (alone or totals)[:1]:
        table = _matrix(head, rows, total, document)
        yield from [table] if table is not None else _totals(head, rows, total, document)
    for line, cells in rows:
        yield from _of_row(line, cells, document)


def _matrix(head: Sequence[str], rows: Sequence[tuple[Line, list[str]]], total: int, document: str) -> Matrix | None:
    """A weighted matrix: a column of weights, columns of scores, and each of these again, weighted."""
    lowered = [title.lower() for title in head]
    weight = next((column for column, title in enumerate(lowered) if title in ("weight", "weights")), None)
    columns = {
        column: lowered.index(f"{title} weighted")
        for column, title in enumerate(lowered)
        if title and f"{title} weighted" in lowered
    }
    if weight is None or not columns or total == 0:
        return None
    line, sums = rows[total]
    try:
        names = {column: _name(head[column], column) for column in columns}
        parts = {_name(cells[0], number): cells for number, (_, cells) in enumerate(rows[:total])}
        scores = {names[column]: {name: float(cells[column]) for name, cells in parts.items()} for column in columns}
        found = {
            **_head(line, document),
            "kind": "matrix",
            "says": {names[column]: sums[weighted] for column, weighted in columns.items()},
            "weights": {name: cells[weight] for name, cells in parts.items()},
            "scores": scores,
        }
        weighed = len(parts) == total and all(map(_is_weight, found["weights"].values()))
        return Matrix.model_validate(found) if weighed else None
    except (ValueError, IndexError):
        return None


def _is_weight(cell: str) -> bool:
    """Percentages and parts of 1 add up to all there is; other weights need not."""
    said = read(cell)
    return said.unit == "%" or (not said.unit and "." in cell and said.value.high <= 1)


def _totals(
    head: Sequence[str], rows: Sequence[tuple[Line, list[str]]], total: int, document: str
) -> Iterator[AnyClaim]:
    """A total below numbers of one unit; words such as "instant" are left out of the sum."""
    line, sums = rows[total]
    for column in range(1, min(len(sums), len(head))):
        said = _amount(sums[column])
        cells = [cells[column] for _, cells in rows[:total] if column < len(cells)]
        above = [_amount(cell) for cell in cells]
        parts = {f"row{number}": part for number, part in enumerate(above, 1) if part is not None}
        unread = any(part is None and re.search(r"\d", cell) for part, cell in zip(above, cells, strict=True))
        if said is None or said.relation != "=" or said.unit in TIMES or unread or len(parts) < 2:
            continue
        if all(part.value.dimensions == said.value.dimensions for part in parts.values()):
            yield _summed(line, said, parts, document)


def _summed(line: Line, said: Said, parts: Mapping[str, Said], document: str) -> AnyClaim:
    """A sum; one that does not come out is wrong only of bytes, seconds or dollars in a row called a total, no more.

    A total of percentages may be their mean, and a "total batch size" the product of what stands above it.
    """
    given = {name: part.text for name, part in parts.items()}
    of = f"sum({', '.join(given)})"
    try:
        claim = Arithmetic(**_head(line, document), kind="arithmetic", says=said.text, of=of, given=given)
    except ValueError:
        return _unread(line, document, "add up fewer rows at a time: kind arithmetic")
    named = _TOTAL_ALONE.fullmatch(_cells(line)[0]) and said.value.dimensions != NONE
    if named or CHECKS[Arithmetic](claim).outcome in FITS:
        return claim
    return _unread(line, document, "say what the total is of: kind arithmetic")


def _of_row(line: Line, cells: Sequence[str], document: str) -> Iterator[AnyClaim]:
    """ "3x faster" or "+35.2%" beside two numbers of one unit; where these do not give it, a person must say why."""
    numbers = [found for found in map(_number, cells[1:]) if found is not None]
    for cell in cells[1:]:
        times = re.match(r"([\d.]+(?:\s?[-–]\s?[\d.]+)?)\s?[x×](?!\w)", cell)
        signed = re.match(r"[+−-]\s?[\d.]+\s?%", cell)
        if times is None and signed is None:
            continue
        written = times[0] if times else signed[0].replace(" ", "")
        said = _number(written)
        if said is None:
            continue
        pairs = [part for part in numbers if part.text != said.text and part.unit not in (*TIMES, "%")]
        alike = len(pairs) == 2 and pairs[0].value.dimensions == pairs[1].value.dimensions
        claim = _fitting(line, said, pairs, document) if alike else None
        yield claim or _unread(line, document, "say which numbers it is of: kind ratio or share")


def _fitting(line: Line, said: Said, pair: Sequence[Said], document: str) -> AnyClaim | None:
    """The reading of a row that makes it true, if one does: a draft condemns nothing on a guess."""
    head = _head(line, document)
    for a, b in ((pair[0], pair[1]), (pair[1], pair[0])):
        try:
            if said.unit == "%":
                claim: AnyClaim = Share(
                    **head, kind="share", says=said.text, part=a.text, whole=b.text, compared="more"
                )
            else:
                claim = Ratio(**head, kind="ratio", says=said.text, of=a.text, to=b.text)
            if CHECKS[type(claim)](claim).outcome in FITS:
                return claim
        except ValueError:
            continue
    return None


def _of_line(line: Line, document: str, *, code: bool) -> Iterator[AnyClaim]:
    """What a line says; the numbers of code are a program's, of which nothing is recomputed."""
    found = [] if code else [*_equations(line, document), *_compared(line, document)]
    yield from found
    if found:
        return
    for pattern, why in _KINDS:
        if pattern.search(line.text):
            yield _unread(line, document, why)
            return


def _equations(line: Line, document: str) -> Iterator[AnyClaim]:
    """ "3 tasks (A, B, C) × 2 methods × 3 seeds = 18 models": sums or products, with what they come to."""
    text = re.sub(r"\([^()]*\)", "", line.text)
    left, equals, right = text.partition("=")
    if not equals or "=" in right:
        return
    match = re.match(rf"[\s~≈*]*({_FIGURE.pattern})(?![\w^]|[.,]\d|\s*[-+×*·/(%\d^])", right)
    left = re.sub(r"^[\s*•-]*[*•-]\s+", "", left).rpartition(":")[2]
    terms = _OPERATION.split(left.strip(" *•"))
    values = [_FIGURE.fullmatch(term.strip()) for term in terms[::2]]
    if (
        match is None
        or len(values) < 2
        or not all(values)
        or len(set(terms[1::2]) & {"+"})
        and len(set(terms[1::2])) > 1
    ):
        return
    sign = "+" if terms[1] == "+" else "*"
    given = {f"n{number}": _plain(value[0]) for number, value in enumerate(values, 1)}
    of = f" {sign} ".join(given)
    try:
        claim = Arithmetic(**_head(line, document), kind="arithmetic", says=_plain(match[1]), of=of, given=given)
    except ValueError:
        return
    if "do not go together" not in (working := CHECKS[Arithmetic](claim).working) and "comes to" not in working:
        yield claim


def _compared(line: Line, document: str) -> Iterator[AnyClaim]:
    """ "500x smaller (4MB vs 2GB)", "over 99% fewer (4K vs 1B)"."""
    begin = 0
    for pair in _PAIR.finditer(line.text):
        before, begin = line.text[begin : pair.start()], pair.end()
        a, b = (_number(part.replace("*", "").strip()) for part in pair.groups())
        said = _claimed(before)
        if said is None or a is None or b is None or a.value.dimensions != b.value.dimensions:
            continue
        small, large = (each.text for each in sorted((a, b), key=lambda said: said.value.low))
        head = _head(line, document)
        try:
            if said.unit == "%":
                yield Share(**head, kind="share", says=said.text, part=small, whole=large, compared="fewer")
            else:
                yield Ratio(**head, kind="ratio", says=said.text.replace("×", "x"), of=large, to=small)
        except ValueError:
            continue


def _claimed(before: str) -> Said | None:
    """The last "over 500x" or "99% fewer" before a bracket, unless what stands between may be what is in it."""
    found = None
    for match in _BEFORE.finditer(before):
        rest = before[match.end() :]
        try:
            said = said_of(match)
        except ValueError:
            continue
        if said.unit in ("x", "×") or (said.unit == "%" and _FEWER.match(rest)):
            found = None if said.value.low < 0 or _ANOTHER.search(rest) else said
    return found


def _amount(text: str) -> Said | None:
    """A number of which a total may be made: none by the hour, or of each."""
    return None if _RATE.search(text) else _number(text)


def _plain(text: str) -> str:
    """A number with its unit, or without a word that is none."""
    try:
        return read(text).text
    except ValueError:
        return re.sub(r"\s?[A-Za-z%]+$", "", text)


def _number(text: str) -> Said | None:
    """A number that a text begins with and, but for words of no unit, is; None where it is something else."""
    match = SAID.match(text)
    if match is None or (rest := text[match.end() :].strip()) and not re.fullmatch(r"[^\d%$]*", rest):
        return None
    try:
        return said_of(match)
    except ValueError:
        return None


def _name(title: str, number: int) -> str:
    name = re.sub(r"\W+", "_", title.lower(), flags=re.ASCII).strip("_")[:60]
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else f"row_{number}"


def _unread(line: Line, document: str, why: str) -> Untestable:
    return Untestable(**_head(line, document), kind="untestable", why=f"for a reader: {why}")


def _head(line: Line, document: str) -> dict[str, str]:
    quote = " ".join(line.text.split())
    return {"id": "draft", "at": f"{document}:{line.number}", "quote": quote[:160] or "-"}
