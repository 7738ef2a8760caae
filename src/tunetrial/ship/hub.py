"""Pushing a shipped folder to the Hugging Face Hub, private unless asked otherwise."""

from pathlib import Path

from tunetrial.core.errors import ConfigError, ModelError
from tunetrial.models.hub import Repository, explain, is_network


def check(name: str) -> Repository:
    """Check a repository's name and that a token is set, before anything is written.

    Raises:
        ConfigError: It is no name, or there is no token.
    """
    from huggingface_hub import constants, get_token

    repository = Repository.parse(name, "model")
    if repository is None or repository.revision is not None:
        raise ConfigError(f"--push-to-hub: not a name of a repository, got {name[:80]!r}; write org/name")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push-to-hub: HF_HUB_OFFLINE is set, got {name}; unset it where there is a network")
    if get_token() is None:
        raise ConfigError(f"--push-to-hub: no token is set, got {name}; set HF_TOKEN to one that may write")
    return repository


def push(folder: Path, repository: Repository, *, public: bool) -> str:
    """Make the repository, which must be new so that its privacy is as asked, and upload the folder; say where it is.

    Raises:
        ModelError: The Hub refuses, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, kept = HfApi(), f"the folder is kept at {folder}"
    try:
        api.create_repo(repository.repo, repo_type="model", private=not public, exist_ok=False)
        api.upload_folder(repo_id=repository.repo, folder_path=folder, commit_message="Shipped by tunetrial")
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            what = f"the Hub has such a repository already, got {repository.repo!r}; push to a new name"
        else:
            what = explain(error, repository)
        raise ModelError(f"--push-to-hub: {what}; {kept}") from None
    except Exception as error:
        if not (is_network(error) or isinstance(error, OSError)):
            raise
        what = f"the Hub cannot be reached, got {type(error).__name__}; check the network and push again"
        raise ModelError(f"--push-to-hub: {what}; {kept}") from None
    return repository.address
