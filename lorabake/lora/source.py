"""Where a LoRA is: a file, a folder or a hub id, resolved to one local file."""

from __future__ import annotations

import os.path
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import LoraFileError, UnsupportedLoraError, listed
from ..place import expanded, kind

WEIGHTS = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA file."""

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
"""What PEFT calls a LoRA file and the configuration beside it, which holds its alpha."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@(refs/[\w.-]+/[\w.-]+|[\w.-]+?))?(?:/(.+\.\w+))?")
"""Repository, revision and file."""


class Location(NamedTuple):
    """One LoRA file on this machine, and what to call it."""

    path: Path
    name: str


def locate(source: str | Path, revision: str | None = None) -> Location:
    """Find the file that `source` means: a local file or folder, else a hub id.

    A hub id is `user/repo`, with `@` and a branch, tag or commit if wanted, and with `/` and a
    file if it holds several.

    Args:
        source: What is given.
        revision: Branch, tag or commit of a hub id, if it does not name one itself.

    Raises:
        LoraFileError: Nothing is there, or more than one candidate.
        UnsupportedLoraError: It is a pickle; it is not opened.
    """
    where = str(source)
    path = expanded(source)
    name, found = path.stem, kind(path)
    if found is None and _may_be_hub_id(source):
        from .hub import fetch

        match = _HUB_ID.fullmatch(where)
        repo, named, file = match.groups() if match else (where, None, None)
        if revision and named and revision != named:
            raise LoraFileError(f"is not revision {revision}", where=where, advice="Name one only")
        return Location(fetch(repo, file, revision or named), where)
    if found is not None and revision is not None:
        raise LoraFileError(
            "is on this machine, where it has no revisions",
            where=where,
            advice="Leave out the revision, or go elsewhere to name a repository on the hub",
        )
    if found == "folder":
        name = path.resolve().name
        path /= choose(_listing(path, where), where)
        where, found = f"{where.rstrip('/')}/{path.name}", kind(path)
    refuse_pickle(path.name, where)
    if found != "file":
        lost = "is a link to nothing" if os.path.islink(path) else "does not exist"  # noqa: PTH114
        raise LoraFileError(
            lost if found is None else "is not a regular file",
            where=where,
            advice="Give a .safetensors file, a folder that holds one, or a hub id user/repo",
        )
    return Location(path, name)


def _listing(folder: Path, where: str) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError as e:
        raise LoraFileError(
            f"cannot be listed ({e.strerror})", where=where, advice="Check its permissions"
        ) from e


def _may_be_hub_id(source: str | Path) -> bool:
    """`user/repo`, `user/repo/file.safetensors` and so on, unless it plainly is a local path."""
    if isinstance(source, Path):
        return False
    first, _, rest = source.partition("/")
    local = kind(Path(first)) == "folder" or (
        "/" not in rest and PurePosixPath(rest).suffix in SUFFIXES
    )
    return not local and _HUB_ID.fullmatch(source) is not None and first.strip(".") != ""


SUFFIXES = (".safetensors", *PICKLES)


def choose(names: Collection[str], where: str) -> str:
    """The LoRA among the files of a folder or repository.

    Args:
        names: The files' paths, relative to it.
        where: The folder or repository, for messages.

    Raises:
        LoraFileError: There is none, or several with nothing to prefer one.
        UnsupportedLoraError: There are only pickles.
    """
    for preferred in (WEIGHTS, ADAPTER):
        if preferred in names:
            return preferred
    found = sorted(n for n in names if n.endswith(".safetensors") and not n.startswith("."))
    if len(found) == 1:
        return found[0]
    if found:
        raise LoraFileError(
            f"holds {len(found)} .safetensors files: {listed(found)}",
            where=where,
            advice=f"Name one of them, for example {where.rstrip('/')}/{found[0]}",
        )
    for name in sorted(names):
        refuse_pickle(name, f"{where.rstrip('/')}/{name}")
    raise LoraFileError(
        "holds no .safetensors file", where=where, advice="Give the LoRA file itself"
    )


def refuse_pickle(name: str, where: str) -> None:
    """Refuse by suffix, without opening: unpickling can run any code.

    Raises:
        UnsupportedLoraError: The name ends like a pickle.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICKLES:
        raise UnsupportedLoraError(
            f"a {suffix} file is a pickle, which can run code when opened, so it is not opened",
            where=where,
            advice="Convert it to .safetensors with a program you trust, or look for a release "
            "in that format",
        )
