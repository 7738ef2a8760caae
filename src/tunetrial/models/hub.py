"""Files of a Hugging Face Hub repository, at one commit, through the Hub's own client and cache.

`HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN` mean what they always mean. A commit that is in the cache
needs no network. No message shows a token, or what the Hub answered.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
OF = {"model": "", "dataset": "datasets/"}


@dataclass(frozen=True)
class Repository:
    """A repository by its id, `org/name` or `org/name@revision`: a branch, a tag or a commit."""

    kind: Literal["model", "dataset"]
    repo: str
    revision: str | None

    @classmethod
    def parse(cls, text: str, kind: Literal["model", "dataset"]) -> "Repository | None":
        """Read an id; None for what cannot be one."""
        found = ID.fullmatch(text)
        if found is None or ".." in text:
            return None
        return cls(kind, found["repo"], found["revision"])

    @property
    def address(self) -> str:
        """Where a person finds it."""
        return f"https://huggingface.co/{OF[self.kind]}{self.repo}"


def fetch(repository: Repository, patterns: Sequence[str], refuse: Callable[[str], Exception]) -> tuple[Path, str]:
    """Download the files that match, unless they are cached; returns their folder and the commit's SHA.

    Without a network the cache serves, also for a branch: then at the commit that the branch had when it was fetched.

    Args:
        refuse: Makes the error to raise of "what is wrong, got value; what to do".
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    asked = {"repo_type": repository.kind, "revision": repository.revision, "allow_patterns": list(patterns)}
    try:
        try:
            folder = snapshot_download(repository.repo, **asked)
        except LocalEntryNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, HfHubHTTPError) or not is_network(error):
                raise
            folder = snapshot_download(repository.repo, local_files_only=True, **asked)
    except (OSError, ValueError) as error:
        raise refuse(explain(error, repository)) from None
    return Path(folder), Path(folder).name


def listed(repository: Repository, commit: str) -> list[str]:
    """Names of all files of a commit; none where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repository.repo, repo_type=repository.kind, revision=commit)
    except Exception as error:
        if is_network(error) or isinstance(error, OSError):
            return []
        raise


def explain(error: Exception, repository: Repository) -> str:
    """What went wrong, and what to do about it, in one line without the Hub's own words."""
    from huggingface_hub import constants, errors

    kind, got = repository.kind, f"got {repository.repo!r}"
    if isinstance(error, errors.GatedRepoError):
        return f"the {kind} is gated, {got}; accept its terms at {repository.address}, then {_token_advice()}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no such {kind}, or it is private, {got}; mend the name, or {_token_advice()}"
    if isinstance(error, errors.RevisionNotFoundError):
        got = f"got {repository.revision!r} of {repository.repo!r}"
        return f"no such revision, {got}; name a branch, a tag or a commit of {repository.address}"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the Hub refuses access (status {status}), {got}; {_token_advice()}"
        return f"the Hub answered with status {status}, {got}; try again later"
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"the cache has a part of it alone and the Hub cannot be reached, {got}; run once with a network"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return explain(error.__cause__, repository)
        if constants.HF_HUB_OFFLINE:
            return f"not in the cache and HF_HUB_OFFLINE is set, {got}; unset it, or fetch it where there is a network"
        return f"not in the cache and the Hub cannot be reached, {got}; check the network, or name a local folder"
    return f"its files cannot be stored, {got}, {type(error).__name__}; check that the disk of HF_HOME has room"


def _token_advice() -> str:
    from huggingface_hub import get_token

    return (
        "use a token that has access: the one that is set has none"
        if get_token()
        else "set HF_TOKEN, since no token is set"
    )


def is_network(error: BaseException) -> bool:
    """Offline by wish, or no way to the Hub."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled | httpx.TransportError)
