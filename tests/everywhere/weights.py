"""Pipelines whose denoiser's weights are stored in one of the ways that people use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..runtime import pipes


@dataclass(frozen=True)
class Kind:
    """How weights are stored.

    Attributes:
        make: Gives the pipeline, and its denoiser before the weights were packed.
        tolerance: Of an output computed in the pipeline's dtype.
        packed: Whether some layers' weights cannot be changed in place.
    """

    make: Callable[[Path], tuple[Any, nn.Module]]
    tolerance: float
    packed: bool = True


def _of_dtype(dtype: torch.dtype) -> Callable[[Path], tuple[Any, nn.Module]]:
    def make(_: Path) -> tuple[Any, nn.Module]:
        unet = nn.Module.to(pipes.tiny_unet(), dtype)
        return pipes.sd(unet=unet), unet

    return make


def _swapped(pack: Callable[[nn.Linear], nn.Linear]) -> tuple[Any, nn.Module]:
    """A pipeline with the linear layers of the attentions packed; the others stay dense."""
    unet, plain = pipes.tiny_unet(), pipes.tiny_unet()
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and "attentions" in name:
            unet.set_submodule(name, pack(module))
    return pipes.sd(unet=unet), plain


def _eight_bit(_: Path) -> tuple[Any, nn.Module]:
    bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").nn

    def pack(linear: Any) -> nn.Linear:
        packed = bnb.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
        )
        packed.weight = bnb.Int8Params(linear.weight.data.clone(), has_fp16_weights=False)
        packed.bias = linear.bias
        return packed.requires_grad_(False).to("cpu")

    return _swapped(pack)


def _nf4(_: Path) -> tuple[Any, nn.Module]:
    bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").nn

    def pack(linear: Any) -> nn.Linear:
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        packed = bnb.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
        data = linear.weight.data.clone()
        packed.weight = bnb.Params4bit(data, requires_grad=False, quant_type="nf4")
        packed.bias = linear.bias
        return packed.to("cpu")

    return _swapped(pack)


def _torchao(folder: Path) -> tuple[Any, nn.Module]:
    torchao: Any = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.quantizers.quantization_config import TorchAoConfig

    plain = pipes.tiny_unet()
    plain.save_pretrained(folder / "torchao")
    dense = ["time_embedding", "time_emb_proj"]
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=dense)
    unet: Any = UNet2DConditionModel.from_pretrained(
        folder / "torchao", quantization_config=config, torch_dtype=torch.float32
    )
    return pipes.sd(unet=unet.eval()), plain


def _gguf(folder: Path) -> tuple[Any, nn.Module]:
    gguf: Any = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

    pipe = pipes.flux()
    plain: nn.Module = pipe.transformer
    pipe.transformer.save_config(folder / "flux")
    writer = gguf.GGUFWriter(folder / "flux.gguf", "flux")
    block = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in plain.state_dict().items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(tensor.numpy(), block)
            writer.add_tensor(name, packed, raw_dtype=block)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    transformer: Any = FluxTransformer2DModel.from_single_file(
        str(folder / "flux.gguf"),
        config=str(folder / "flux"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    pipe.transformer = transformer.eval()
    return pipe, plain


def cast_to_fp8(unet: Any, compute: torch.dtype) -> None:
    """Weights are stored in 8 bits and widened for each call of their layer."""
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)


def _fp8(compute: torch.dtype) -> Callable[[Path], tuple[Any, nn.Module]]:
    def make(_: Path) -> tuple[Any, nn.Module]:
        unet = nn.Module.to(pipes.tiny_unet(), compute)
        cast_to_fp8(unet, compute)
        return pipes.sd(unet=unet), pipes.tiny_unet()

    return make


KINDS: dict[str, Kind] = {
    "float32": Kind(_of_dtype(torch.float32), 1e-5, packed=False),
    "float16": Kind(_of_dtype(torch.float16), 8e-3, packed=False),
    "bfloat16": Kind(_of_dtype(torch.bfloat16), 6e-2, packed=False),
    "bitsandbytes 8-bit": Kind(_eight_bit, 1e-5),
    "bitsandbytes NF4": Kind(_nf4, 1e-5),
    "torchao int8 (weights only)": Kind(_torchao, 1e-5),
    "GGUF Q8_0": Kind(_gguf, 1e-5),
    "fp8 by layerwise casting, float32": Kind(_fp8(torch.float32), 1e-5),
    "fp8 by layerwise casting, bfloat16": Kind(_fp8(torch.bfloat16), 6e-2),
}


def packed(module: Any) -> bool:
    """Whether a layer's weight is anything but a dense one of 16 or more bits."""
    weight = module.weight.data
    return type(weight) is not Tensor or weight.dtype.itemsize == 1
