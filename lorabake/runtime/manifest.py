"""The manifest of a bundle: the JSON under the metadata key `lorabake` (SPEC.md)."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from typing import Any, get_args

from .errors import BundleError
from .extras import guidance, guidance_value, selection
from .fields import Fields, parse, refuse
from .guidance import Guidance
from .plan import Constant, Half, Live, Pattern, Rule, Scale, Table, Threshold
from .selection import Selection

KEY = "lorabake"
FORMAT = (1, 3)
"""The newest that this reader knows."""
MAX_LAYERS = 10_000
MAX_RANK = 32_768
MIN_COEFFICIENT = 2.0**-10
"""Smallest magnitude of a column coefficient, so that A can be had back from A·diag(m)."""
COEFFICIENT_ROWS = 2
"""Padding rows that hold the column coefficients: one for each source."""
MAX_BINS = 10_000
MAX_GATE = 10_000
"""Far beyond what shows anything but noise, far below what makes a weight infinite."""
DENOISERS = ("unet", "transformer", "transformer_2")
"""The components that have a clock; the layers of any other are applied all the time."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One of the stacked LoRAs, in stacking order (content, then style).

    `svd_rank` is the highest rank that its converted layers may have, where it was no plain LoRA.
    """

    role: str
    name: str
    sha256: str
    strength: float
    trigger_words: tuple[str, ...]
    base_model: str | None
    license: str | None
    svd_rank: int | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of the file.

    Attributes:
        component: Pipeline component, for example `unet`, `transformer`, `text_encoder`.
        module: Path of the module inside the component, diffusers naming.
        down: Key of the tensor that holds the stacked A.
        up: Key of the tensor that holds the stacked B.
        ranks: Rank of each source, in stacking order; 0 where a source lacks the layer.
        rule: What is applied when.
        columns: Whether two rows of padding hold the sources' column coefficients.
    """

    component: str
    module: str
    down: str
    up: str
    ranks: tuple[int, ...]
    rule: Rule
    columns: bool = False

    def __str__(self) -> str:
        return f"{self.component}.{self.module}"


@dataclass(frozen=True)
class Manifest:
    """Everything in a bundle that is not a tensor.

    `format` is that of the file which it was read from; written is the lowest that describes it.
    """

    method: str
    params: dict[str, Any]
    family: str
    base: str | None
    sources: tuple[Source, ...]
    layers: tuple[Layer, ...]
    scale: Scale | None
    digest: str
    format: tuple[int, int] = (1, 0)
    selection: Selection | None = None
    guidance: Guidance | None = None
    half: Half = "both"

    @property
    def columns(self) -> bool:
        """Whether a layer has column coefficients."""
        return any(layer.columns for layer in self.layers)

    @property
    def live(self) -> bool:
        """Whether a layer chooses live."""
        return any(isinstance(layer.rule, Live) for layer in self.layers)


def dumps(manifest: Manifest) -> str:
    """The canonical JSON of a manifest: names sorted, no spaces, ASCII, floats by their repr.

    Raises:
        BundleError: The manifest breaks the format.
    """
    scale = manifest.scale
    value: dict[str, Any] = {
        "format": _lowest(manifest),
        "method": manifest.method,
        "params": manifest.params,
        "family": manifest.family,
        "base": manifest.base,
        "sources": [_source_value(source) for source in manifest.sources],
        "layers": [_layer_value(layer) for layer in manifest.layers],
        "scale": scale
        and vars(scale) | {k: float(getattr(scale, k)) for k in ("alpha", "beta", "gamma")},
        "digest": manifest.digest,
    }
    if manifest.selection is not None:
        of = manifest.selection
        value["live"] = vars(of) | {"temperature": float(of.temperature)}
    if manifest.guidance is not None:
        value["guidance"] = guidance_value(manifest.guidance)
    if manifest.half != "both":
        value["half"] = manifest.half
    try:
        # A file name that is not UTF-8 reaches us as lone surrogates, which no reader takes.
        plain = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    except (TypeError, ValueError) as error:
        raise refuse(f"a value cannot be written as JSON ({error})") from error
    text = json.dumps(json.loads(plain), sort_keys=True, separators=(",", ":"))
    loads(text)
    return text


def _lowest(manifest: Manifest) -> str:
    """The lowest format that describes a manifest."""
    if manifest.half != "both":
        return "1.3"
    if manifest.selection is not None or manifest.guidance is not None or manifest.live:
        return "1.2"
    return "1.1" if manifest.columns else "1.0"


def _source_value(source: Source) -> dict[str, Any]:
    value = vars(source) | {"strength": float(source.strength)}
    return {k: v for k, v in value.items() if k != "svd_rank" or v is not None}


def _layer_value(layer: Layer) -> dict[str, Any]:
    value = {k: v for k, v in vars(layer).items() if k not in ("rule", "columns")}
    if layer.columns:
        value["columns"] = True
    match layer.rule:
        case Constant(gates):
            return value | {"gates": [float(gate) for gate in gates]}
        case Threshold(scores):
            return value | {"scores": [float(score) for score in scores]}
        case Table(select):
            return value | {"select": "".join(map(str, select))}
        case Live():
            return value | {"live": True}


