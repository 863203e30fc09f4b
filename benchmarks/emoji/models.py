"""The parts of the emoji world's pipeline, before training."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .world import WORDS

LENGTH, TEXT, LATENT = 16, 128, 8
START, END = "<|startoftext|>", "<|endoftext|>"


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until every word of the closed list is one token."""
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in spelt):
        counts = Counter(pair for word in spelt for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in spelt:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer that knows every word of the emoji world as one token."""
    merges = _merges(WORDS)
    letters = list(ascii_lowercase)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    tokens = [*dict.fromkeys(tokens), START, END]
    words: dict[str, Any] = {
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }
    return CLIPTokenizer(
        **words,
        model_max_length=LENGTH,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer text encoder."""
    ends: dict[str, Any] = {
        name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT,
        intermediate_size=3 * TEXT,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=TEXT,
        **ends,
    )
    return CLIPTextModel(config)


def vae() -> AutoencoderKL:
    """64 x 64 x 3 pictures to 16 x 16 x 8 latents."""
    blocks: dict[str, Any] = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=LATENT,
        # Two groups only: with more, flat areas lose their brightness to the normalisation.
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def unet() -> UNet2DConditionModel:
    """A UNet with attention at 8, 4 and 2 pixels; the text is also pooled beside the timestep.

    The lowest level is cheap and sees the whole picture: it is where shapes are remembered.
    """
    blocks: dict[str, Any] = {
        "block_out_channels": (32, 80, 144, 192),
        "attention_head_dim": (1, 4, 6, 8),  # the number of heads, whatever its name says
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    }
    return UNet2DConditionModel(
        **blocks,
        sample_size=16,
        in_channels=LATENT,
        out_channels=LATENT,
        layers_per_block=1,
        cross_attention_dim=TEXT,
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule; the same for training and sampling. Its last step is pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
