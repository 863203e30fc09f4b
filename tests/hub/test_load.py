"""Loading a bundle from the hub: revisions, the cache, and a hub that is not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import lorabake
from lorabake import lora
from lorabake.bundle import verify
from lorabake.cli import cli
from lorabake.errors import BundleError, LoraFileError

from .conftest import NOWHERE
from .server import Hub, Repo

REPO = "user/cat-ink"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def repo(hub: Hub, bundle: Path) -> Repo:
    """The bundle and, on the branch `old`, a damaged one."""
    found = hub.repos[REPO] = Repo()
    found.commit({WEIGHTS: b"old", "README.md": b"# Old"})
    found.refs["old"] = found.refs["main"]
    found.commit({WEIGHTS: bundle.read_bytes()})
    return found


def bodies(hub: Hub) -> list[str]:
    return [path for path in hub.seen("GET") if "/resolve/" in path]


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    template = NOWHERE + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_what_is_loaded_is_what_was_pushed(hub: Hub, repo: Repo, bundle: Path) -> None:
    found = lorabake.load(REPO)
    assert found.path.read_bytes() == bundle.read_bytes()
    assert found.manifest.digest == lorabake.load(bundle).manifest.digest
    assert bodies(hub) == [f"/{REPO}/resolve/main/{WEIGHTS}"]
    assert lorabake.load(REPO).path == found.path
    assert verify(f"{REPO}@main").digest == found.manifest.digest
    assert len(bodies(hub)) == 1


def test_a_revision(hub: Hub, repo: Repo, bundle: Path) -> None:
    old = repo.refs["old"]
    repo.refs["refs/pr/2"] = repo.refs["main"]
    for name, revision in (
        (REPO, "old"), (REPO, old), (f"{REPO}@old", None), (f"{REPO}@{old}", None),
    ):  # fmt: skip
        with pytest.raises(BundleError, match=r"cannot be read|too short|damaged"):
            lorabake.load(name, revision)
    for name, revision in (
        (REPO, "main"), (f"{REPO}@main", "main"), (f"{REPO}@main/{WEIGHTS}", None),
        (f"{REPO}@refs/pr/2", None),
    ):  # fmt: skip
        assert lorabake.load(name, revision).path.read_bytes() == bundle.read_bytes()
    with pytest.raises(BundleError, match=r"user/cat-ink@new: .*there is no such revision"):
        lorabake.load(REPO, "new")
    with pytest.raises(BundleError, match=r"is not revision main\. Name one only"):
        lorabake.load(f"{REPO}@old", "main")
    with pytest.raises(BundleError, match="where it has no revisions"):
        lorabake.load(bundle, "main")


def test_a_lora_of_a_revision(hub: Hub, loras: Path) -> None:
    found = hub.repos["user/cat"] = Repo()
    found.commit({"cat.safetensors": (loras / "cat.safetensors").read_bytes()}, "v1.0")
    assert lora.read("user/cat@v1.0").provenance.name == "user/cat@v1.0"
    with pytest.raises(LoraFileError, match="there is no such revision"):
        lora.read("user/cat")


def test_offline_after_one_load(
    hub: Hub, repo: Repo, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lorabake.load(REPO)
    asked = len(hub.log)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert lorabake.load(REPO).path.read_bytes() == bundle.read_bytes()
    assert len(hub.log) == asked
    with pytest.raises(BundleError, match=r"user/dog: .*HF_HUB_OFFLINE is set\)\. Unset it"):
        lorabake.load("user/dog")
    with pytest.raises(BundleError, match=r"user/cat-ink@old: .*HF_HUB_OFFLINE is set"):
        lorabake.load(REPO, "old")


def test_an_unplugged_hub_is_asked_once(
    hub: Hub, repo: Repo, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lorabake.load(REPO)
    unplug(monkeypatch)
    start = time.monotonic()
    for name in (REPO, f"{REPO}/{WEIGHTS}"):
        assert lorabake.load(name).path.read_bytes() == bundle.read_bytes()
    for name in ("user/dog", "user/dog/a.safetensors/b.safetensors", f"{REPO}@old"):
        with pytest.raises(
            BundleError, match=r"cannot be had from the hub \(ConnectError: .*Check"
        ):
            lorabake.load(name)
    assert time.monotonic() - start < 2  # the client's own way takes 24 s


def test_a_failing_hub_and_a_full_cache(hub: Hub, repo: Repo, bundle: Path) -> None:
    lorabake.load(REPO)
    hub.broken["GET", "/api/models"] = 503
    assert lorabake.load(REPO).path.read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "it does not know your token"),
        (403, "your token does not allow it"),
        (404, "there is no such thing"),
        (429, "asked too often"),
        (500, "an error of its own, 500"),
    ],
)
def test_what_the_hub_refuses(status: int, words: str, hub: Hub, repo: Repo) -> None:
    hub.broken["GET", "/api/models"] = status
    result = CliRunner().invoke(cli, ["inspect", REPO])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"{REPO}: is no local file or folder, and cannot be had from the hub (" in result.stderr
    assert words in result.stderr


def test_what_is_not_there(
    hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    for name, words in (
        ("user/dog", "there is no such repository, or you may not see it"),
        (f"{REPO}/a/b.safetensors", "there is no such file"),
    ):
        with pytest.raises(BundleError, match=words):
            lorabake.load(name)
    repo.private = True
    assert lorabake.load(REPO).path.read_bytes() == bundle.read_bytes()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(bundle.parent / "empty"))
    with pytest.raises(BundleError, match=r"you may not see it\)\. .*hf auth login"):
        lorabake.load(REPO)


def test_nothing_is_left_of_half_a_download(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    hub.broken["GET", "/resolve/"] = 500
    with pytest.raises(BundleError, match="an error of its own, 500"):
        lorabake.load(REPO)
    hub.broken.clear()
    assert lorabake.load(REPO).manifest.method == "klora"
