"""The shape of the package: levels, one training loop, torch in its place, sizes."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "tunetrial"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.parent.parent
TOOLS = sorted([*ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py")])


def test_imports_go_to_lower_levels_only():
    run = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=PACKAGE.parent.parent, capture_output=True)
    assert run.returncode == 0, run.stdout.decode()


def test_backward_occurs_in_one_file_at_most():
    assert len([path for path in SOURCES if ".backward(" in path.read_text()]) <= 1


def test_files_and_functions_stay_short():
    for path in SOURCES + TOOLS:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_every_third_party_import_is_declared():
    project = tomllib.loads((PACKAGE.parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["eval"] + extras["lm-eval"] + extras["gguf"] + extras["gpu"]
    declared += extras["rate"]
    imported_as = {"MarkupSafe": "markupsafe", "PyYAML": "yaml", "rouge-score": "rouge_score", "lm-eval": "lm_eval"}
    imported_as |= {"scikit-learn": "sklearn", "nvidia-ml-py": "pynvml"}
    names = {imported_as.get(name := line.split(">")[0], name) for line in declared}
    names |= set(sys.stdlib_module_names) | {"tunetrial"}
    names.add("triton")  # comes with torch's CUDA builds, and is asked for where it is
    names.add("mlflow")  # a user's own, asked for where it is
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.split(".")[0] for name in found} <= names, path


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, tunetrial, tunetrial.models, tunetrial.tasks; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "peft", "numpy"} & set(loaded)
