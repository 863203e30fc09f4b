"""What apps make of a LoRA's keys, as tables: `rules/<app>.json`, and `maps.json` of their names.

In a table `{}` stands for a number. A part is a prefix, the map of what may follow it, and the
component that the result is in; behind a prefix that ends in an underscore, all dots are
underscores. A map leads from what a key says to the app's own module: `#1` is the second of those
that the app has fused into one. `any` is every name, as diffusers has it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabake.lora import LayerName, natives

from ..lora.tables import SGM

_FOLDER = Path(__file__).with_name("rules")
_RESNET = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What an app wants of one family's files.

    Attributes:
        parts: Prefix, name of the map, component.
        ends: Of the keys of the down and the up factor.
        needs: Patterns; a key must match each.
        together: Keys without their ends, of which a block has all or none.
        lacks: Pattern of the layers that the app does not find.
        then: What it does with these.
        never: Pattern that no key may match.
    """

    parts: tuple[tuple[str, str, str], ...]
    ends: tuple[str, str]
    needs: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    lacks: str | None = None
    then: str | None = None
    never: str | None = None

    def find(self, stem: str) -> str | None:
        """Where a key without its end leads: the component and the app's own name."""
        for prefix, name, component in self.parts:
            if stem.startswith(prefix):
                found = _follow(name, stem.removeprefix(prefix), flat=prefix.endswith("_"))
                if found is not None:
                    return f"{component}.{found}"
        return None

    def faults(self, keys: Iterable[str]) -> list[str]:
        """Why the app would not recognise a file with these keys."""
        keys = set(keys)
        wrong = [f"needs {n}" for n in self.needs if not any(re.match(n, key) for key in keys)]
        wrong += [f"never {key}" for key in keys if self.never and re.match(self.never, key)]
        stems = {key.removesuffix(f".{end}") for key in keys for end in self.ends}
        for group in self.together:
            for number in {m[1] for stem in stems if (m := _pattern(group, stem))}:
                wrong += [one.format(number) for one in group if one.format(number) not in stems]
        return wrong


@dataclass(frozen=True)
class App:
    """One app.

    Attributes:
        name: What it is called.
        keys: How many keys it may fail to find before it refuses a file, if it counts them.
        share: What share of the keys it may fail to find, if it takes the share.
        families: The rules of each family, or why the app does not open its files.
    """

    name: str
    keys: int | None
    share: float | None
    families: Mapping[str, Rules | str]


def _load(path: Path) -> App:
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    families: dict[str, Rules | str] = {
        name: row["not"] if "not" in row else Rules(**{k: _frozen(v) for k, v in row.items()})
        for name, row in table["families"].items()
    }
    limit = table["unmatched"]
    return App(table["app"], limit.get("keys"), limit.get("share"), families)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _pattern(group: Sequence[str], stem: str) -> re.Match[str] | None:
    """The first of these names that the key is, with its number."""
    found = (re.fullmatch(re.escape(one).replace(r"\{\}", r"(\d+)"), stem) for one in group)
    return next(filter(None, found), None)


@functools.cache
def _map(name: str, *, flat: bool) -> dict[str, str]:
    """Names with `{}` for each number → the app's own."""
    if name == "stability":
        table = _stability()
    else:
        maps = json.loads((_FOLDER / "maps.json").read_text(encoding="utf-8"))
        table = dict(zip(maps[name], maps[name], strict=True))
        table = dict(maps[name]) if isinstance(maps[name], dict) else table
    return {key.replace(".", "_"): value for key, value in table.items()} if flat else table


def _stability() -> dict[str, str]:
    """SDXL's UNet in Stability's code → in diffusers."""
    block = "mid_block.attentions.{}."
    inner = [k.removeprefix(block) for k in _map("unet", flat=False) if k.startswith(block)]
    table: dict[str, str] = {}
    for ours, theirs in SGM.items():
        table[theirs] = ours
        if "resnets" in ours:
            table |= {f"{theirs}.{b}": f"{ours}.{a}" for a, b in _RESNET.items()}
        if "attentions" in ours:
            table |= {f"{theirs}.{name}": f"{ours}.{name}" for name in inner}
    return table


def _follow(name: str, rest: str, *, flat: bool) -> str | None:
    if name == "any":
        return rest
    numbers = [m.span() for m in re.finditer(r"(?<=[._])\d+(?=[._]|$)", rest)]
    # A number may be a block's or part of a name; the table has those of blocks as `{}`.
    for mask in range(2 ** len(numbers)):
        chosen = [span for i, span in enumerate(numbers) if mask >> i & 1]
        pattern = rest
        for start, end in reversed(chosen):
            pattern = f"{pattern[:start]}{{}}{pattern[end:]}"
        if pattern in _map(name, flat=flat):
            return _map(name, flat=flat)[pattern].format(*(rest[a:b] for a, b in chosen))
    return None


def expected(name: LayerName) -> set[str]:
    """Where a key of this layer may lead: the diffusers name, or that of the model's own code."""
    targets = {str(name)}
    for native in natives.MEMBERS:
        home = native.home(name.module)
        if home is not None and name.component == "transformer":
            fused = native.modules[home[0]]
            part = [one.format(home[1]) for one in fused].index(name.module)
            own = home[0].format(home[1])
            targets.add(f"transformer.{own}#{part}" if len(fused) > 1 else f"transformer.{own}")
    return targets


APPS = {path.stem: _load(path) for path in sorted(_FOLDER.glob("*.json")) if path.stem != "maps"}
