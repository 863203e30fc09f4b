"""Exported files in stock diffusers, in PEFT and in lorabake itself: the same ΔW."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_pipeline
from diffusers.utils import logging as diffusers_logging
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import lorabake
from lorabake import lora
from lorabake.errors import BundleError, OutputError
from lorabake.lora import LayerName, LowRank, Pair, families

from .. import bases, tiny
from ..oracle import Dense, Shapes, write_lora
from .baked import baked
from .plain import deltas, error
from .test_stock import Messages, loaded

Build = Callable[[], tuple[Any, tiny.Inputs]]
PREFERRED = {"sd15": "kohya", "sdxl": "peft", "flux": "peft"}


@pytest.fixture
def messages() -> Iterator[list[str]]:
    handler = Messages()
    diffusers_logging.add_handler(handler)
    yield handler.texts
    diffusers_logging.remove_handler(handler)


def merged(folder: Path, shapes: Shapes, dialect: str) -> tuple[Path, dict[str, Tensor]]:
    """A direct merge of two random LoRAs, and its updates."""
    paths = folder / "content.safetensors", folder / "style.safetensors"
    loras = [write_lora(path, shapes, dialect, seed=i) for i, path in enumerate(paths)]
    lorabake.make(*paths, folder / "b.safetensors", method="direct")
    return folder / "b.safetensors", summed(loras)


def summed(loras: list[Dense]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for dense in loras:
        for name, delta in dense.delta.items():
            total[name] = total.get(name, 0) + delta
    return total


def some(shapes: Shapes) -> Shapes:
    """Every third layer, for speed."""
    return dict([*shapes.items()][::3])


def check_loaded(pipe: Any, updates: dict[str, Tensor]) -> None:
    """Whether the pipeline has these updates and no others but zeros."""
    adapted, seen = tiny.layers(pipe), 0
    for name in adapted:
        found, wanted = loaded(adapted[name]), updates.get(name)
        if wanted is not None:
            assert found is not None, name
            assert error(found, wanted) <= 1e-6, name
            seen += 1
        assert wanted is not None or found is None or not found.any(), name
    assert seen == len(updates) > 0


@pytest.mark.parametrize(
    ("build", "to"),
    [
        (tiny.sd15, "diffusers"), (tiny.sd15, "kohya"), (tiny.sdxl, "diffusers"),
        (tiny.sdxl, "kohya"), (tiny.flux, "diffusers"),
    ],
)  # fmt: skip
def test_stock_diffusers_loads_it(
    build: Build, to: Any, tmp_path: Path, messages: list[str]
) -> None:
    pipe, _ = build()
    bundle, updates = merged(tmp_path, some(tiny.shapes(pipe)), PREFERRED[build.__name__])
    assert lorabake.export(bundle, tmp_path / "plain.safetensors", to).exact
    messages.clear()
    pipe.load_lora_weights(str(tmp_path), weight_name="plain.safetensors")
    assert messages == []
    check_loaded(pipe, updates)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("build", [tiny.sdxl, tiny.flux])
def test_peft_loads_the_folders(build: Build, tmp_path: Path) -> None:
    """Each component's folder fits the model as it is, and adapts its layers and no others."""
    pipe, _ = build()
    bundle, updates = merged(tmp_path, some(tiny.shapes(pipe)), "peft")
    report = lorabake.export(bundle, tmp_path / "plain", "peft")
    denoiser = "unet" if build is tiny.sdxl else "transformer"
    folders = {denoiser: tmp_path / "plain"} | {
        name: tmp_path / "plain" / name for name in report.parts[0].ranks if name != denoiser
    }
    for name, folder in folders.items():
        PeftModel.from_pretrained(getattr(pipe, name), str(folder))  # a missing key is a warning
    check_loaded(pipe, updates)
    # A bundle for FLUX may have empty layers beside these.
    assert lora.read(tmp_path / "plain").layers.keys() >= {
        LayerName(denoiser, name.partition(".")[2]) for name in updates if denoiser in name
    }


@pytest.mark.parametrize(
    ("family", "to"),
    [("sd15", "kohya"), ("sdxl", "diffusers"), ("sdxl", "kohya"), ("sd3", "diffusers"),
     ("sd3", "kohya"), ("flux", "kohya")],
)  # fmt: skip
def test_it_is_read_again(family: str, to: Any, tmp_path: Path) -> None:
    pipe = bases.FAMILIES[family]()
    known = families.get(family)
    shapes = {
        name: shape
        for name, shape in some(tiny.shapes(pipe)).items()
        if known.owns(LayerName(*name.split(".", 1)))
    }
    bundle, updates = merged(tmp_path, shapes, "peft")
    lorabake.export(bundle, tmp_path / "plain.safetensors", to)
    layers = lora.read(tmp_path / "plain.safetensors").layers
    found = {str(name): layer.delta(torch.float64) for name, layer in layers.items()}
    assert updates.keys() <= found.keys()
    for name, delta in found.items():
        if name in updates:
            assert error(delta, updates[name]) <= 1e-6, name
        else:
            assert not delta.any(), name  # a part of a fused module


