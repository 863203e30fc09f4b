from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorabake.errors import LoraFileError
from lorabake.lora import LayerName, natives, read
from lorabake.lora.dialects import MEMBERS, detect

from . import tables
from .tables import Known

Writer = Callable[[Mapping[LayerName, Known]], dict[str, Tensor]]

WRITERS: dict[str, tuple[str, Writer, tuple[str, ...]]] = {
    # Dialect, writer, models that are written so.
    "peft": (
        "PEFT", tables.peft,
        ("sd15", "sd2", "sdxl", "flux", "sd3", "tiny sd15", "tiny sdxl", "tiny flux"),
    ),
    "old": ("diffusers (old)", tables.diffusers_old, ("sd15", "sd2", "sdxl", "tiny sd15")),
    "new": ("diffusers (new)", tables.diffusers_new, ("sd15", "sd2", "sdxl", "tiny sd15")),
    "kohya": (
        "kohya with diffusers block names", tables.kohya,
        ("sd15", "sd2", "sdxl", "tiny sd15", "tiny sdxl"),
    ),
    "sgm": ("kohya with sgm block names", tables.kohya_sgm, ("sdxl", "tiny sdxl")),
    "flux": ("kohya for FLUX", tables.kohya_flux, ("flux", "tiny flux")),
}  # fmt: skip
CASES = [(style, model) for style, (_, _, models) in WRITERS.items() for model in models]
# Dotted styles treat all UNets alike.
FEWER = [
    (s, m) for s, m in CASES if m != "sd2" and (s, m) not in {("old", "sdxl"), ("new", "sdxl")}
]


def lora_of(model: str, seed: int = 0) -> dict[LayerName, Known]:
    ranks = (1,) if not model.startswith("tiny") else (1, 2, 4)
    lora = tables.random_lora(tables.model(model), seed, ranks=ranks)
    return tables.fused(lora) if "flux" in model else lora


@pytest.mark.parametrize(("style", "model"), CASES)
def test_every_detector_on_every_table(style: str, model: str) -> None:
    name, writer, _ = WRITERS[style]
    small = {layer: (2,) * len(shape) for layer, shape in tables.model(model).items()}
    keys = writer(tables.random_lora(small, ranks=(1,))).keys()
    assert [d.name for d in MEMBERS if d.objection(keys) is None] == [name]
    assert detect(keys, "file").name == name


@pytest.mark.parametrize("native", natives.MEMBERS, ids=lambda native: native.family)
def test_a_whole_model_in_its_own_words_is_one_dialect(native: natives.Native) -> None:
    """Modules outside the blocks as well, some of which several models have."""
    modules = [module.format(0) for module in native.modules]
    for keys in (
        [f"lora_unet_{module.replace('.', '_')}.lora_down.weight" for module in modules],
        [f"diffusion_model.{module}.lora_A.weight" for module in modules],
        [f"base_model.model.{module}.lora_A.weight" for module in modules],
    ):
        assert len([dialect.name for dialect in MEMBERS if dialect.sign(keys)]) == 1


@pytest.mark.parametrize(("style", "model"), FEWER)
def test_every_layer_comes_back(style: str, model: str, tmp_path: Path) -> None:
    """Every linear and convolutional layer that the model class has, on its real shapes."""
    known = lora_of(model)
    path = tables.save(tmp_path / "lora.safetensors", WRITERS[style][1](known))
    lora = read(path)
    assert lora.layers.keys() == known.keys()
    for name, layer in lora.layers.items():
        expected = known[name]
        assert layer.shape == tables.model(model)[name]
        assert layer.scale == pytest.approx((expected.alpha or layer.rank) / layer.rank)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("style", ["peft", "old", "new", "kohya", "sgm", "flux"])
