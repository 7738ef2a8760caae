"""A version of the registry as one of an MLflow model registry: its files, what it says of itself, its aliases.

    export(version, "sqlite:///mlflow.db", aliases=("champion",))

The files are logged as artifacts of a run of their own, so that any MLflow server can keep them; nothing is changed
here, and what is promoted or rolled back later is not followed.
"""

from collections.abc import Sequence

from tunetrial.core.errors import ConfigError, StoreError
from tunetrial.core.records import Record
from tunetrial.ship.versions import Version

EXPERIMENT, FOLDER, CONTENT = "tunetrial", "model", "tunetrial.content"


class Exported(Record):
    """Where a version went: MLflow's own number of it, and the run that has its files."""

    name: str
    version: int
    uri: str
    run: str
    mlflow_version: str
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        aliases = f", {', '.join(self.aliases)}" if self.aliases else ""
        return f"{self.name}@{self.version} is version {self.mlflow_version} of {self.name} in {self.uri}{aliases}"


def export(version: Version, uri: str, *, aliases: Sequence[str]) -> Exported:
    """Register a version, whose files were checked, with the MLflow registry at `uri`.

    Raises:
        ConfigError: MLflow is not installed.
        StoreError: The registry cannot be reached or refuses it, or has this very content already.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        got = "got no module mlflow"
        raise ConfigError(f"--mlflow: needs MLflow, {got}; pip install mlflow") from None
    try:
        return _export(MlflowClient(tracking_uri=uri, registry_uri=uri), version, uri, aliases)
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise StoreError(f"{uri}: MLflow refuses it, got {said}; see to that and run again") from None


def _export(client: object, version: Version, uri: str, aliases: Sequence[str]) -> Exported:
    name, said = version.name, version.shipped
    if name not in {one.name for one in client.search_registered_models(f"name = '{name}'")}:
        client.create_registered_model(name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(CONTENT) == version.content:
            got = f"got {name}@{version.version}, its version {known.version}"
            raise StoreError(f"{uri}: has this content already, {got}; export another version")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run = client.create_run(number, run_name=f"{name}@{version.version}")
    client.log_artifacts(run.info.run_id, str(version.folder), FOLDER)
    client.set_terminated(run.info.run_id)
    told = {field: str(value) for field, value in said.model_dump(mode="json", exclude={"chain"}).items()}
    chain = "not tried" if said.chain.passed is None else "passed" if said.chain.passed else "failed"
    tags = {CONTENT: version.content, "tunetrial.chain": chain} | {f"tunetrial.{k}": v for k, v in told.items()}
    source = f"{run.info.artifact_uri}/{FOLDER}"
    made = client.create_model_version(name, source, run_id=run.info.run_id, tags=tags)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, made.version)
    stated = {"run": run.info.run_id, "mlflow_version": str(made.version), "aliases": tuple(aliases)}
    return Exported(name=name, version=version.version, uri=uri, **stated)
