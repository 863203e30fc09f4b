"""A LoRA on the Hugging Face hub, or in the local cache of it."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraFileError, UserError
from .source import ADAPTER, CONFIG, choose, refuse_pickle

PATIENCE = 10.0
"""Seconds that the hub has for its first answer."""

_LOG_IN = "Log in with `hf auth login`"
_CHECK = "Check the spelling, the network and your access to the repository"
_BY_NAME = {
    "OfflineModeIsEnabled": ("HF_HUB_OFFLINE is set", "Unset it; what was loaded once still loads"),
    "GatedRepoError": (
        "its owner has not let you in", f"Ask for access on its page. {_LOG_IN}",
    ),
    "RepositoryNotFoundError": (
        "there is no such repository, or you may not see it", f"Check the spelling. {_LOG_IN}",
    ),
    "RevisionNotFoundError": ("there is no such revision", "Look at its branches, tags, commits"),
    "RemoteEntryNotFoundError": ("there is no such file", "Look at its list of files"),
    "DisabledRepoError": ("the repository is disabled", ""),
}  # fmt: skip
_BY_STATUS = {
    401: ("it does not know your token", _LOG_IN),
    403: ("your token does not allow it", f"{_LOG_IN}, with a token that has the right"),
    404: ("there is no such thing, or you may not see it", f"Check the spelling. {_LOG_IN}"),
    409: ("it is in conflict with what is there", "Look at its page, then try again"),
    412: ("somebody else has changed it in the meantime", "Try again"),
    429: ("it was asked too often", "Try again in some minutes"),
}


def fetch(repo: str, file: str | None, revision: str | None = None) -> Path:
    """Download one LoRA file, or take it from the cache: offline, only from the cache.

    The hub is asked once; if it does not answer, or refuses, what the cache has is good enough.

    Args:
        repo: `user/repo`.
        file: The file's path in the repository; None to find it.
        revision: Branch, tag or commit; None is the main branch.

    Raises:
        LoraFileError: The repository or file cannot be reached, or the choice is not clear.
        UnsupportedLoraError: The file is a pickle.
    """
    if file is not None:
        refuse_pickle(file, f"{repo}/{file}")
    try:
        return _fetch(repo, file, revision)
    except UserError:
        raise
    except Exception as e:
        what, advice = reason(e)
        raise LoraFileError(
            f"is no local file or folder, and cannot be had from the hub ({what})",
            where=(f"{repo}@{revision}" if revision else repo) + (f"/{file}" if file else ""),
            advice=advice,
        ) from e


def _fetch(repo: str, file: str | None, revision: str | None) -> Path:
    # Late: the hub's client takes a third of a second to import, and few reads need it.
    from huggingface_hub import HfApi, hf_hub_download

    refused: Exception | None = None
    try:
        # Not its list of files, nor the download right away: these retry for half a minute.
        found = HfApi().model_info(repo, revision=revision, timeout=PATIENCE).siblings or ()
        files = [one.rfilename for one in found]
    except Exception as e:
        refused, files = e, _cached(repo, revision)
        if not (file in files if file else files):
            raise
    file = file or choose(files, repo)
    names = (file, CONFIG) if file == ADAPTER else (file,)
    offline = refused is not None
    paths = [
        hf_hub_download(repo, name, revision=revision, local_files_only=offline) for name in names
    ]
    return Path(paths[0])


def reach(repo: str) -> Path | None:
    """Ask whether the hub answers for a repository, without the retries of its client.

    Returns:
        None if it does; else the repository's folder in the cache.

    Raises:
        Exception: It does not, and nothing of it is in the cache; see `reason`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(repo, timeout=PATIENCE)
    except Exception as refused:
        try:
            return Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            raise refused from None
    return None


def _cached(repo: str, revision: str | None) -> list[str]:
    """The files of a repository that are in the cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:
        return []
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def reason(error: Exception) -> tuple[str, str]:
    """Why the hub's client failed, and what to do about it: no full stop, then advice."""
    # By name: the client has changed its HTTP library, and with it what it raises, repeatedly.
    wrapped = type(error).__name__ in ("LocalEntryNotFoundError", "RuntimeError")
    if wrapped and isinstance(error.__cause__, Exception):
        return reason(error.__cause__)
    if found := _BY_NAME.get(type(error).__name__):
        return found
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if found := _BY_STATUS.get(status):
        return found
    if status >= 500:
        return f"it answers with an error of its own, {status}", "Try again later"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2]).rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__, _CHECK
