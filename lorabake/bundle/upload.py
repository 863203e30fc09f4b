"""One commit to the Hugging Face hub."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..errors import OutputError, UserError
from ..lora.hub import PATIENCE, reason
from . import card
from .release import CARD, Files


def check_login(repo: str) -> None:
    """Refuse to go on without a token.

    Raises:
        OutputError: `huggingface_hub` knows none.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise OutputError(
            "cannot be pushed to without a token of the hub",
            where=repo,
            advice="Log in with `hf auth login`, or set HF_TOKEN",
        )


def upload(
    files: Files,
    repo: str,
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    force: bool,
    bars: bool,
) -> str:
    """Commit files to a repository, which is created if there is none.

    Args:
        files: By path.
        repo: `user/repo`.
        private: Whether a new repository is for its owner alone.
        revision: The branch; the main one if not given.
        create_pr: Whether to open a pull request instead.
        force: Whether files may be replaced that lorabake did not write.
        bars: Whether the hub's client may draw progress bars.

    Returns:
        The address of the commit or the pull request.

    Raises:
        OutputError: The hub cannot be reached or refuses, or something there is in the way.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    created = False
    try:
        parent = _present(api, repo, revision)
        if parent is None:
            _check_new(repo, revision)
            api.create_repo(repo, private=private or None)
            created = True
        else:
            _check_present(parent, files, private=private, force=force)
        with contextlib.nullcontext() if bars else _silence():
            commit = api.create_commit(
                repo,
                [CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message="Upload a bundle with lorabake",
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent and parent.sha,
            )
    except UserError:
        raise
    except Exception as error:
        what, advice = reason(error)
        left = "; it was created and is empty" if created else ""
        raise OutputError(
            f"cannot be pushed to ({what}){left}", where=repo, advice=advice
        ) from error
    return commit.pr_url or commit.commit_url


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """No progress bars of the hub's client inside, as far as the user's environment lets."""
    from huggingface_hub import constants, utils

    if utils.are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _present(api: Any, repo: str, revision: str | None) -> Any:  # noqa: ANN401 - huggingface_hub's
    """What the hub says about the repository; None if there is none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return api.model_info(repo, revision=revision, timeout=PATIENCE)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _check_new(repo: str, revision: str | None) -> None:
    """Refuse to create a repository that lacks the branch to commit to."""
    if revision not in (None, "main"):
        raise OutputError(
            f"does not exist yet, and a new one has no branch {revision}",
            where=repo,
            advice="Push without --revision first, or create repository and branch",
        )


def _check_present(found: Any, files: Files, *, private: bool, force: bool) -> None:  # noqa: ANN401
    """Refuse to overwrite what is not ours, and to make public what shall be private."""
    from huggingface_hub import hf_hub_download

    if private and not found.private:
        raise OutputError(
            "is public already", where=found.id, advice="Make it private on its page first"
        )
    there = {one.rfilename for one in found.siblings or ()} & files.keys()
    if force or not there:
        return
    if CARD in there:
        path = Path(hf_hub_download(found.id, CARD, revision=found.sha))
        if card.is_ours(path.read_bytes().decode(errors="replace")):
            return
    raise OutputError(
        f"has a {CARD if CARD in there else min(there)} that is not as lorabake wrote it",
        where=found.id,
        advice="Choose another repository, or replace it with --force",
    )
