"""Random streams: every use of chance in a trial has its own, derived from the trial's seed and a name."""

import hashlib


def stream(seed: int, name: str) -> int:
    """The seed of one stream: the first 63 bits of SHA-256("seed:name"), alike in every arm of a pair."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) >> 1