def test_delta_is_exact(style: str, seed: int, tmp_path: Path) -> None:
    """Random ranks, alphas, dtypes and subsets of layers, against the dense ΔW in float64."""
    random = torch.Generator().manual_seed(seed)
    model = {"flux": "tiny flux", "sgm": "tiny sdxl"}.get(style, "tiny sd15")
    dtype = (torch.float16, torch.bfloat16, torch.float32, torch.float64)[seed % 4]
    ranks = tuple(torch.randint(1, 7, (5,), generator=random).tolist())
    alphas = (None, *torch.rand(6, generator=random).mul(8).add(0.01).tolist())
    known = tables.random_lora(tables.model(model), seed, ranks=ranks, alphas=alphas, dtype=dtype)
    if style == "flux":
        known = tables.fused(known)
    else:
        keep = torch.rand(len(known), generator=random) < 0.6
        known = {n: k for (n, k), kept in zip(known.items(), keep, strict=True) if kept}
    lora = read(tables.save(tmp_path / "lora.safetensors", WRITERS[style][1](known)))
    assert lora.layers.keys() == known.keys()
    for name, layer in lora.layers.items():
        expected = known[name]
        # The file holds alpha in float32.
        alpha = None if expected.alpha is None else torch.tensor(expected.alpha).item()
        torch.testing.assert_close(
            layer.delta(torch.float64),
            Known(expected.down, expected.up, alpha).delta,
            rtol=1e-12,
            atol=1e-12,
        )
        assert layer.down.dtype == layer.up.dtype == expected.down.dtype


def test_block_diagonal_flux_layers_get_their_own_rank_back(tmp_path: Path) -> None:
    known = tables.random_lora(tables.model("tiny flux"), ranks=(2,), alphas=(3.0,))
    path = tables.save(tmp_path / "lora.safetensors", tables.kohya_flux(known, sparse=True))
    lora = read(path)
    assert lora.layers.keys() == known.keys()
    for name, layer in lora.layers.items():
        assert layer.rank == 2
        torch.testing.assert_close(
            layer.delta(torch.float64), known[name].delta, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    ("change", "component"),
    [
        (lambda key: key.removeprefix("unet."), "unet"),
        (lambda key: key.replace("unet.", "base_model.model."), "unet"),
        (lambda key: key.replace("unet.", "base_model.model.unet."), "unet"),
        (lambda key: key.replace(".weight", ".default.weight"), "unet"),
        (lambda key: key.replace("unet.", "transformer."), "transformer"),
    ],
)  # fmt: skip
def test_variants_of_peft_keys(
    change: Callable[[str], str], component: str, tmp_path: Path
) -> None:
    name = LayerName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    if component == "transformer":
        name = LayerName("unet", "transformer_blocks.0.attn.to_q")
    known = tables.random_lora({name: (6, 5)})
    tensors = {change(key): tensor for key, tensor in tables.peft(known).items()}
    lora = read(tables.save(tmp_path / "lora.safetensors", tensors))
    assert list(lora.layers) == [LayerName(component, name.module)]


def test_text_encoder_paths_of_transformers_5(tmp_path: Path) -> None:
    known = tables.random_lora({LayerName("text_encoder", "encoder.layers.0.mlp.fc1"): (6, 5)})
    lora = read(tables.save(tmp_path / "lora.safetensors", tables.peft(known)))
    assert list(lora.layers) == [LayerName("text_encoder", "text_model.encoder.layers.0.mlp.fc1")]


def test_kohya_keys_with_the_component_transformer(tmp_path: Path) -> None:
    known = tables.random_lora(tables.model("tiny flux"))
    ends = {
        "lora_A.weight": "lora_down.weight",
        "lora_B.weight": "lora_up.weight",
        "alpha": "alpha",
    }
    tensors = {
        f"lora_{key.removesuffix(f'.{old}').replace('.', '_')}.{new}": tensor
        for key, tensor in tables.peft(known).items()
        for old, new in ends.items()
        if key.endswith(old)
    }
    lora = read(tables.save(tmp_path / "lora.safetensors", tensors))
    assert lora.layers.keys() == known.keys()


def test_no_dialect_names_every_reason(tmp_path: Path) -> None:
    path = tables.save(tmp_path / "model.safetensors", {"conv_in.weight": torch.ones(1)})
    with pytest.raises(LoraFileError) as caught:
        read(path)
    for dialect in MEMBERS:
        assert dialect.name in str(caught.value)
    assert "conv_in.weight" in str(caught.value)


def test_two_dialects_are_refused(tmp_path: Path) -> None:
    known = tables.random_lora(tables.model("tiny sd15"))
    half = dict(list(known.items())[:3])
    path = tables.save(tmp_path / "both.safetensors", tables.peft(known) | tables.kohya(half))
    with pytest.raises(LoraFileError, match=r"mix the key styles of PEFT .* and kohya") as caught:
        read(path)
    assert f"({min(k for k in tables.peft(known) if 'lora_' in k)})" in str(caught.value)
    for dialect in MEMBERS:
        assert dialect.name in str(caught.value)
