"""The folder runs when it is copied elsewhere under another name, without lorabake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch import nn

import lorabake.runtime

from .naive_bundle import Spec, write

PLAYER = """
import sys
sys.modules["lorabake"] = None  # importing it fails
import vendored_player.plan, vendored_player.manifest, vendored_player.errors
assert "torch" not in sys.modules
import torch
from vendored_player import read

class Denoiser(torch.nn.Linear):
    def forward(self, x, timestep):
        return self.layer(x)

class Pipe:
    transformer = Denoiser(1, 1)
    transformer.layer = torch.nn.Linear(4, 4)
    class scheduler:
        timesteps = torch.arange(901, 0, -100)

bundle = read("b.safetensors", verify=True)
layer, = bundle.manifest.layers
weight = Pipe.transformer.layer.weight.detach().clone()
x = torch.randn(3, 4)
for mode in ("fused", "hooks"):
    with torch.no_grad(), bundle.attach(Pipe(), mode):
        for timestep, style in zip(Pipe.scheduler.timesteps, bundle.selection(10)[0]):
            down, up = bundle.factors(layer, int(style))
            expected = x @ (weight + up @ down).T + Pipe.transformer.layer.bias
            assert torch.allclose(Pipe.transformer(x, timestep), expected, atol=1e-5)
    assert torch.equal(Pipe.transformer.layer.weight, weight)
assert 0 < bundle.selection(10).sum() < 10
rooms = {"diffusers", "transformers", "peft", "accelerate", "huggingface_hub", "click"}
assert not rooms & sys.modules.keys(), rooms & sys.modules.keys()
"""


def test_vendored(tmp_path: Path) -> None:
    source = Path(lorabake.runtime.__file__).parent
    shutil.copytree(source, tmp_path / "vendored_player", ignore=shutil.ignore_patterns("__pyc*"))
    trained = nn.Module()
    trained.layer = nn.Linear(4, 4)
    spec = Spec("transformer", "layer", (2, 1), {"scores": [1.0, 1.0]})
    write(tmp_path / "b.safetensors", [spec], {"transformer": trained})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAYER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
