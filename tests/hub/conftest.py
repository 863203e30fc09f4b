"""A hub, a user who is logged in there with an empty cache, and a bundle of theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

import lorabake

from ..cli.test_commands import SHAPES
from ..oracle import write_lora
from .server import WRITE, Hub

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
NOWHERE = "http://127.0.0.1:9"
SAYS = {
    "cat": {"modelspec.trigger_phrase": "sks cat", "modelspec.license": "CreativeML OpenRAIL-M"},
    "ink": {"modelspec.trigger_phrase": "inkstyle", "license": "cc-by-nc-4.0"},
}


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, (name, says) in enumerate(SAYS.items()):
        path = folder / f"{name}.safetensors"
        write_lora(path, SHAPES, "peft", seed, keep=1.0)
        save_file(load_file(path), path, says)
    return folder


@pytest.fixture(scope="session")
def bundle(loras: Path) -> Path:
    path = loras / "bundle.safetensors"
    lorabake.make(loras / "cat.safetensors", loras / "ink.safetensors", path, base=BASE)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its content goes to another kind of server
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    for variable in ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.chdir(tmp_path)
    yield server
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()
