"""The registry as people read it: tables of at most 80 columns; nothing is computed here but sizes in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunetrial.ship.artifacts import Swept
from tunetrial.ship.shipped import Fidelity
from tunetrial.ship.versions import Entry, Event, Listing, Move, Version

if TYPE_CHECKING:  # what promotes need not wait for statistics to load
    from tunetrial.ship.versus import Offline, Online

COLUMNS = 80
LATEST = 10


def size(count_bytes: int) -> str:
    """Bytes in decimal units, as disks are sold: 1,234 B, 12.3 MB."""
    if count_bytes < 10_000:
        return f"{count_bytes:,} B"
    value, unit = count_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def listing(found: Listing) -> str:
    """Names with their aliases, then what all of it takes."""
    if not found.entries:
        return f"no versions yet in {found.folder}"
    rows = [
        [one.name, str(len(one.versions)), size(sum(v.bytes for v in one.versions)), _aliases(one) or "none"]
        for one in found.entries
    ]
    count = sum(len(one.versions) for one in found.entries)
    saved = f"{size(found.stored_bytes)} stored, each file once; {size(found.apart_bytes)} as {count} separate folders"
    lines = [*_table(["name", "versions", "size", "aliases"], rows), "", saved]
    if found.adapters:
        own = sum(v.bytes for one in found.entries for v in one.versions if v.shipped.base_bytes is not None)
        beside = f"adapters: {found.adapters}, {size(own)} and {size(found.bases_bytes)} for their bases"
        lines.append(f"{beside}; {size(found.full_bytes)} as full models")
    return "\n".join(lines)


def entry(found: Entry) -> str:
    """Versions of a name, newest first, and the end of its history."""
    rows = [
        [str(v.version), v.shipped.format, v.shipped.arm, v.shipped.verdict, _chain(v.shipped.chain), size(v.bytes)]
        for v in reversed(found.versions)
    ]
    table = _table(["version", "format", "arm", "verdict", "chain", "size"], rows)
    past = [f"  {one.at}  {_event(one)}" for one in found.history[-LATEST:]]
    earlier = len(found.history) - len(past)
    head = f"history, the last {len(past)} of {len(found.history)}:" if earlier else "history:"
    return "\n".join([f"{found.name}: {_aliases(found) or 'no aliases'}", *table, "", head, *past])


def version(found: Version, aliases: Sequence[str]) -> str:
    """All of one version."""
    said = found.shipped
    rows = {
        "format": said.format,
        "arm": said.arm,
        "verdict": said.verdict,
        "chain": _chain(said.chain),
        "trial": said.trial,
        "study": said.study,
        "base": said.base_fingerprint,
        "added": found.at,
        "folder": str(found.folder),
    }
    head = f"{found.name}@{found.version}" + (f" ({', '.join(aliases)})" if aliases else "")
    files = [[one.path, size(one.bytes), one.sha256[:16]] for one in found.files]
    total = f"{len(found.files)} files, {size(found.bytes)}:"
    lines = [f"  {name:<8} {value}" for name, value in rows.items()]
    return "\n".join([head, *lines, total, *_table(["file", "size", "SHA-256"], files)])


def added(found: Version, is_new: bool) -> str:
    """What `add` did, and what it did not look at."""
    what = "added" if is_new else "was there already, the same files"
    return f"{found.name}@{found.version} {what}: {size(found.bytes)} in {len(found.files)} files"


def move(found: Move) -> str:
    """What `promote` and `rollback` did."""
    where = f"{found.name}: {found.alias} is version {found.version}"
    if not found.moved:
        return f"{where}, as it was\n{found.folder}"
    return f"{where}, {f'before: {found.before}' if found.before else 'its first'}\n{found.folder}"


def swept(found: Swept) -> str:
    return f"{found.files} files of no version removed, {size(found.bytes)}"


def offline(found: "Offline") -> str:
    """A paired comparison in a few lines."""
    one = found.comparison
    of = f"{one.n_examples} items" + (f" in {one.n_clusters} clusters" if one.n_clusters < one.n_examples else "")
    of_runs = ["scores are of the runs as trained, not of merged or quantised files"] if found.as_trained else []
    return "\n".join(
        [
            f"{one.candidate} against {one.reference}: {one.words}",
            f"difference {one.effect:+.4g} [{one.low:+.4g}, {one.high:+.4g}] at {100 * one.level:g} %, "
            f"margin {one.margin:g}",
            f"paired on {of}, which show {one.mde:.4g} or more with 80 % power",
            *of_runs,
            f"openings of these items so far: {found.times_opened}",
        ]
    )


def online(found: "Online") -> str:
    """What a log of outcomes says, and whether to go on."""
    sides = (("reference", found.reference), ("candidate", found.candidate))
    rows = [[side, str(one.version), f"{one.outcomes:,}", f"{one.mean:.4g}"] for side, one in sides]
    left = [f"{found.other_outcomes} outcomes of other versions left out"] if found.other_outcomes else []
    return "\n".join(
        [
            f"{found.name}@{found.candidate.version} against @{found.reference.version}: {found.words}",
            *_table(["", "version", "outcomes", "mean"], rows),
            f"difference of {found.pairs:,} pairs {found.effect:+.4g} [{found.low:+.4g}, {found.high:+.4g}], "
            f"margin {found.margin:g}",
            f"{'STOP' if found.stop else 'GO ON'}: {found.why}",
            *left,
        ]
    )


def _aliases(found: Entry) -> str:
    return ", ".join(f"{alias} {number}" for alias, number in found.aliases.items())


def _chain(chain: Fidelity) -> str:
    if chain.passed is None:
        return "not tried"
    return "passed" if chain.passed else f"FAILED: {chain.first_break}" if chain.first_break else "FAILED"


def _event(one: Event) -> str:
    return f"add {one.version}" if one.alias is None else f"{one.event} {one.alias} to {one.version}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns two spaces apart; the longest is cut until a line fits."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    while sum(widths) + 2 * (len(head) - 1) > COLUMNS:
        widths[widths.index(max(widths))] -= 1
    cut = [
        [text if len(text) <= width else f"{text[: width - 1]}…" for text, width in zip(row, widths, strict=True)]
        for row in cells
    ]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cut]
