"""Every error that tunetrial raises on purpose.

    TunetrialError
    ├── IntegrityError   a file is missing, truncated or altered against its manifest
    ├── ModelError       a base model cannot be used as named
    ├── DataError        a task, split or row cannot be used as named
    └── EvidenceError    scores are missing, unpaired or too few for what is asked of them

A message is one line: `where: what is wrong, got value; what to do`. To add an error, subclass
TunetrialError only if a caller would catch it apart from the others, and draw it above.
"""


class TunetrialError(Exception):
    """Base of all: catch it to tell bad input or damaged files from a fault in tunetrial."""


class IntegrityError(TunetrialError):
    """A file does not hold the bytes that its manifest promises."""


class ModelError(TunetrialError):
    """A base model is unknown, incomplete or in a format that is refused."""


class DataError(TunetrialError):
    """A task, split or row is unknown or malformed."""


class EvidenceError(TunetrialError):
    """Scores are missing, unpaired or too few for the interval or test asked for."""
