"""Pushing a bundle to the Hugging Face hub, with a model card, in one commit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import output as outputs
from .. import runtime
from ..errors import RecipeError
from ..place import expanded, kind
from .find import located
from .release import Files, release
from .upload import check_login, upload
from .verify import verify


@dataclass(frozen=True)
class Pushed:
    """What `push` did.

    Attributes:
        repo: `user/repo`.
        where: Address of the commit or pull request, or the folder of a dry run.
        files: Paths in the repository.
        base_model: That the card names; None if none is known.
        license: That the card names.
        instance_prompt: That the card names; None without trigger words.
        warnings: What the user should know about the card, a sentence each.
    """

    repo: str
    where: str
    files: tuple[str, ...]
    base_model: str | None
    license: str
    instance_prompt: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {', '.join(self.files)}; licence {self.license}"


def push(
    bundle: str | Path,
    repo: str,
    *,
    images: Sequence[str | Path] = (),
    prompts: str | Sequence[str] = (),
    instance_prompt: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    folder: str | Path | None = None,
    force: bool = False,
    bars: bool = False,
) -> Pushed:
    """Put a bundle on the hub as `pytorch_lora_weights.safetensors`, with a model card.

    The bundle is verified first. Repository, token and cache are those of `huggingface_hub`; the
    repository is created if there is none, and everything arrives in one commit or not at all.

    Args:
        bundle: File, folder or hub id.
        repo: `user/repo`.
        images: Pictures for the page: PNG, JPEG or WebP.
        prompts: What they were painted of: one for all or one for each; the instance prompt if
            not given.
        instance_prompt: What calls both LoRAs, if not `<subject trigger> in <style trigger>`.
        license: Of this file, if not the stricter of those that its sources state.
        private: Whether a new repository is for its owner alone.
        revision: The branch to commit to, which must exist; the main one if not given.
        create_pr: Whether to open a pull request instead.
        folder: Write everything there instead, and do not ask the hub for anything.
        force: Whether files may be replaced: on the hub those that lorabake did not write, in
            `folder` any.
        bars: Whether the hub's client may draw progress bars on stderr.

    Raises:
        UserError: The bundle is damaged, an image cannot be used, or the hub cannot be reached or
            refuses; no file there was changed, but a new repository may be left empty.
    """
    _check_name(repo)
    if folder is None:
        check_login(repo)
    path = located(bundle)
    verify(path)
    found = runtime.read(path)
    told = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    files, card, warnings = release(found, repo, images, told, instance_prompt, license)
    if folder is not None:
        where = str(folder)
        _write(files, expanded(folder), (found.path, *map(Path, images)), force=force)
    else:
        where = upload(
            files, repo, private=private, revision=revision, create_pr=create_pr, force=force,
            bars=bars,
        )  # fmt: skip
    return Pushed(repo, where, tuple(files), card.base, card.licence.name, card.prompt, warnings)


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        named = "/" in repo
    except ValueError:
        named = False
    if not named:
        raise RecipeError(
            "is no name of a repository on the hub", where=repo, advice="Name it user/repo"
        )


def _write(files: Files, folder: Path, inputs: tuple[Path, ...], *, force: bool) -> None:
    if kind(folder) == "folder":
        for name in files:
            if kind(folder / name) is not None:
                outputs.check(folder / name, force=force, inputs=inputs)
    for name, content in files.items():
        outputs.folder((folder / name).parent)
        with outputs.replacing(outputs.check(folder / name, force=force, inputs=inputs)) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file)
