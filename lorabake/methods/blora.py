"""B-LoRA (arXiv 2403.14572): one block of the network has the subject, another one the style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from ..errors import PairError, RecipeError, listed
from ..lora.pairs import Pair
from ..lora.types import LayerName
from ..runtime.plan import Plan
from .method import BOTH, Context, Fused
from .values import one_of, shown, store

Elsewhere = Literal["none", "content", "style", "both"]


@dataclass(frozen=True)
class Params:
    """Which layers are whose; the defaults are the paper's blocks of SDXL, W_0^4 and W_0^5.

    A block is the beginning of module paths, with or without the component:
    `up_blocks.0.attentions.0`, `transformer.single_transformer_blocks`, `text_encoder`.

    Attributes:
        content_blocks: Where the content LoRA acts: a list, or a text with commas.
        style_blocks: Where the style LoRA acts; where both lists have a layer, both do.
        elsewhere: What acts in all other layers, text encoders included: `none` (the paper's),
            `content`, `style` or `both`.
    """

    content_blocks: list[str] = field(default_factory=lambda: ["up_blocks.0.attentions.0"])
    style_blocks: list[str] = field(default_factory=lambda: ["up_blocks.0.attentions.1"])
    elsewhere: Elsewhere = "none"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type, empty, or not one of the options.
        """
        store(
            self,
            content_blocks=_blocks("content_blocks", self.content_blocks),
            style_blocks=_blocks("style_blocks", self.style_blocks),
            elsewhere=one_of("elsewhere", self.elsewhere, get_args(Elsewhere)),
        )

    def split(self, pair: Pair) -> Pair:
        """A layer with what acts in it; both may be None."""
        content, style = (_within(pair.name, x) for x in (self.content_blocks, self.style_blocks))
        if not (content or style):
            content, style = (self.elsewhere in (role, "both") for role in ("content", "style"))
        return replace(
            pair, content=pair.content if content else None, style=pair.style if style else None
        )


def _blocks(name: str, value: object) -> list[str]:
    found = value.split(",") if isinstance(value, str) else value
    if isinstance(found, list | tuple):
        items = cast("Sequence[object]", found)
        words = [item.strip().strip(".") for item in items if isinstance(item, str)]
        if words and all(words) and len(words) == len(items):
            return words
    raise RecipeError(
        f"{shown(value)} is not a list of blocks",
        where=name,
        advice='Give beginnings of module paths, such as ["up_blocks.0.attentions.0"]',
    )


def _within(name: LayerName, blocks: Iterable[str]) -> bool:
    paths = (f"{name}.", f"{name.module}.")
    return any(path.startswith(f"{block}.") for block in blocks for path in paths)


def _groups(names: Iterable[LayerName]) -> list[str]:
    """Beginnings of these layers' paths, up to the first number."""
    found: dict[str, None] = {}
    for name in names:
        parts = str(name).split(".")
        end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        found[".".join(parts[: end + 1])] = None
    return list(found)


class BLora:
    """What does not act is left out of the file, so that every loader replays the split."""

    name = "blora"
    summary = "content in one block of the network, style in another (SDXL; others by parameter)"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Keep of each layer what acts in it: there is no numeric work.

        Raises:
            PairError: A LoRA has no layer in its blocks.
        """
        for role, blocks in (("content", params.content_blocks), ("style", params.style_blocks)):
            has = [pair.name for pair in pairs if getattr(pair, role) is not None]
            if not any(_within(name, blocks) for name in has):
                raise PairError(
                    f"the {role} LoRA has no layer in {listed(blocks)}",
                    where=f"{role}_blocks",
                    advice="The default is a block of SDXL. Name blocks of this model, with "
                    f"--set {role}_blocks=…; the LoRA has layers in {listed(_groups(has))}",
                )
        kept = tuple(pair for pair in map(params.split, pairs) if any(pair.ranks))
        return Fused(
            Plan((BOTH,) * len(kept)),
            notes={
                "layers_content": float(sum(pair.content is not None for pair in kept)),
                "layers_style": float(sum(pair.style is not None for pair in kept)),
            },
            pairs=kept,
        )


METHOD = BLora()
