"""Key → shape tables of real and tiny model classes, and naive writers of each key style."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lorabake.lora import LayerName

Shapes = dict[LayerName, tuple[int, ...]]

XL_BLOCKS: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY_15: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "sample_size": 8,
}
TINY_XL: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "layers_per_block": 2,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 28,
    "sample_size": 8,
}
TINY_FLUX: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "in_channels": 4,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": True,
}
TINY_CLIP: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 12,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def clip(kind: Callable[[CLIPTextConfig], nn.Module], **config: Any) -> nn.Module:
    return kind(CLIPTextConfig(**config))


def of(component: str, model: nn.Module) -> Shapes:
    """Every linear and convolutional layer of a model, under the name that lorabake gives it."""
    shapes: Shapes = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            flat = component.startswith("text_encoder") and path.startswith("encoder.layers.")
            name = LayerName(component, f"text_model.{path}" if flat else path)
            shapes[name] = tuple(module.weight.shape)
    return shapes


@functools.cache
def model(name: str) -> Shapes:
    """The layers of a published model (real configuration, no weights), or of a tiny one."""
    with torch.device("meta"):
        if name in ("sd15", "sd2"):
            width = 768 if name == "sd15" else 1024
            flat = name == "sd2"
            unet = UNet2DConditionModel(cross_attention_dim=width, use_linear_projection=flat)
            return of("unet", unet) | of("text_encoder", clip(CLIPTextModel, hidden_size=width))
        if name == "sdxl":
            second = clip(CLIPTextModelWithProjection, hidden_size=1280, projection_dim=1280)
            return (
                of("unet", UNet2DConditionModel(**XL_BLOCKS))
                | of("text_encoder", clip(CLIPTextModel, hidden_size=768))
                | of("text_encoder_2", second)
            )
        if name == "flux":
            return of("transformer", FluxTransformer2DModel(guidance_embeds=True)) | of(
                "text_encoder", clip(CLIPTextModel, hidden_size=768)
            )
        if name == "sd3":
            return of("transformer", SD3Transformer2DModel())
        if name == "tiny flux":
            return of("transformer", FluxTransformer2DModel(**TINY_FLUX))
        config = {"tiny sd15": TINY_15, "tiny sdxl": TINY_XL}[name]
        return of("unet", UNet2DConditionModel(**config)) | of(
            "text_encoder", clip(CLIPTextModel, **TINY_CLIP)
        )


@dataclass
class Known:
    """One layer of a LoRA that the test made up."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def delta(self) -> Tensor:
        """ΔW in float64."""
        rank = self.down.shape[0]
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return scale * product.reshape(self.up.shape[0], *self.down.shape[1:])