def loads(text: str) -> Manifest:
    """Parse and check a manifest.

    Fields of a newer minor version that this reader does not know are ignored, with a warning.

    Raises:
        BundleError: The text is not a manifest of major version 1, or breaks the format.
    """
    top = Fields(parse(text), "")
    version = _version(top)
    sources = tuple(
        _source(Fields(value, f"sources[{i}]")) for i, value in enumerate(top.items("sources"))
    )
    if len(sources) != 2:
        raise top.wrong("sources", "a list of two sources, content and style")
    layers = tuple(
        _layer(Fields(value, f"layers[{i}]")) for i, value in enumerate(top.items("layers"))
    )
    if not 0 < len(layers) <= MAX_LAYERS:
        raise top.wrong("layers", f"a list of 1 to {MAX_LAYERS} layers")
    _check_unique(layers)
    scale = _scale(top)
    if scale is None and any(isinstance(layer.rule, Threshold) for layer in layers):
        raise top.wrong("scale", "an object, because layers have scores")
    chosen = selection(top)
    if chosen is None and any(isinstance(layer.rule, Live) for layer in layers):
        raise top.wrong("live", "an object, because layers choose live")
    if not _HEX.fullmatch(digest := top.text("digest")):
        raise top.wrong("digest", "64 lower-case hexadecimal digits")
    return Manifest(
        method=top.text("method"),
        params=top.mapping("params"),
        family=top.text("family"),
        base=top.text_or_none("base"),
        sources=sources,
        layers=layers,
        scale=scale,
        digest=digest,
        format=version,
        selection=chosen,
        guidance=guidance(top),
        half=top.word("half", get_args(Half)) if "half" in top else "both",
    )


def _version(top: Fields) -> tuple[int, int]:
    found = re.fullmatch(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})", top.text("format"), re.ASCII)
    if found is None:
        raise top.wrong("format", 'a version such as "1.0"')
    version = (int(found[1]), int(found[2]))
    known = ".".join(map(str, FORMAT))
    if version[0] != FORMAT[0]:
        raise BundleError(
            f"bundle format {found[0]} cannot be read, this version of lorabake reads {known}",
            where="manifest",
            advice="Update lorabake" if version[0] > FORMAT[0] else "Make the bundle again",
        )
    if version > FORMAT:
        warnings.warn(
            f"the bundle has format {found[0]}, newer than {known}: "
            "what this version of lorabake does not know in it is ignored",
            stacklevel=3,
        )
    return version


def _source(of: Fields) -> Source:
    words = of.items("trigger_words")
    if not all(isinstance(word, str) for word in words):
        raise of.wrong("trigger_words", "a list of strings")
    if not _HEX.fullmatch(sha256 := of.text("sha256")):
        raise of.wrong("sha256", "64 lower-case hexadecimal digits")
    return Source(
        role=of.text("role"),
        name=of.text("name"),
        sha256=sha256,
        strength=of.number("strength"),
        trigger_words=tuple(words),
        base_model=of.text_or_none("base_model"),
        license=of.text_or_none("license"),
        svd_rank=of.natural("svd_rank", 1, MAX_RANK) if "svd_rank" in of else None,
    )


def _layer(of: Fields) -> Layer:
    if not _NAME.fullmatch(component := of.text("component")):
        raise of.wrong("component", "a name of lower-case letters, digits and underscores")
    if not _PATH.fullmatch(module := of.text("module")):
        raise of.wrong("module", "a dotted path of letters, digits and underscores")
    ranks = of.naturals("ranks", 2, MAX_RANK + 1)
    if not any(ranks):
        raise of.wrong("ranks", "greater than 0 for one source at least")
    rule = _rule(of)
    if not isinstance(rule, Constant) and not (all(ranks) and component in DENOISERS):
        raise of.wrong("ranks", "greater than 0, and the layer one of the denoiser's, to choose")
    columns = "columns" in of and of.true("columns")
    if columns and not all(ranks):
        raise of.wrong("ranks", "greater than 0 for both sources, to have columns")
    return Layer(component, module, of.text("down"), of.text("up"), ranks, rule, columns)


def _rule(of: Fields) -> Rule:
    kinds = [kind for kind in ("gates", "scores", "select", "live") if kind in of]
    if len(kinds) != 1:
        raise refuse(f"{of.path('rule')} must be exactly one of gates, scores, select, live")
    if kinds == ["live"]:
        of.true("live")
        return Live()
    if kinds == ["gates"]:
        gates = of.numbers("gates", 2)
        if max(map(abs, gates)) > MAX_GATE:
            raise of.wrong("gates", f"a list of 2 numbers from -{MAX_GATE} to {MAX_GATE}")
        return Constant(gates)
    if kinds == ["scores"]:
        content, style = of.numbers("scores", 2)
        if min(content, style) < 0:
            raise of.wrong("scores", "a list of 2 numbers that are not negative")
        return Threshold((content, style))
    if not re.fullmatch("[01]+", select := of.text("select")) or len(select) > MAX_BINS:
        raise of.wrong("select", f"a string of 1 to {MAX_BINS} digits 0 and 1")
    return Table(tuple(map(int, select)))


def _scale(top: Fields) -> Scale | None:
    if (of := top.fields("scale")) is None:
        return None
    scale = Scale(
        of.word("pattern", get_args(Pattern)),
        of.number("alpha"), of.number("beta"), of.number("gamma"),
    )  # fmt: skip
    if scale.pattern == "modulo" and scale.alpha <= 0:
        raise of.wrong("alpha", "greater than 0 for the pattern modulo")
    if scale.gamma <= 0:
        raise of.wrong("gamma", "greater than 0")
    return scale


def _check_unique(layers: tuple[Layer, ...]) -> None:
    seen: set[str] = set()
    for layer in layers:
        for name in (str(layer), layer.down, layer.up):
            if name in seen:
                raise refuse(f"layers: {name} occurs twice")
            seen.add(name)
