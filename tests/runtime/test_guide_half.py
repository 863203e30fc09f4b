"""Guided latents beside LoRAs that act in one half: the gradient goes back through both."""

from __future__ import annotations

import copy
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabake.runtime import read
from lorabake.runtime.extras import guidance_value

from .guided import encoders, guidance, guide, pipeline, run
from .naive_bundle import one_of_each, write

CASES = {"sd15": ("unet", "one call"), "flux": ("transformer", "two calls")}


def dense(pipe: Any, name: str, specs: Any, calls: str) -> None:
    """Let two copies of the denoiser compute its halves: with W0 + ΔW and with W0."""
    root = getattr(pipe, name)
    pair: list[nn.Module] = [copy.deepcopy(root).requires_grad_(False) for _ in range(2)]
    for spec in specs:
        gates = zip(spec.rule["gates"], spec.deltas, strict=True)
        layer: Any = pair[0].get_submodule(spec.module)
        layer.weight.data += sum(g * d for g, d in gates)
    count = [0]

    @wraps(root.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        mine, other = (one(*args, **kwargs)[0] for one in pair)
        count[0] += 1
        if calls == "two calls":
            return (mine if count[0] % 2 else other,)
        n = len(mine) // 2
        return (torch.cat([other[:n], mine[n:]]),)

    root.forward = forward


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("through", ["denoiser", "latents"])
@pytest.mark.parametrize("family", CASES)
def test_against_dense_halves(family: str, through: Any, tmp_path: Path) -> None:
    name, calls = CASES[family]
    of = guidance(m=20.0, through=through)
    first = pipeline(family)
    specs = one_of_each(name, getattr(first, name))
    for spec in specs:
        spec.rule = {"gates": [1.0, 0.5]}
    more: dict[str, Any] = {"half": "conditional", "format": "1.3", "scale": None}
    path = write(tmp_path / "b.safetensors", specs, {name: getattr(first, name)}, size=0.1,
                 guidance=guidance_value(of), **more)  # fmt: skip
    bundle = read(path)
    twin = pipeline(family)
    dense(twin, name, specs, calls)
    plain = run(twin, 2)[-1]
    guiding = guide(twin, of)
    expected = run(twin, 2)[-1]
    guiding.remove()
    assert off(plain, expected) > 1e-3

    for mode in ("auto", "hooks"):
        with bundle.attach(first, mode, encoders=encoders()) as replay:  # type: ignore[arg-type] - a mode
            found = run(first, 2)[-1]
        assert off(found, expected) < 2e-5
        assert len(replay.report()["guidance"]) == 2
        fused = {row["mode"] for row in replay.report()["layers"]} == {"fused"}
        assert fused == (mode == "auto" and calls == "two calls")
    with bundle.attach(first, encoders=encoders(), half="both"):
        assert off(run(first, 2)[-1], expected) > 1e-3


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
