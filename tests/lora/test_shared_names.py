"""Module names that a model's own code and diffusers share: the file's other modules tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorabake.lora import LayerName, common_family, read

from . import tables
from .tables import Known

PEFT, KOHYA = ("lora_A", "lora_B"), ("lora_down", "lora_up")
QWEN = {
    "transformer_blocks.0.img_mod.1": "transformer_blocks.0.img_mod.1",
    "img_in": "img_in", "txt_in": "txt_in", "proj_out": "proj_out",
}  # fmt: skip
FLUX = {
    "transformer_blocks.0.attn.to_q": "transformer_blocks.0.attn.to_q",
    "single_transformer_blocks.0.proj_mlp": "single_transformer_blocks.0.proj_mlp",
    "x_embedder": "x_embedder", "context_embedder": "context_embedder",
}  # fmt: skip
OWN_FLUX = {
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
    "img_in": "x_embedder", "txt_in": "context_embedder",
}  # fmt: skip
ZIMAGE = {
    "layers.0.attention.to_q": "layers.0.attention.to_q",
    "t_embedder.mlp.0": "t_embedder.mlp.0", "cap_embedder.1": "cap_embedder.1",
}  # fmt: skip
OWN_ZIMAGE = ZIMAGE | {
    "x_embedder": "all_x_embedder.2-1", "final_layer.linear": "all_final_layer.2-1.linear",
}  # fmt: skip
OWN_SD3 = {
    "joint_blocks.0.x_block.attn2.proj": "transformer_blocks.0.attn2.to_out.0",
    "joint_blocks.0.x_block.attn.proj": "transformer_blocks.0.attn.to_out.0",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "context_embedder": "context_embedder",
}


@pytest.mark.parametrize(
    ("family", "prefix", "endings", "modules"),
    [
        ("qwen", "diffusion_model.", PEFT, QWEN),
        ("flux", "diffusion_model.", PEFT, FLUX),
        ("flux", "base_model.model.", PEFT, OWN_FLUX),
        ("zimage", "diffusion_model.", PEFT, OWN_ZIMAGE),
        ("zimage", "", PEFT, ZIMAGE),
        ("zimage", "", PEFT, OWN_ZIMAGE),
        ("zimage", "transformer.", PEFT, ZIMAGE),
        ("zimage", "transformer.", KOHYA, ZIMAGE),
        ("sd3", "base_model.model.", PEFT, OWN_SD3),
        ("sd3", "", KOHYA, OWN_SD3),
        ("qwen", "", KOHYA, QWEN),
    ],
)
def test_neighbours_tell_what_a_shared_name_means(
    family: str, prefix: str, endings: tuple[str, str], modules: dict[str, str], tmp_path: Path
) -> None:
    down, up = endings
    tensors = {f"{prefix}{path}.{down}.weight": torch.ones(2, 8) for path in modules}
    tensors |= {f"{prefix}{path}.{up}.weight": torch.ones(8, 2) for path in modules}
    lora = read(tables.save(tmp_path / "lora.safetensors", tensors))
    assert lora.family == family
    assert set(lora.layers) == {LayerName("transformer", name) for name in modules.values()}


def test_cross_attention_alone_is_not_sd3s(tmp_path: Path) -> None:
    """LTX, Sana and PixArt call theirs alike."""
    names = [f"transformer_blocks.0.{attention}.to_q" for attention in ("attn1", "attn2")]
    both = {
        LayerName("transformer", name): Known(torch.ones(2, 64), torch.ones(8, 2)) for name in names
    }
    alone = dict(list(both.items())[1:])
    loras = [
        read(tables.save(tmp_path / f"{len(known)}.safetensors", tables.peft(known)))
        for known in (both, alone)
    ]
    assert [lora.family for lora in loras] == ["generic", "sd3"]
    assert common_family(*loras) == "generic"


def test_a_second_text_encoder_alone_may_be_sdxls_or_sd3s(tmp_path: Path) -> None:
    name = LayerName("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1")
    known = {name: Known(torch.ones(2, 8), torch.ones(8, 2))}
    lora = read(tables.save(tmp_path / "lora.safetensors", tables.peft(known)))
    assert {lora.family, *lora.rivals} == {"sdxl", "sd3"}