def random_lora(
    shapes: Shapes,
    seed: int = 0,
    *,
    ranks: tuple[int, ...] = (1, 2, 4),
    alphas: tuple[float | None, ...] = (None, 0.5, 1.0, 3.0),
    dtype: torch.dtype = torch.float32,
) -> dict[LayerName, Known]:
    """Factors for every layer, with mixed ranks and alphas."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    lora: dict[LayerName, Known] = {}
    for i, (name, shape) in enumerate(shapes.items()):
        rank, alpha = ranks[i % len(ranks)], alphas[i % len(alphas)]
        ones = (1,) * (len(shape) - 2)
        lora[name] = Known(draw(rank, *shape[1:]), draw(shape[0], rank, *ones), alpha)
    return lora


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file({key: t.clone().contiguous() for key, t in tensors.items()}, path, metadata or None)
    return path


def _written(
    lora: Mapping[LayerName, Known], stem: Callable[[LayerName], str], down: str, up: str
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, known in lora.items():
        key = stem(name)
        tensors[f"{key}{down}.weight"] = known.down
        tensors[f"{key}{up}.weight"] = known.up
        if known.alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(known.alpha)
    return tensors


def peft(lora: Mapping[LayerName, Known]) -> dict[str, Tensor]:
    return _written(lora, str, ".lora_A", ".lora_B")


def diffusers_new(lora: Mapping[LayerName, Known]) -> dict[str, Tensor]:
    tensors = _written(lora, str, ".lora.down", ".lora.up")
    text = {k: k.replace(".lora.", ".lora_linear_layer.") for k in tensors if "text_model" in k}
    return {text.get(key, key): tensor for key, tensor in tensors.items()}


def diffusers_old(lora: Mapping[LayerName, Known]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, tensor in diffusers_new(lora).items():
        for i in (1, 2):
            key = key.replace(f".attn{i}.", f".attn{i}.processor.").replace(
                ".to_out.0.", ".to_out."
            )
        for old, new in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out")):
            key = key.replace(f"self_attn.{old}_proj.lora_linear_layer", f"self_attn.to_{new}_lora")
            key = key.replace(f".to_{new}.lora.", f".to_{new}_lora.")
        tensors[key] = tensor
    return tensors


_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def kohya(lora: Mapping[LayerName, Known]) -> dict[str, Tensor]:
    second = any(name.component == "text_encoder_2" for name in lora)

    def stem(name: LayerName) -> str:
        prefix = _PREFIXES[name.component]
        prefix = prefix if second else prefix.replace("te1", "te")
        return f"{prefix}_{name.module.replace('.', '_')}"

    return _written(lora, stem, ".lora_down", ".lora_up")


SGM = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.resnets.1": "input_blocks.2.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0": "input_blocks.4.0",
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1": "input_blocks.5.0",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "down_blocks.2.resnets.0": "input_blocks.7.0",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.resnets.1": "input_blocks.8.0",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.resnets.2": "output_blocks.2.0",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.3.0",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.resnets.1": "output_blocks.4.0",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.resnets.2": "output_blocks.5.0",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.2.resnets.0": "output_blocks.6.0",
    "up_blocks.2.resnets.1": "output_blocks.7.0",
    "up_blocks.2.resnets.2": "output_blocks.8.0",
    "conv_out": "out.2",
}
"""SDXL's UNet in diffusers and in Stability's code, spelled out."""

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def kohya_sgm(lora: Mapping[LayerName, Known]) -> dict[str, Tensor]:
    def stem(name: LayerName) -> str:
        module = name.module
        if name.component == "unet":
            block = max((b for b in SGM if module == b or module.startswith(f"{b}.")), key=len)
            inner = module.removeprefix(block)
            inner = "." + _RESNET[inner[1:]] if inner[1:] in _RESNET else inner
            module = SGM[block] + inner
        return f"{_PREFIXES[name.component]}_{module.replace('.', '_')}"

    return _written(lora, stem, ".lora_down", ".lora_up")


_FUSED = {
    "double_blocks.{}.img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "double_blocks.{}.txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "single_blocks.{}.linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_PLAIN = {
    "double_blocks.{}.img_attn.proj": "transformer_blocks.{}.attn.to_out.0",
    "double_blocks.{}.img_mlp.0": "transformer_blocks.{}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": "transformer_blocks.{}.ff.net.2",
    "double_blocks.{}.img_mod.lin": "transformer_blocks.{}.norm1.linear",
    "double_blocks.{}.txt_attn.proj": "transformer_blocks.{}.attn.to_add_out",
    "double_blocks.{}.txt_mlp.0": "transformer_blocks.{}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": "transformer_blocks.{}.ff_context.net.2",
    "double_blocks.{}.txt_mod.lin": "transformer_blocks.{}.norm1_context.linear",
    "single_blocks.{}.linear2": "single_transformer_blocks.{}.proj_out",
    "single_blocks.{}.modulation.lin": "single_transformer_blocks.{}.norm.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}


def flux_modules() -> dict[str, tuple[LayerName, ...]]:
    """Layers of FLUX's own code, and the diffusers layers that each of them is."""
    modules: dict[str, tuple[LayerName, ...]] = {}
    for i in range(38):
        for theirs, ours in _PLAIN.items():
            modules[theirs.format(i)] = (LayerName("transformer", ours.format(i)),)
        for theirs, inner in _FUSED.items():
            stem = "transformer_blocks" if "double" in theirs else "single_transformer_blocks"
            modules[theirs.format(i)] = tuple(
                LayerName("transformer", f"{stem}.{i}.{name}") for name in inner
            )
    return modules


def kohya_flux(lora: Mapping[LayerName, Known], *, sparse: bool = False) -> dict[str, Tensor]:
    """Fused layers share the first one's down factor, or (`sparse`) keep their own side by side.

    Returns:
        Tensors whose ΔW are those of `fused(lora)`, or with `sparse` those of `lora` itself.
    """
    tensors: dict[str, Tensor] = {}
    for theirs, names in flux_modules().items():
        if any(name not in lora for name in names):
            continue
        parts, first = [lora[name] for name in names], lora[names[0]]
        up = torch.block_diag(*(p.up for p in parts)) if sparse else _stacked(parts)
        down = torch.cat([p.down for p in parts]) if sparse else first.down
        if theirs.startswith("final_layer.adaLN"):
            up = torch.cat(up.chunk(2)[::-1])
        key = f"lora_unet_{theirs.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        if first.alpha is not None:
            own = len(parts) if sparse else 1
            tensors[f"{key}.alpha"] = torch.tensor(first.alpha * own)
    text = {name: known for name, known in lora.items() if name.component == "text_encoder"}
    return tensors | {k.replace("lora_te_", "lora_te1_"): t for k, t in kohya(text).items()}


def _stacked(parts: list[Known]) -> Tensor:
    return torch.cat([part.up for part in parts])


def fused(lora: Mapping[LayerName, Known]) -> dict[LayerName, Known]:
    """The LoRA with one down factor and one alpha per fused layer."""
    shared = dict(lora)
    for names in flux_modules().values():
        if len(names) > 1 and names[0] in lora:
            first = lora[names[0]]
            for name in names:
                shared[name] = Known(
                    first.down,
                    lora[name].up[:, :1].expand(-1, first.down.shape[0])
                    * torch.arange(1, first.down.shape[0] + 1),
                    first.alpha,
                )
    return shared


def adapter_metadata(component: str, **config: object) -> str:
    return json.dumps({f"{component}.{key}": value for key, value in config.items()})
