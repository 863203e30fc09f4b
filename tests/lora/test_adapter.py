from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from lorabake.errors import LoraFileError, UnsupportedLoraError
from lorabake.lora import LayerName, read

from . import tables

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8},
    {"r": 4, "lora_alpha": 3, "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {f"{BLOCK}.attn1.to_q": 2}},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {f"{BLOCK}.attn1.to_q": 5, "attn2.to_k": 7}},
    {
        "r": 3, "lora_alpha": 2, "use_rslora": True, "rank_pattern": {"attn2.to_k": 5},
        "alpha_pattern": {f"^{BLOCK}.attn1.to_q": 1},
    },
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_scales_are_those_of_peft(config: dict[str, Any], tmp_path: Path) -> None:
    """A LoRA that PEFT made, saved as diffusers saves it, has the updates that PEFT applies."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**tables.TINY_15)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(target_modules=targets, init_lora_weights=False, **config))
    state = get_peft_model_state_dict(unet)
    path = tables.save(
        tmp_path / "lora.safetensors",
        {f"unet.{key}": tensor for key, tensor in state.items()},
        lora_adapter_metadata=tables.adapter_metadata("unet", **config),
    )
    lora = read(path)
    assert len(state) == 2 * len(lora.layers)
    for name, layer in lora.layers.items():
        module: Any = unet.get_submodule(name.module)
        expected = module.get_delta_weight("default")
        torch.testing.assert_close(layer.delta(), expected, rtol=1e-5, atol=1e-6)


NAME = LayerName("unet", f"{BLOCK}.attn1.to_q")


def lora_file(path: Path, alpha: float | None = None, **metadata: str) -> Path:
    known = tables.Known(torch.ones(4, 8), torch.ones(6, 4), alpha)
    return tables.save(path, tables.peft({NAME: known}), **metadata)


def test_the_configuration_beside_an_adapter(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(lora_file(tmp_path / "adapter_model.safetensors")).layers[NAME].scale == 1.5
    assert read(lora_file(tmp_path / "other.safetensors")).layers[NAME].scale == 1.0


def test_the_base_model_that_a_configuration_names(tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 6, "base_model_name_or_path": "stabilityai/stable-diffusion-2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(lora_file(tmp_path / "adapter_model.safetensors")).family == "sd2"
    metadata = tables.adapter_metadata("unet", **config)
    assert (
        read(lora_file(tmp_path / "x.safetensors", lora_adapter_metadata=metadata)).family == "sd2"
    )


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"peft_type": "LOHA"},
        {"init_lora_weights": "pissa_niter_4"},
    ],
)
def test_other_kinds(config: dict[str, Any], tmp_path: Path) -> None:
    metadata = tables.adapter_metadata("unet", r=4, lora_alpha=4, **config)
    with pytest.raises(UnsupportedLoraError, match="adapter configuration says"):
        read(lora_file(tmp_path / "lora.safetensors", lora_adapter_metadata=metadata))


@pytest.mark.parametrize("alpha", [0, -1, "eight", None, True, 10**400, 1e39, float("nan"), [[1]]])
def test_an_alpha_that_is_none(alpha: object, tmp_path: Path) -> None:
    metadata = tables.adapter_metadata("unet", r=4, lora_alpha=alpha)
    with pytest.raises(LoraFileError, match="alpha must be a finite number above 0"):
        read(lora_file(tmp_path / "lora.safetensors", lora_adapter_metadata=metadata))


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"unet.lora_alpha": "\\ud800"}',
        f'{{"unet.lora_alpha": 1{"0" * 5000}}}', f'{{"a": {"[" * 100_000}{"]" * 100_000}}}',
    ],
)  # fmt: skip
def test_not_json(text: str, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="not a JSON object"):
        read(lora_file(tmp_path / "lora.safetensors", lora_adapter_metadata=text))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(LoraFileError, match="not a JSON object"):
        read(lora_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize("patterns", [[1], "abc", 5, [["a", 1, 2]], {"(": 1}, {"a{9999999999}": 1}])
def test_patterns_that_are_none(patterns: object, tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": patterns}
    metadata = tables.adapter_metadata("unet", **config)
    with pytest.raises(LoraFileError, match="alpha_pattern of its adapter configuration is not"):
        read(lora_file(tmp_path / "lora.safetensors", lora_adapter_metadata=metadata))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LoraFileError, match="alpha_pattern of its adapter configuration is not"):
        read(lora_file(tmp_path / "adapter_model.safetensors"))


def test_two_alphas_must_agree(tmp_path: Path) -> None:
    metadata = tables.adapter_metadata("unet", r=4, lora_alpha=8)
    path = lora_file(tmp_path / "lora.safetensors", 8.0, lora_adapter_metadata=metadata)
    assert read(path).layers[NAME].scale == 2.0
    path = lora_file(tmp_path / "lora.safetensors", 4.0, lora_adapter_metadata=metadata)
    with pytest.raises(LoraFileError, match=r"is 1 by .*\.alpha, but 2 by the adapter"):
        read(path)
