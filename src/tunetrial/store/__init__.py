"""What a study leaves on disk: files are the truth, written whole, sealed, and checked before use.

    <study>/study.yaml  study.lock.json  locks/       the question, the pre-registration, and what it was before
            plan.json  packs.json
            trials/<id>/curve.jsonl  scores.parquet  artifact/  manifest.json  record.json
            ratings/                                  what raters said of the answers, if any did
            decision.json  report.html  report.md

Names that begin with a dot are leases and temporaries, and no part of the evidence.
`record.json` is written last: a trial folder that has one is complete, and one that has none resumes or restarts.
Every seal shows altered bytes, not a forger: whoever can write here can also seal anew.
"""

from tunetrial.store.frames import frames
from tunetrial.store.ledger import Opening, TestLedger, home
from tunetrial.store.retention import first_look, median_replicate, most_kept, replicates, surplus
from tunetrial.store.study import StudyFolder
from tunetrial.store.trial import TrialFolder, begin_together

__all__ = [
    "Opening",
    "StudyFolder",
    "TestLedger",
    "TrialFolder",
    "begin_together",
    "first_look",
    "frames",
    "home",
    "median_replicate",
    "most_kept",
    "replicates",
    "surplus",
]
