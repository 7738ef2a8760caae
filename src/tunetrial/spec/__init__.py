"""Study files: YAML in, a `Study` with every default filled in out, and back. The only reader of study files.

from tunetrial import spec
study = spec.read(Path("study.yaml"))
print(spec.write(study))                       # the same study, nothing left unsaid
"""

from pathlib import Path

from tunetrial.core.errors import SpecError
from tunetrial.core.study import Study
from tunetrial.spec.explain import explain
from tunetrial.spec.faults import refuse, show
from tunetrial.spec.form import StudyForm, json_schema
from tunetrial.spec.resolve import resolve
from tunetrial.spec.text import read_text, read_tree
from tunetrial.spec.write import to_yaml

__all__ = ["json_schema", "parse", "read", "write"]


def read(path: str | Path) -> Study:
    """Read a study file.

    Paths inside are kept as written: they are relative to the file's folder. Nothing but this file is opened, and a
    JSON Schema that it names, which becomes part of the study.

    Raises:
        SpecError: The file cannot be read, or is not a study; up to five faults, each a line of its own with file,
            line, field, what is wrong and what to do.
    """
    where = str(path) if str(path).isprintable() else show(str(path))
    return parse(read_text(Path(path), where), where, root=Path(path).parent)


def parse(text: str, where: str = "study.yaml", *, root: Path = Path()) -> Study:
    """Read a study from text; `where` names it in messages, and a schema that it names is looked for in `root`.

    Raises:
        SpecError: As `read`.
    """
    tree = read_tree(text, where)
    refuse(where, tree, explain(tree))
    study, faults = resolve(StudyForm.model_validate(tree.value, strict=True), root)
    refuse(where, tree, faults)
    return study


def write(study: Study) -> str:
    """Write a study as YAML that reads back as the same study, defaults spelled out.

    Raises:
        SpecError: The study is not one that a file can hold: made by hand, and refused by `parse`.
    """
    text = to_yaml(study)
    if parse(text, "study") != study:
        raise SpecError("study: does not read back as it was, got settings that differ; build it with spec.parse")
    return text