STOCK: dict[str, tuple[str, Shapes]] = {
    "flux": ("FluxLoraLoaderMixin", {
        **{f"transformer_blocks.3.attn.{x}": (3072, 3072) for x in ("to_q", "to_v", "add_q_proj")},
        "transformer_blocks.3.ff.net.0.proj": (12288, 3072),
        **{f"single_transformer_blocks.7.attn.{x}": (3072, 3072) for x in ("to_q", "to_k")},
        "single_transformer_blocks.7.proj_out": (3072, 15360),
    }),
    "flux2": ("Flux2LoraLoaderMixin", {
        **{f"transformer_blocks.0.attn.add_{x}_proj": (3072, 3072) for x in "qkv"},
        "transformer_blocks.0.ff.linear_in": (18432, 3072),
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (27648, 3072),
    }),
    "zimage": ("ZImageLoraLoaderMixin", {
        **{f"layers.9.attention.{x}": (3840, 3840) for x in ("to_q", "to_v", "to_out.0")},
        "layers.9.feed_forward.w1": (10240, 3840),
    }),
    "qwen": ("QwenImageLoraLoaderMixin", {
        **{f"transformer_blocks.5.attn.{x}": (3072, 3072) for x in ("to_k", "to_add_out")},
        "transformer_blocks.5.img_mlp.net.0.proj": (12288, 3072),
    }),
    "wan": ("WanLoraLoaderMixin", {
        # Its converter for kohya's keys wants them all.
        **{
            f"blocks.0.attn{i}.{x}": (1536, 1536)
            for i in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")
        },
        "blocks.0.ffn.net.0.proj": (8960, 1536),
        "blocks.0.ffn.net.2": (1536, 8960),
    }),
}  # fmt: skip
"""Some layers of real models: parts of fused modules are missing, of FLUX also an MLP's."""


