"""Pushing a bundle: what arrives, in one commit or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from PIL import Image

import lorabake
from lorabake.bundle.upload import upload
from lorabake.cli import cli
from lorabake.errors import ImageError, OutputError, RecipeError

from .conftest import BASE, NOWHERE
from .server import READ, Hub, Repo

# huggingface_hub's own call of its HTTP library, where it does not use xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "user/cat-ink"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a b.png", tmp_path / "photo.jpeg"]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    return paths


def head(hub: Hub, repo: str = REPO, branch: str = "main") -> dict[str, bytes]:
    found = hub.repos[repo]
    return found.commits[found.refs[branch]]


def card(files: dict[str, bytes]) -> dict[str, Any]:
    """The card's metadata, as the hub's own client reads it."""
    return ModelCard(files["README.md"].decode()).data.to_dict()


def test_a_page_with_everything(
    hub: Hub, bundle: Path, pictures: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    told = lorabake.push(bundle, REPO, images=pictures)
    assert capfd.readouterr() == ("", "")
    files = head(hub)
    assert files[WEIGHTS] == bundle.read_bytes()
    assert files["images/1.png"] == pictures[0].read_bytes()
    assert files["images/2.jpg"] == pictures[1].read_bytes()
    assert set(told.files) == files.keys() - {".gitattributes"}
    assert told.where == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].refs['main']}"
    assert len(hub.commits) == 1
    found = card(files)
    prompt = "sks cat in inkstyle"
    assert (found["base_model"], found["base_model_relation"]) == (BASE, "adapter")
    assert (found["license"], told.license) == ("cc-by-nc-4.0", "cc-by-nc-4.0")
    assert found["instance_prompt"] == prompt
    assert {"lora", "diffusers", "text-to-image", "template:sd-lora", "lorabake"} <= {
        *found["tags"]
    }
    assert found["widget"] == [
        {"text": prompt, "output": {"url": path}} for path in ("images/1.png", "images/2.jpg")
    ]
    text = files["README.md"].decode()
    for name in ("cat", "ink"):
        digest = hashlib.sha256((bundle.parent / f"{name}.safetensors").read_bytes()).hexdigest()
        assert digest in text
    assert f'lorabake.load("{REPO}")' in text
    assert f'pipe.load_lora_weights("{REPO}")' in text
    assert "![What each layer applies at each step](plan.png)" in text
    assert files["plan.png"].startswith(b"\x89PNG")


def test_a_dry_run_is_what_is_pushed(
    hub: Hub, bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    told = lorabake.push(bundle, REPO, images=pictures, folder=tmp_path / "page")
    assert hub.log == []
    lorabake.push(bundle, REPO, images=pictures)
    pushed = {name: content for name, content in head(hub).items() if name != ".gitattributes"}
    assert {name: (tmp_path / "page" / name).read_bytes() for name in told.files} == pushed
    written = [p for p in (tmp_path / "page").rglob("*") if p.is_file()]
    assert len(written) == len(pushed)


def send(
    card: str = "---\nbase_model: a/b\n---\n", *, repo: str = REPO, private: bool = False,
    revision: str | None = None, create_pr: bool = False, force: bool = False,
) -> str:  # fmt: skip
    """A push without what comes before."""
    return upload(
        {WEIGHTS: b"weights", "README.md": card.encode()}, repo, private=private,
        revision=revision, create_pr=create_pr, force=force, bars=False,
    )  # fmt: skip


def test_pushing_again_replaces_our_card_only(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    lorabake.push(bundle, REPO)
    lorabake.push(bundle, REPO, instance_prompt="a sks cat, ink")
    assert card(head(hub))["instance_prompt"] == "a sks cat, ink"
    changed = head(hub)["README.md"].replace(b"## Sources", b"## My thanks\n\n## Sources")
    hub.repos[REPO].commit({"README.md": changed})
    with pytest.raises(OutputError, match=r"user/cat-ink: has a README\.md that is not .*--force"):
        send()
    assert head(hub)["README.md"] == changed
    send(force=True)
    assert b"My thanks" not in head(hub)["README.md"]


def test_weights_of_somebody_are_kept(hub: Hub) -> None:
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit({WEIGHTS: b"theirs"})
    with pytest.raises(OutputError, match=f"has a {WEIGHTS} that is not as lorabake wrote it"):
        send()
    assert hub.commits == []


def test_metadata_that_the_hub_does_not_take(hub: Hub) -> None:
    with pytest.raises(OutputError, match=r"Invalid metadata in README\.md\. - base_model"):
        send("---\nbase_model: [a/b]\n---\n")
    assert hub.commits == []


def test_private_and_public(hub: Hub) -> None:
    send(private=True)
    assert hub.repos[REPO].private
    hub.repos["user/open"] = Repo()
    hub.repos["user/open"].commit({"notes.txt": b""})
    with pytest.raises(OutputError, match="is public already"):
        send(repo="user/open", private=True)
    assert len(hub.commits) == 1
    send(repo="user/open")
    assert head(hub, "user/open").keys() == {"notes.txt", WEIGHTS, "README.md"}


def test_a_branch_and_a_pull_request(hub: Hub) -> None:
    with pytest.raises(OutputError, match="does not exist yet, and a new one has no branch next"):
        send(revision="next")
    assert hub.repos == {}
    send()
    with pytest.raises(OutputError, match="there is no such revision"):
        send(revision="next")
    hub.repos[REPO].refs["next"] = hub.repos[REPO].refs["main"]
    send("---\nbase_model: b/b\n---\n", revision="next", force=True)
    asked = send("---\nbase_model: c/c\n---\n", create_pr=True, force=True)
    assert asked == f"{hub.url}/{REPO}/discussions/1"
    bases = [card(head(hub, branch=b))["base_model"] for b in ("main", "next", "refs/pr/1")]
    assert bases == ["a/b", "b/b", "c/c"]


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        (("GET", "/api/models"), 500, "an error of its own, 500"),
        (("POST", "/api/repos/create"), 409, "in conflict"),
        (("POST", "/api/repos/create"), 403, "your token does not allow it"),
        (("POST", "/preupload/"), 401, "it does not know your token.*was created and is empty"),
        (("PUT", "/stored/"), 403, "was created and is empty"),
        (("POST", "/commit/"), 500, "500.*was created and is empty. Try again later"),
        (("POST", "/commit/"), 412, "somebody else has changed it"),
    ],
)
def test_what_the_hub_refuses(part: tuple[str, str], status: int, words: str, hub: Hub) -> None:
    hub.broken[part] = status
    with pytest.raises(OutputError) as caught:
        send()
    assert str(caught.value).startswith(f"{REPO}: cannot be pushed to (")
    assert re.search(words, str(caught.value)), str(caught.value)
    assert hub.commits == []


def test_no_token_no_right_no_hub(hub: Hub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(OutputError, match=r"your token does not allow it.*Log in with"):
        send()
    assert hub.repos == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE is set"):
        send()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    with pytest.raises(OutputError, match=r"ConnectError: .*Check the"):
        send()
    monkeypatch.delenv("HF_TOKEN")
    result = CliRunner().invoke(cli, ["push", str(bundle), REPO])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"{REPO}: cannot be pushed to without a token of the hub. Log in" in result.stderr


@pytest.mark.parametrize("repo", ["cat", "user/", "a/b/c", "user/c at", "user/..", "user/a--b"])
def test_a_name_of_no_repository(repo: str, hub: Hub, bundle: Path) -> None:
    with pytest.raises(RecipeError, match="is no name of a repository"):
        lorabake.push(bundle, repo)
    assert hub.log == []


def test_what_is_no_picture(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    for name, words in (
        ("text.png", "no picture that can be read"), ("a.bmp", "is not PNG, JPEG or WebP"),
        ("none.png", "is not a file"), (".", "is not a file"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=words):
            lorabake.push(bundle, REPO, images=[tmp_path / name])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    with pytest.raises(RecipeError, match="2 prompts for 1 images"):
        lorabake.push(bundle, REPO, images=[tmp_path / "a.webp"], prompts=["a", "b"])
    assert hub.log == []


def test_a_damaged_bundle_stays_here(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    raw = bundle.read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    result = CliRunner().invoke(cli, ["push", "bad.safetensors", REPO])
    assert result.exit_code == 2
    assert "digest differs" in result.stderr
    assert hub.log == []


def test_the_command(hub: Hub, bundle: Path, pictures: list[Path], tmp_path: Path) -> None:
    command = ["push", str(bundle), REPO, "--image", str(pictures[0]), "--prompt", "a cat"]
    result = CliRunner().invoke(cli, [*command, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["where"] == "cat-ink"
    assert sorted(p.name for p in (tmp_path / "cat-ink").iterdir()) == [
        "README.md", "images", "plan.png", WEIGHTS,
    ]  # fmt: skip
    found = ModelCard.load(tmp_path / "cat-ink" / "README.md").data
    assert found.to_dict()["widget"][0]["text"] == "a cat"
    again = CliRunner().invoke(cli, [*command, "--dry-run"])
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert CliRunner().invoke(cli, [*command, "--dry-run", "--force"]).exit_code == 0
    assert CliRunner().invoke(cli, [*command, "-o", "x"]).exit_code == 2
    assert hub.log == []
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{hub.url}/{REPO}/commit/")


def test_a_dry_run_spares_the_bundle(bundle: Path, tmp_path: Path) -> None:
    own = tmp_path / WEIGHTS
    own.write_bytes(bundle.read_bytes())
    with pytest.raises(OutputError, match="is one of the inputs"):
        lorabake.push(own, REPO, folder=tmp_path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == [WEIGHTS]
