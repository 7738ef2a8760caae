"""What a process loads: heavy libraries only where they are needed, and without looking for garbage meanwhile."""

import gc
import subprocess
import sys

import pytest

from tunetrial.core.loading import load

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "sklearn",
    "pandas",
    "scipy.stats",
    "scipy.optimize",
}
HEAVY |= {"pyarrow", "matplotlib", "httpx", "rich", "jsonschema"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "modules",
    [
        "tunetrial.trial.worker, tunetrial.engine.sim",
        "tunetrial.trial.waves, tunetrial.trial.conclusion",
        "tunetrial.trial.forecast, tunetrial.trial.devices",
    ],
)
def test_a_simulators_worker_and_the_coordinator_load_no_heavy_library(modules):
    loaded = loaded_by(f"import {modules}")
    assert "numpy" in loaded
    assert not HEAVY & loaded


@pytest.mark.slow
def test_a_torch_worker_loads_nothing_that_only_some_arms_need():
    loaded = loaded_by(
        "import tunetrial.trial.worker\nfrom tunetrial.core.loading import load\nload('tunetrial.engine.torch_engine')"
    )
    assert {"torch", "transformers"} <= loaded
    assert not {"peft", "bitsandbytes", "sklearn", "pandas", "datasets", "matplotlib"} & loaded


def test_a_module_is_loaded_without_collections_and_is_left_out_of_later_ones():
    code = (
        "import gc; from tunetrial.core.loading import load; seen = []; "
        "gc.callbacks.append(lambda *told: seen.append(told)); "
        "assert load('tunetrial.spec').__name__ == 'tunetrial.spec' and not seen; "
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["True"] * 2


def test_what_is_loaded_already_freezes_nothing_more_and_a_failure_leaves_collections_on():
    frozen = gc.get_freeze_count()
    assert load("json").__name__ == "json"
    with pytest.raises(ImportError):
        load("tunetrial.no_such_module")
    assert gc.get_freeze_count() == frozen and gc.isenabled()


def test_what_checks_a_record_is_built_when_one_is_made():
    code = (
        "from tunetrial.core.evidence import TrialRecord; from tunetrial.core.study import Arm; "
        "print(Arm.__pydantic_complete__); Arm(name='a', method='full'); "
        "print(Arm.__pydantic_complete__, TrialRecord.__pydantic_complete__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["False", "True", "False"]