def low(shape: tuple[int, ...], rank: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", STOCK)
def test_transformers_in_stock_diffusers(family: str, to: Any, tmp_path: Path) -> None:
    """Compared by what the updates do to a random vector: the dense ones are large."""
    mixin, shapes = STOCK[family]
    g, pairs = torch.Generator().manual_seed(0), list[Pair]()
    probes, wanted = dict[str, Tensor](), dict[str, Tensor]()
    for rank, (name, shape) in enumerate(shapes.items(), 1):
        (a, b), (c, d), x = low(shape, rank, g), low(shape, 3, g), torch.randn(shape[1])
        pairs.append(Pair(LayerName("transformer", name), LowRank(a, b), LowRank(c, d)))
        probes[name], wanted[name] = x, b @ (a @ x) + d @ (c @ x)
    bundle = baked(tmp_path / "b", pairs, family=family)
    lorabake.export(bundle, tmp_path / "plain.safetensors", to)
    loader: Any = getattr(lora_pipeline, mixin)
    found = loader.lora_state_dict(load_file(tmp_path / "plain.safetensors"))
    ends = (".lora_A.weight", ".lora_B.weight")
    modules = {re.sub(r"^transformer\.|\.lora_[AB]\.weight$", "", key) for key in found}
    assert {*shapes} <= modules
    for name in modules:
        down, up = (found[f"transformer.{name}{end}"] for end in ends)
        # Of Z-Image's fused layers it makes three that share A, of others it takes apart A too.
        assert family == "zimage" or down.shape[0] == len(shapes) + 3
        if name in shapes:
            assert error(up @ (down @ probes[name]), wanted[name]) <= 1e-5, name
        else:
            assert not up.any(), name


def test_rows_of_a_fused_module(tmp_path: Path) -> None:
    """Stability's code has [q; k; v], and of the last modulation shift before scale."""
    blocks = "transformer_blocks.0.attn"
    shapes: Shapes = {f"transformer.{blocks}.to_{x}": (16, 16) for x in "qkv"} | {
        "transformer.norm_out.linear": (32, 16), "transformer.pos_embed.proj": (16, 4, 2, 2),
    }  # fmt: skip
    bundle, updates = merged(tmp_path, shapes, "peft")
    lorabake.export(bundle, tmp_path / "plain.safetensors", "kohya")
    found = deltas(tmp_path / "plain.safetensors")
    rows = [
        updates.get(f"transformer.{blocks}.to_{x}", torch.zeros(16, 16).double()) for x in "qkv"
    ]
    assert error(found["lora_unet_joint_blocks_0_x_block_attn_qkv"], torch.cat(rows)) <= 1e-6
    scale, shift = updates["transformer.norm_out.linear"].chunk(2)
    swapped = torch.cat([shift, scale])
    assert error(found["lora_unet_final_layer_adaLN_modulation_1"], swapped) <= 1e-6
    assert len(found) == 3


def test_two_denoisers_are_two_files(tmp_path: Path) -> None:
    """Loaders take one from a file; each is named as the only one is."""
    module = "blocks.0.attn1.to_q"
    shapes: Shapes = {f"{c}.{module}": (16, 16) for c in ("transformer", "transformer_2")}
    paths = tmp_path / "content.safetensors", tmp_path / "style.safetensors"
    loras = [write_lora(path, shapes, "peft", seed=i, keep=1.0) for i, path in enumerate(paths)]
    pairs = lora.pair(*lora.read_both(*paths, family="wan22"))
    updates = summed(loras)
    bundle = baked(tmp_path / "b", pairs, family="wan22")
    for to, stem in (
        ("diffusers", f"transformer.{module}"), ("kohya", "lora_unet_blocks_0_self_attn_q"),
    ):  # fmt: skip
        report = lorabake.export(bundle, tmp_path / f"{to}.safetensors", to)  # pyright: ignore[reportArgumentType]
        names = [Path(name).name for name in report.parts[0].files]
        assert names == [f"{to}.safetensors", f"{to}-transformer_2.safetensors"]
        for name, component in zip(names, ("transformer", "transformer_2"), strict=True):
            found = deltas(tmp_path / name)
            assert found.keys() == {stem}
            assert error(found[stem], updates[f"{component}.{module}"]) <= 1e-6


def test_an_alpha_is_one_that_the_dtype_holds(tmp_path: Path) -> None:
    """bfloat16 has no 257: alpha / rank must be 1 all the same."""
    name = LayerName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    g = torch.Generator().manual_seed(0)
    both: list[LowRank] = []
    for rank in (200, 57):
        down, up = low((8, 8), rank, g)
        both.append(LowRank(down.bfloat16(), up.bfloat16()))
    bundle = baked(tmp_path / "b", [Pair(name, *both)], torch.bfloat16)
    report = lorabake.export(bundle, tmp_path / "plain.safetensors", "kohya")
    tensors = load_file(tmp_path / "plain.safetensors")
    (alpha,) = (float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha"))
    (rank,) = (t.shape[0] for key, t in tensors.items() if key.endswith("lora_down.weight"))
    assert alpha == rank == report.parts[0].ranks["unet"] > 257
    wanted = sum(x.up.double() @ x.down.double() for x in both)
    (found,) = deltas(tmp_path / "plain.safetensors").values()
    assert isinstance(wanted, Tensor)
    assert error(found, wanted) <= 1e-6


def test_no_kohya_names_for_an_unknown_model(tmp_path: Path) -> None:
    shapes: Shapes = {"transformer.strange_blocks.0.mixer": (8, 8)}
    paths = tmp_path / "content.safetensors", tmp_path / "style.safetensors"
    for i, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed=i, keep=1.0)
    pairs = lora.pair(*lora.read_both(*paths, family="generic"))
    bundle = baked(tmp_path / "b", pairs, family="generic")
    with pytest.raises(OutputError, match=r"no name for the layer transformer\.strange_blocks"):
        lorabake.export(bundle, tmp_path / "plain.safetensors", "kohya")
    assert lorabake.export(bundle, tmp_path / "plain.safetensors").exact


def test_what_chooses_live_is_refused(tmp_path: Path) -> None:
    shapes: Shapes = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16)}
    paths = tmp_path / "content.safetensors", tmp_path / "style.safetensors"
    loras = [write_lora(path, shapes, "kohya", seed=i, keep=1.0) for i, path in enumerate(paths)]
    lorabake.make(*paths, tmp_path / "b", preset="dynamic-fls")
    with pytest.raises(BundleError, match=r"chooses live.*lorabake record.*--content-only"):
        lorabake.export(tmp_path / "b", tmp_path / "plain.safetensors")
    lorabake.export(tmp_path / "b", tmp_path / "plain.safetensors", only="style")
    (found,) = deltas(tmp_path / "plain.safetensors").values()
    assert error(found, next(iter(loras[1].delta.values()))) <= 1e-6


def test_the_configuration_of_peft(tmp_path: Path) -> None:
    """One expression of whole paths: `proj_out` alone would also mean those of all blocks."""
    shapes: Shapes = {"transformer.proj_out": (4, 16), "transformer.x_embedder": (16, 4)}
    bundle, _ = merged(tmp_path, shapes, "peft")
    lorabake.export(bundle, tmp_path / "plain", "peft")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert re.fullmatch(config["target_modules"], "proj_out")
    assert not re.fullmatch(config["target_modules"], "single_transformer_blocks.0.proj_out")
    assert config["r"] == config["lora_alpha"]
