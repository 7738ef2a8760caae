"""The wheel holds the model and the data, and works away from the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*words: object, **settings) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_everything_and_installs(tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = [path for path in (ROOT / "src/tunetrial").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {str(path.relative_to(ROOT / "src")) for path in shipped} <= held
    assert not [name for name in held if name.startswith(("tools", "sources", "tests"))]
    assert wheel.stat().st_size < 30e6

    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tunetrial import models, tasks\n"
        "print(models.resolve('embedded').folder)\n"
        "print(sum(len(tasks.read_rows(task, split)) for task in tasks.BUILT_IN.values() for split in task.splits))"
    )
    folder, rows = run(sys.executable, "-I", "-c", code, tmp_path / "site", cwd=tmp_path).splitlines()
    assert Path(folder) == tmp_path / "site/tunetrial/embedded/base"
    assert int(rows) == 530 + 900 + 900
