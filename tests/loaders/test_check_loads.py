"""The scripts behind `.ci/stock-loaders`, with the diffusers that is installed here."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import check_loads, write_bundles


def test_right_and_wrong_layers_are_told(tmp_path: Path) -> None:
    write_bundles.write(tmp_path, "flux2")
    oracle = tmp_path / "flux2.oracle"
    wanted = load_file(oracle)
    assert check_loads.check(tmp_path, "flux2") == (len(wanted), [])

    wrong, unwanted, odd = sorted(wanted)[:3]
    changed = wanted | {
        wrong: wanted[wrong] * 1.001, odd: wanted[odd] * torch.nan,
        "transformer.none": torch.ones(2, 2),
    }  # fmt: skip
    del changed[unwanted]
    save_file(changed, oracle)
    found = check_loads.check(tmp_path, "flux2")[1]
    assert sorted(found) == sorted(
        [f"{wrong}: wrong", f"{unwanted}: wrong", f"{odd}: wrong", "transformer.none: not there"]
    )


def test_what_diffusers_refuses_is_told(tmp_path: Path) -> None:
    write_bundles.write(tmp_path, "wan")
    bundle = tmp_path / "wan.safetensors"
    tensors = load_file(bundle)
    save_file(tensors | {"diffusion_model.stranger": torch.ones(1)}, bundle)
    (text,) = check_loads.check(tmp_path, "wan")[1]
    assert text.startswith("ValueError: ")
    assert "stranger" in text


def test_the_second_denoiser_is_loaded_too(tmp_path: Path) -> None:
    write_bundles.write(tmp_path, "wan22")
    wanted = load_file(tmp_path / "wan22.oracle")
    assert {name.partition(".")[0] for name in wanted} == {"transformer", "transformer_2"}
    assert check_loads.check(tmp_path, "wan22")[1] == []
