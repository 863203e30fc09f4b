"""Files that are not a plain LoRA, or a broken one: one error each, which names the tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorabake.errors import LoraFileError, UnsupportedLoraError, UserError
from lorabake.lora import LayerName, read

from . import tables

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NAME = LayerName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
DOWN, UP, ALPHA = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.alpha"
PLAIN = {DOWN: torch.ones(4, 8), UP: torch.ones(6, 4), ALPHA: torch.tensor(2.0)}


def refused(tmp_path: Path, tensors: dict[str, Tensor]) -> UserError:
    path = tables.save(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(LoraFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return caught.value


@pytest.mark.parametrize(
    ("suffixes", "kind", "reason"),
    [
        (("dora_scale",), "DoRA", "rescale W0 + ΔW"),
        (("hada_w1_a", "dora_scale"), "DoRA", "of full rank"),
        (("lora_magnitude_vector.weight",), "DoRA", "base model's weights are needed"),
        (("oft_blocks",), "OFT", "instead of adding"),
        (("oft_diag", "rescale"), "OFT", "turn the base model's weights"),
        (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "GLoRA", "multiplies"),
        (("on_input",), "IA³", "multiply"),
        (("lora_up.bias",), "bias", "no place"),
        (("diff_b",), "bias", "no place"),
        (("w_norm", "b_norm"), "bias", "no place"),
        (("w_norm",), "norms", "vectors"),
        (("set_weight",), "whole weights", "replace"),
    ],
)
def test_other_kinds(suffixes: tuple[str, ...], kind: str, reason: str, tmp_path: Path) -> None:
    others = {f"{STEM}.{suffix}": torch.ones(4, 4) for suffix in suffixes}
    for tensors in (others, PLAIN | others):
        error = refused(tmp_path, tensors)
        assert isinstance(error, UnsupportedLoraError)
        assert kind in str(error)
        assert reason in str(error)
        named = [name for name in others if name in str(error)]
        assert f"of its {len(tensors)} tensors" in str(error)
        assert named


def test_differences_of_vectors(tmp_path: Path) -> None:
    error = refused(tmp_path, PLAIN | {"lora_unet_conv_norm_out.diff": torch.ones(4)})
    assert isinstance(error, UnsupportedLoraError)
    assert "1 of its 4 tensors hold differences of vectors" in str(error)
    assert "lora_unet_conv_norm_out.diff" in str(error)


def test_peft_bias(tmp_path: Path) -> None:
    known = tables.random_lora({NAME: (6, 8)})
    bias = {f"{NAME}.lora_B.bias": torch.ones(6)}
    assert "lora_B.bias" in str(refused(tmp_path, tables.peft(known) | bias))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({DOWN: torch.ones(3, 8)}, ["[3, 8]", "[6, 4]", DOWN, UP, "diffusers block names"]),
        ({DOWN: torch.ones(4)}, [DOWN, UP]),
        ({DOWN: torch.ones(4, 8, 3, 3), UP: torch.ones(6, 4, 3, 3)}, [DOWN, UP]),
        ({UP: torch.ones(6, 4, 1, 1)}, [DOWN, UP]),
        ({DOWN: torch.ones(0, 8), UP: torch.ones(6, 0)}, [DOWN, UP, "rank of at least 1"]),
        ({DOWN: None}, [UP, "lack the other factor", "kohya with diffusers block names"]),
        ({UP: None}, [DOWN, ALPHA, "lack the other factor"]),
        ({DOWN: None, UP: None}, [ALPHA]),
        ({ALPHA: torch.ones(2)}, [ALPHA, "[2]"]),
        ({ALPHA: torch.tensor(0.0)}, [ALPHA, "above 0", "0.0"]),
        ({ALPHA: torch.tensor(-4.0)}, [ALPHA, "above 0"]),
        ({ALPHA: torch.tensor(float("nan"))}, [ALPHA, "NaN"]),
        ({DOWN: torch.full((4, 8), float("nan"))}, [DOWN, "NaN or infinite"]),
        ({UP: torch.tensor([[1.0, 1.0, -float("inf"), 1.0]] * 6)}, [UP, "NaN or infinite"]),
        ({DOWN: torch.full((4, 8), float("inf"), dtype=torch.bfloat16)}, [DOWN]),
        ({DOWN: torch.full((4, 8), 1e200, dtype=torch.float64)}, [DOWN, "than float32 can hold"]),
        ({ALPHA: torch.tensor(1e200, dtype=torch.float64)}, [ALPHA, "than float32 can hold"]),
        ({DOWN: torch.ones(4, 8, dtype=torch.int8)}, [DOWN, "torch.int8"]),
        ({f"{STEM}.extra": torch.ones(1)}, [f"{STEM}.extra", "1 of its 4 tensors"]),
        ({"lora_unet_nonsense.lora_up.weight": torch.ones(6, 4)}, ["lora_unet_nonsense"]),
        (
            {
                "lora_unet_nonsense.lora_up.weight": torch.ones(6, 4),
                "lora_unet_nonsense.lora_down.weight": torch.ones(4, 6),
            },
            ["lora_unet_nonsense.lora_up.weight"],
        ),
    ],
)  # fmt: skip
def test_contradictions(change: dict[str, Tensor | None], words: list[str], tmp_path: Path) -> None:
    tensors = {key: t for key, t in (PLAIN | change).items() if t is not None}
    message = str(refused(tmp_path, tensors))
    for word in words:
        assert word in message


def test_the_same_factor_twice(tmp_path: Path) -> None:
    tensors = tables.peft(tables.random_lora({NAME: (6, 8)}, alphas=(None,)))
    again = {key.replace("unet.", "base_model.model.unet."): t for key, t in tensors.items()}
    message = str(refused(tmp_path, tensors | again))
    assert "hold the same factor" in message
    assert all(key in message for key in (*tensors, *again) if "lora_A" in key)
    again = {key.replace(".weight", ".default.weight"): t for key, t in tensors.items()}
    assert "hold the same factor" in str(refused(tmp_path, tensors | again))


def test_flux_rows_that_do_not_add_up(tmp_path: Path) -> None:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{stem}.lora_down.weight": torch.ones(2, 8),
        f"{stem}.lora_up.weight": torch.ones(23, 2),
    }
    assert stem in str(refused(tmp_path, tensors))


def test_what_is_unusual_but_clear(tmp_path: Path) -> None:
    """Integer and one-element alphas, 8-bit floats, a flat up factor beside a convolution."""
    eight = {DOWN: PLAIN[DOWN].to(torch.float8_e4m3fn), UP: PLAIN[UP].to(torch.float8_e5m2)}
    for change in (
        {ALPHA: torch.tensor(2)},
        {ALPHA: torch.tensor([2.0])},
        eight,
        {DOWN: torch.ones(4, 8, 3, 3)},
    ):
        layer = read(tables.save(tmp_path / "lora.safetensors", PLAIN | change)).layers[NAME]
        torch.testing.assert_close(layer.delta(), torch.full(layer.shape, 2.0))


def whole(tmp_path: Path) -> bytes:
    return tables.save(tmp_path / "whole.safetensors", PLAIN).read_bytes()


def _header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


_ONE = b'"dtype":"F32","shape":[1],"data_offsets":'


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"x",
        lambda _: b"<html>404 not found</html>" * 9,
        lambda whole: whole[:4],
        lambda whole: whole[:100],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda _: _header(b"{"),
        lambda _: _header(b"[]"),
        lambda _: struct.pack("<Q", 2**62) + b"{}",
        lambda _: _header(b'{"a":{' + _ONE + b'[0,400]}}', bytes(4)),
        lambda _: _header(b'{"a":{' + _ONE + b'[0,4]},"a":{' + _ONE + b'[0,4]}}', bytes(8)),
    ],
)  # fmt: skip
def test_damaged_files(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(damage(whole(tmp_path)))
    with pytest.raises(LoraFileError, match="is not a whole safetensors file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_no_tensors(tmp_path: Path) -> None:
    assert "holds no tensors" in str(refused(tmp_path, {}))
