from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_pipeline import (
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor

from lorabake.errors import LoraFileError, PairError
from lorabake.lora import LayerName, Lora, common_family, families, pair, read

from . import tables
from .tables import Known

UNSURE = LayerName("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")

STOCK = {
    "sd15": StableDiffusionLoraLoaderMixin,
    "sd2": StableDiffusionLoraLoaderMixin,
    "sdxl": StableDiffusionXLLoraLoaderMixin,
    "flux": FluxLoraLoaderMixin,
    "sd3": SD3LoraLoaderMixin,
}


def written(family: str, names: list[LayerName]) -> dict[str, Tensor]:
    """One numbered tensor per factor: 2 i for the down factor of layer i, 2 i + 1 for its up."""
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        for j, key in enumerate(families.get(family).keys(name)):
            tensors[key] = torch.full((1, 1), 2 * i + j)
    return tensors


def stock_paths(family: str, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Where stock diffusers puts each numbered tensor."""
    found = STOCK[family].lora_state_dict(
        dict(tensors), unet_config=SimpleNamespace(layers_per_block=2)
    )
    state = found[0] if isinstance(found, tuple) else found
    paths: dict[str, int] = {}
    for component in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        own = {
            k.removeprefix(f"{component}."): v
            for k, v in state.items()
            if k.startswith(f"{component}.")
        }
        if component == "unet":
            own = convert_unet_state_dict_to_peft(own)
        elif component.startswith("text_encoder") and own:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        paths |= {f"{component}.{key}": int(value[0, 0]) for key, value in own.items()}
    return paths


@pytest.mark.parametrize("family", STOCK)
def test_stock_diffusers_finds_every_layer_of_the_real_model(family: str) -> None:
    names = list(tables.model(family))
    tensors = written(family, names)
    assert len(tensors) == 2 * len(names)
    expected = {
        f"{name}.lora_{letter}.weight": 2 * i + j
        for i, name in enumerate(names)
        for j, letter in enumerate("AB")
    }
    assert stock_paths(family, tensors) == expected


@pytest.mark.parametrize("family", STOCK)
def test_what_is_written_reads_back(family: str, tmp_path: Path) -> None:
    shapes = tables.model(family)
    tensors: dict[str, Tensor] = {}
    for name, known in tables.random_lora(shapes, ranks=(1,), alphas=(None,)).items():
        down, up = families.get(family).keys(name)
        tensors |= {down: known.down.half(), up: known.up.half()}
    lora = read(tables.save(tmp_path / "lora.safetensors", tensors))
    assert lora.family == family
    assert {name: layer.shape for name, layer in lora.layers.items()} == shapes


@pytest.mark.parametrize(
    ("family", "component", "module"),
    [
        ("sd15", "unet", "conv_norm_out"),
        ("sd15", "text_encoder_2", "text_model.encoder.layers.0.mlp.fc1"),
        ("sd15", "transformer", "transformer_blocks.0.attn.to_q"),
        # Stability's numbering has no place for a third layer in a down block.
        ("sdxl", "unet", "down_blocks.0.resnets.2.conv1"),
        ("sdxl", "unet", "mid_block.attentions.1.proj_in"),
        ("flux", "transformer", "transformer_blocks.0.attn.nonsense"),
    ],
)
def test_layers_that_no_loader_finds(family: str, component: str, module: str) -> None:
    with pytest.raises(LoraFileError, match=f"{component}.{module}"):
        families.get(family).keys(LayerName(component, module))


def test_an_unknown_family_suggests_a_known_one() -> None:
    with pytest.raises(LoraFileError, match=r"'sdlx' \(did you mean 'sdxl'\?\)"):
        families.get("sdlx")
    assert {families.get(name).name for name in families.names()} == set(families.names())


FULL = {
    "sd15": "sd15", "sdxl": "sdxl", "flux": "flux",
    "tiny sd15": "sd15", "tiny sdxl": "sdxl", "tiny flux": "flux",
}  # fmt: skip

PARTS = [
    "attn1", "proj_in", "resnets", "down_blocks.1.attentions.0", "mid_block", "up_blocks.0",
    "text_model", "single_transformer_blocks.1", "attn.to_out", "context_embedder", "time_",
]  # fmt: skip


def part(tmp_path: Path, model: str, pattern: str) -> Path | None:
    shapes = {name: s for name, s in tables.model(model).items() if pattern in str(name)}
    known = tables.random_lora(shapes, ranks=(1,), alphas=(None,), dtype=torch.float16)
    file = tmp_path / f"{pattern or 'all'} {model}.safetensors"
    return tables.save(file, tables.peft(known)) if known else None


@pytest.mark.parametrize("model", FULL)
def test_any_part_of_a_model_goes_with_the_whole(model: str, tmp_path: Path) -> None:
    whole = read(part(tmp_path, model, "") or "")
    assert whole.family == FULL[model]
    for pattern in PARTS:
        path = part(tmp_path, model, pattern)
        if path is not None:
            assert common_family(read(path), whole) == FULL[model], pattern
            assert common_family(whole, read(path)) == FULL[model], pattern


@pytest.mark.parametrize("parts", [("attn1", "attn1"), ("", "attn1"), ("to_q", "attn2")])
@pytest.mark.parametrize("models", [("sd15", "sdxl"), ("sd15", "flux"), ("flux", "sd3")])
def test_two_base_models_are_an_error(
    models: tuple[str, str], parts: tuple[str, str], tmp_path: Path
) -> None:
    paths = [part(tmp_path, model, p) for model, p in zip(models, parts, strict=True)]
    loras = [read(path) for path in paths if path is not None]
    if len(loras) == 2:
        with pytest.raises(PairError, match=f"{models[0]}, the style LoRA for {models[1]}"):
            pair(*loras)


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"),
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
        ({"ss_base_model_version": "sd_1.5"}, "sd15"),
        ({"base_model": "stabilityai/stable-diffusion-xl-base-1.0"}, "sdxl"),
        ({"base_model": "Manojb/stable-diffusion-2-1-base"}, "sd2"),
        ({"ss_sd_model_name": "v1-5-pruned-emaonly.safetensors"}, "sd15"),
        ({"ss_sd_model_name": "sd_xl_base_1.0.safetensors"}, "sdxl"),
        ({"ss_base_model_version": "sd_v1", "base_model": "user/sdxl"}, "sd15"),
        # Contradicted by the layers' names, so the next statement counts.
        ({"modelspec.architecture": "flux-1-dev/lora", "base_model": "user/sdxl"}, "sdxl"),
    ],
)
def test_metadata_decides_where_names_do_not(
    metadata: dict[str, str], family: str, tmp_path: Path
) -> None:
    lora = small(tmp_path, metadata)
    assert (lora.family, lora.rivals) == (family, frozenset())


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"base_model": "user/dreamshaper-8"},
        {"base_model": "user/flux-to-sd15"},
        {"ss_base_model_version": "flux1", "ss_sd_model_name": "None"},
    ],
)
def test_metadata_that_tells_nothing_decides_nothing(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    lora = small(tmp_path, metadata)
    assert lora.family == "sd15"
    assert lora.rivals == {"sd2", "sdxl"}


def small(tmp_path: Path, metadata: dict[str, str], name: LayerName = UNSURE) -> Lora:
    tensors = tables.peft(tables.random_lora({name: (64, 64)}))
    return read(tables.save(tmp_path / "lora.safetensors", tensors, **metadata))


def test_families_are_told_by_what_they_call_themselves() -> None:
    for family in families.MEMBERS:
        for text in filter(None, (family.architecture, family.hub_id)):
            evidence = families.Evidence({}, "PEFT", {"base_model": text})
            found = [
                f.name
                for f in families.MEMBERS
                for said in evidence.stated
                if f.alias is not None and f.alias.search(said)
            ]
            assert found == ([] if family.alias is None else [family.name]), text


@pytest.mark.parametrize(
    ("name", "statements", "names"),
    [
        ("unet", ("sd_v1", "sd_v2"), ("sd15", "sd2")),
        ("unet", ("sdxl_base_v1-0", "sd_v1"), ("sdxl", "sd15")),
        ("dit", ("flux1", "sd3m"), ("flux", "sd3")),
        ("dit", ("stable-diffusion-3.5-large", "flux.1"), ("sd3", "flux")),
    ],
)
def test_two_stated_base_models_are_an_error(
    name: str, statements: tuple[str, str], names: tuple[str, str], tmp_path: Path
) -> None:
    layer = UNSURE if name == "unet" else LayerName("transformer", "transformer_blocks.0.attn.to_q")
    loras = [small(tmp_path, {"ss_base_model_version": text}, layer) for text in statements]
    with pytest.raises(PairError, match=f"is for {names[0]}, the style LoRA for {names[1]}"):
        pair(*loras)
    silent = small(tmp_path, {}, layer)
    for lora, family in zip(loras, names, strict=True):
        assert common_family(lora, silent) == common_family(silent, lora) == family


def test_what_layers_prove_beats_what_is_stated(tmp_path: Path) -> None:
    """People mislabel: text 768 wide is read by Stable Diffusion 1.5 alone."""
    name = LayerName("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    tensors = tables.peft(tables.random_lora({name: (64, 768)}))
    path = tables.save(tmp_path / "lora.safetensors", tensors, ss_base_model_version="sd_v2")
    assert read(path).family == "sd15"


def test_the_caller_can_name_the_family(tmp_path: Path) -> None:
    path = part(tmp_path, "tiny sd15", "attn1")
    assert path is not None
    lora = read(path, family="sdxl")
    assert (lora.family, lora.rivals) == ("sdxl", frozenset())
    with pytest.raises(LoraFileError, match=r"FLUX.1 has no such layers: unet\."):
        read(path, family="flux")


def test_another_transformer_is_taken_by_its_names(tmp_path: Path) -> None:
    name = LayerName("transformer", "caption_blocks.3.attn2.to_q")
    known = {name: Known(torch.ones(2, 8), torch.ones(6, 2))}
    lora = read(tables.save(tmp_path / "lora.safetensors", tables.peft(known)))
    assert lora.family == "generic"
    assert families.get("generic").keys(name)[0] == f"{name}.lora_A.weight"


@pytest.mark.parametrize("model", ["tiny sd15", "tiny sdxl", "tiny flux"])
def test_a_stranger_among_the_layers_of_a_model(model: str, tmp_path: Path) -> None:
    """It does not make a LoRA one for an unknown model; the user can say that it is."""
    shapes = {
        name: s for name, s in tables.model(model).items() if name.component != "text_encoder"
    }
    stranger = LayerName("transformer", "extra_blocks.0.thing")
    known = tables.random_lora({**shapes, stranger: (6, 6)}, ranks=(1,))
    path = tables.save(tmp_path / "lora.safetensors", tables.peft(known))
    with pytest.raises(LoraFileError, match="no base model family") as caught:
        read(path)
    assert f"style of PEFT): {stranger}." in str(caught.value)
    assert read(path, family="generic").layers.keys() == known.keys()


@pytest.mark.parametrize(
    "key", ["base_model.model.model.layers.0.self_attn.q_proj", "unet.down_blocks.0.nonsense"]
)
def test_layers_of_no_image_model(key: str, tmp_path: Path) -> None:
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(6, 2)}
    with pytest.raises(LoraFileError, match="no base model family") as caught:
        read(tables.save(tmp_path / "lora.safetensors", tensors))
    assert key.removeprefix("base_model.model.") in str(caught.value)
