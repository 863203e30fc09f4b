"""Whole text-to-image models of each family, tiny and random, as model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

lib: Any = diffusers
lib_text: Any = transformers
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ENDS = ("<|startoftext|>", "<|endoftext|>")


def clip_tokenizer() -> Any:
    tokens = [*_ENDS, *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    return lib_text.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16,
        bos_token=_ENDS[0], eos_token=_ENDS[1], unk_token=_ENDS[1], pad_token=_ENDS[1],
    )  # fmt: skip


def clip(kind: Any, vocabulary: int = 54) -> Any:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=24,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return kind(config).eval()


def _t5(width: int) -> tuple[Any, Any]:
    tokens = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *_LETTERS])}
    words: Any = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = lib_text.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip
    config = lib_text.T5Config(
        vocab_size=len(tokens), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
    )  # fmt: skip
    return tokenizer, lib_text.T5EncoderModel(config).eval()


def vae(channels: int, **changes: Any) -> Any:
    return lib.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=2,
        sample_size=16, **changes,
    ).eval()  # fmt: skip


def sd15_unet(layers: int) -> Any:
    return lib.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip


def sdxl_unet() -> Any:
    """With SDXL's levels."""
    return lib.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), cross_attention_dim=48, attention_head_dim=2,
        norm_num_groups=4, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
    ).eval()  # fmt: skip


def sd15() -> Any:
    torch.manual_seed(0)
    unet = sd15_unet(1)
    return lib.StableDiffusionPipeline(
        vae=vae(4), text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(), unet=unet,
        scheduler=lib.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    torch.manual_seed(1)
    unet = sdxl_unet()
    return lib.StableDiffusionXLPipeline(
        vae=vae(4, force_upcast=True), text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet,
        scheduler=lib.EulerDiscreteScheduler(steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def sd3() -> Any:
    torch.manual_seed(2)
    transformer = lib.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=16,
        pooled_projection_dim=48, out_channels=4, pos_embed_max_size=16,
    ).eval()  # fmt: skip
    tokenizer, t5 = _t5(48)
    return lib.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=lib.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.06), text_encoder=clip(CLIPTextModelWithProjection),
        text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), text_encoder_3=t5, tokenizer_3=tokenizer,
    )  # fmt: skip


def flux() -> Any:
    torch.manual_seed(3)
    transformer = lib.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=24,
        axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    ).eval()  # fmt: skip
    tokenizer, t5 = _t5(16)
    return lib.FluxPipeline(
        scheduler=lib.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4, shift_factor=0.1), text_encoder=clip(CLIPTextModel),
        tokenizer=clip_tokenizer(), text_encoder_2=t5, tokenizer_2=tokenizer,
        transformer=transformer,
    )  # fmt: skip


FAMILIES = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def save(family: str, folder: Path) -> Path:
    """Write a family's model folder."""
    pipe = FAMILIES[family]()
    pipe.save_pretrained(folder)
    return folder
