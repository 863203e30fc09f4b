"""Module names of models' own code ⇄ diffusers names. A new one is a file here and in `MEMBERS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..names import bare, layer_name
from ..types import LayerName, LowRank
from . import flux, flux2, sd3, wan, zimage
from .native import Native

__all__ = ["MEMBERS", "Native", "known", "likeliest", "place", "placing", "possible"]

MEMBERS = (flux.NATIVE, flux2.NATIVE, sd3.NATIVE, wan.NATIVE, zimage.NATIVE)

# Blocks that no diffusers model has under this name.
_OWN = re.compile(
    r"(double|single|joint)_blocks[._]\d+[._]"
    r"|blocks[._]\d+[._]((self|cross)_attn|ffn[._][02]$)"
    r"|(layers|(noise|context)_refiner)[._]\d+[._]attention[._](qkv|out)$"
    r"|(double|single)_stream_modulation(_img|_txt)?[._]lin$"
    r"|(time|vector|guidance)_in[._](in|out)_layer$"
    r"|final_layer[._]|y_embedder[._]mlp[._]\d+$|time_projection[._]1$"
    r"|(time|text)_embedding[._][02]$|head[._]head$|img_emb[._]proj[._]\d$"
)


def known(module: str) -> bool:
    """Whether only a model's own code has a module of this name."""
    return _OWN.match(module) is not None


def possible(module: str) -> bool:
    """Whether some model's own code has a module of this name, as diffusers may have, too."""
    named = any(native.find(module) for native in MEMBERS)
    return named or zimage.SIGN.match(module) is not None


def likeliest(modules: Collection[str], members: Sequence[Native] = MEMBERS) -> list[Native]:
    """The models that a file with these modules may be for, those that it has signs of first."""

    def signed(native: Native) -> bool:
        return native.sign is not None and any(map(native.sign.search, modules))

    return sorted(members, key=signed, reverse=True)


def place(
    module: str, factors: LowRank, members: Iterable[Native] = MEMBERS
) -> dict[LayerName, LowRank] | None:
    """The layers of the first model that has this module in this shape; None if none has."""
    found = (native.place(module, factors) for native in members)
    return next((layers for layers in found if layers is not None), None)


def placing(
    paths: Collection[str],
) -> Callable[[str, LowRank], Mapping[LayerName, LowRank] | None]:
    """How to place the modules of a file that has all these, in native or in diffusers names.

    Some names, such as `img_in`, are of both kinds; the other modules then tell which is meant.
    """
    inner = [bare(path) for path in paths]
    native = any(map(known, inner)) or any(map(zimage.SIGN.match, inner))
    members = likeliest(inner)

    def placed(path: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
        found = place(bare(path), factors, members) if native else None
        return {layer_name(path): factors} if found is None and not known(bare(path)) else found

    return placed
