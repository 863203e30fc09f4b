"""A LoRA on the Hugging Face hub, or in the local cache of it."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraFileError, UserError
from .source import ADAPTER, CONFIG, choose, refuse_pickle


def fetch(repo: str, file: str | None) -> Path:
    """Download one LoRA file, or take it from the cache; offline, only from the cache.

    Args:
        repo: `user/repo`.
        file: The file's path in the repository; None to find it.

    Raises:
        LoraFileError: The repository or file cannot be reached, or the choice is not clear.
        UnsupportedLoraError: The file is a pickle.
    """
    # Late: the hub's client takes a third of a second to import, and few reads need it.
    from huggingface_hub import hf_hub_download

    if file is not None:
        refuse_pickle(file, f"{repo}/{file}")
    try:
        file = file or choose(_files(repo), repo)
        path = Path(hf_hub_download(repo, file))
        if file == ADAPTER:
            hf_hub_download(repo, CONFIG)
    except UserError:
        raise
    except Exception as e:
        # Anything: the client has changed its HTTP library, and with it what it raises, repeatedly.
        reason = next(iter(str(e).strip().splitlines()), "").rstrip(".")
        raise LoraFileError(
            f"is no local file or folder, and cannot be had from the hub ({type(e).__name__}"
            + (f": {reason})" if reason else ")"),
            where=f"{repo}/{file}" if file else repo,
            advice="Check the spelling, the network and your access to the repository",
        ) from e
    return path


def _files(repo: str) -> list[str]:
    """The repository's files; those in the cache when the hub cannot be asked."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return HfApi().list_repo_files(repo)
    except Exception:
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            folder = None
        if folder is None:
            raise
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
