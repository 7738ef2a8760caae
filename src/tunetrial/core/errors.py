"""Every error that tunetrial raises on purpose.

    TunetrialError
    ├── SpecError        a study file cannot be read as a study
    ├── IntegrityError   a file is missing, truncated or altered against its manifest
    ├── ModelError       a base model cannot be used as named
    ├── DataError        a task, split or row cannot be used as named
    │   └── RunawayError a template takes more time or memory on a row than any prompt is worth
    ├── ConfigError      what is asked for at a verb or in a plan is not known, or makes no sense: a device, a unit
    ├── EvidenceError    scores are missing, unpaired or too few for what is asked of them
    ├── EndpointError    a server that is asked (a judge, llama.cpp) refuses, cannot be reached, or dies
    ├── StoreError       a study folder cannot be used now: held by another process, full, or of another study
    ├── DivergedError    a trial's loss, gradient or weights are no longer finite: a result, not a fault
    └── DoesNotFitError  a trial needs more memory than there is: a result, not a fault

A message is one line: `where: what is wrong, got value; what to do`. To add an error, subclass
TunetrialError only if a caller would catch it apart from the others, and draw it above.
"""


class TunetrialError(Exception):
    """Base of all: catch it to tell bad input or damaged files from a fault in tunetrial."""


class SpecError(TunetrialError):
    """A study file holds something that is not a study."""


class IntegrityError(TunetrialError):
    """A file does not hold the bytes that its manifest promises."""


class ModelError(TunetrialError):
    """A base model is unknown, incomplete or in a format that is refused."""


class DataError(TunetrialError):
    """A task, split or row is unknown or malformed."""


class RunawayError(DataError):
    """A template does not come to an end on a row; trying the others would take as long again."""


class ConfigError(TunetrialError):
    """A device, price or quantity that is not known, or units that do not go together."""


class EvidenceError(TunetrialError):
    """Scores are missing, unpaired or too few for the interval or test asked for."""


class EndpointError(TunetrialError):
    """A server that is asked does not answer; what a judge answered before is kept, so that a call goes on later."""


class StoreError(TunetrialError):
    """A study folder is held by another process, cannot be written, or belongs to another study."""


class DivergedError(TunetrialError):
    """A trial's numbers are no longer finite; it is recorded as diverged and counted as a failure."""


class DoesNotFitError(TunetrialError):
    """A trial does not fit in memory even one example at a time; it is recorded as infeasible."""
