"""A version handed to MLflow. MLflow itself stands at the boundary as a fake with the calls that are made of it; the
real one is asked where it is installed."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from shipped_folders import shipped
from tunetrial import cli
from tunetrial.ship.registry import Registry


class Refused(Exception):
    pass


class Client:
    """What of MlflowClient is asked, kept in a folder."""

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        assert tracking_uri == registry_uri
        if tracking_uri.startswith("http"):
            raise Refused("no such host\nor network")
        self.folder = Path(tracking_uri.removeprefix("file:"))

    names: list[str] = []
    made: list[SimpleNamespace] = []
    aliases: dict[str, str] = {}

    def search_registered_models(self, query):
        return [SimpleNamespace(name=name) for name in self.names if query == f"name = '{name}'"]

    def create_registered_model(self, name):
        self.names.append(name)

    def search_model_versions(self, query):
        return [one for one in self.made if query == f"name = '{one.name}'"]

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "7"

    def create_run(self, number, run_name):
        info = SimpleNamespace(run_id=f"run-{len(self.made)}", artifact_uri=str(self.folder / f"run-{len(self.made)}"))
        return SimpleNamespace(info=info)

    def log_artifacts(self, run_id, folder, into):
        shutil.copytree(folder, self.folder / run_id / into)

    def set_terminated(self, run_id):
        pass

    def create_model_version(self, name, source, run_id, tags):
        assert all(isinstance(value, str) for value in tags.values())
        version = SimpleNamespace(name=name, version=len(self.made) + 1, source=source, run_id=run_id, tags=tags)
        self.made.append(version)
        return version

    def set_registered_model_alias(self, name, alias, version):
        self.aliases[alias] = version


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch) -> Registry:
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    made = Registry.at()
    for number in (1, 2):
        made.add("mail", shipped(tmp_path / f"s{number}", b"%d" % number))
    made.promote("mail", "2")
    return made


@pytest.fixture
def mlflow(monkeypatch):
    fake, errors = ModuleType("mlflow"), ModuleType("mlflow.exceptions")
    fake.MlflowClient = type("Fresh", (Client,), {"names": [], "made": [], "aliases": {}})
    errors.MlflowException = Refused
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", errors)
    return fake.MlflowClient


def export(*words: object, status: int = 0) -> str:
    ran = CliRunner().invoke(cli.app, ["registry", "export", *map(str, words)])
    assert ran.exit_code == status, ran.output
    if status:
        assert len(ran.stderr.strip().splitlines()) == 1
    return ran.stderr if status else ran.stdout


def test_files_tags_and_aliases_go_along(registry, tmp_path, mlflow):
    found = json.loads(export("mail@champion", "--mlflow", f"file:{tmp_path / 'mlflow'}", "--json"))
    assert (found["version"], found["mlflow_version"], found["aliases"]) == (2, "1", ["champion"])
    (made,) = mlflow.made
    files = {path.name: path.read_bytes() for path in Path(made.source).iterdir()}
    assert files["adapter_model.safetensors"] == b"2" and made.run_id == found["run"]
    assert made.tags["tunetrial.arm"] == "lora" and made.tags["tunetrial.chain"] == "passed"
    assert made.tags["tunetrial.content"] == registry.find("mail", "2").content and mlflow.aliases == {"champion": 1}
    assert "mail@1 is version 2 of mail" in export("mail@1", "--mlflow", f"file:{tmp_path / 'mlflow'}")


def test_the_same_content_is_exported_once(tmp_path, mlflow):
    asked = ("mail@2", "--mlflow", f"file:{tmp_path / 'mlflow'}")
    export(*asked)
    assert "has this content already, got mail@2, its version 1; export another" in export(*asked, status=1)
    assert len(mlflow.made) == 1


def test_what_cannot_be_exported_is_one_line(registry, tmp_path, mlflow, monkeypatch):
    assert "MLflow refuses it, got no such host or network; see to that" in export(
        "mail@1", "--mlflow", "http://none", status=1
    )
    assert "no such version or alias" in export("mail@9", "--mlflow", "file:x", status=1)
    assert "give NAME@VERSION, such as mail@2" in export("mail", "--mlflow", "file:x", status=2)
    weights = registry.find("mail", "1").folder / "adapter_model.safetensors"
    weights.resolve().chmod(0o644)
    weights.resolve().write_bytes(b"other")
    assert "adapter_model.safetensors" in export("mail@1", "--mlflow", f"file:{tmp_path / 'mlflow'}", status=1)
    assert mlflow.made == []
    monkeypatch.setitem(sys.modules, "mlflow", None)
    said = "--mlflow: needs MLflow, got no module mlflow; pip install mlflow"
    assert said in export("mail@2", "--mlflow", "file:x", status=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MLflow's own
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_itself_takes_a_version(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlflow'}"
    assert json.loads(export("mail@champion", "--mlflow", uri, "--json"))["mlflow_version"] == "1"
    from mlflow import MlflowClient

    made = MlflowClient(tracking_uri=uri, registry_uri=uri).get_model_version_by_alias("mail", "champion")
    folder = Path(made.source.removeprefix("file://"))
    assert (folder / "adapter_model.safetensors").read_bytes() == b"2"
    assert "has this content already" in export("mail@2", "--mlflow", uri, status=1)
