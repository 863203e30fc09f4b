"""Reading a LoRA: file → tensors → dialect → layers → family."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..errors import LoraFileError, listed
from . import dialects, families, file
from .adapter import configuration
from .factors import assemble, split
from .families import Family
from .kinds.convert import Converter
from .kinds.kernels import unflattened
from .provenance import provenance
from .refusals import refuse_other_kinds
from .source import locate
from .stages import join, stages
from .types import LayerName, Lora, LowRank, network_order


def read(source: str | Path, *, family: str | None = None, svd_rank: int | None = None) -> Lora:
    """Read a LoRA in any supported key style.

    Factors stay memory-mapped in the file's own dtype; alpha / rank goes into `LowRank.scale`, so
    nothing is rounded. Every tensor of the file ends up in a layer or is named in an error.
    LoHa, LoKr, Tucker and full differences become plain factors in float32, exactly where these are
    of a modest rank.

    Args:
        source: A `.safetensors` file, a folder that holds one (or two, for high and for low noise,
            see `stages`), or a hub id (`user/repo`, with `@` and a revision and `/` and a file if
            wanted).
        family: Base model family, see `families.names()`; None to tell it from the file.
        svd_rank: Rank to which what is no plain LoRA and has a higher one is reduced; what that
            costs is in `Lora.conversions`.

    Raises:
        LoraFileError: The file is missing, damaged, contradicts itself, or is of an unknown kind.
        RecipeError: `svd_rank` is out of range.
        UnsupportedLoraError: It is an adapter of a kind that lorabake does not take, or that needs
            an `svd_rank`.
    """
    if halves := stages(source):
        high, low = (read(part, family=family, svd_rank=svd_rank) for part in halves)
        return join(high, low, source, family)
    converter = Converter(str(source), svd_rank)
    path, name = locate(source)
    where = str(source)
    contents = file.load(path, where)
    tensors = contents.tensors
    refuse_other_kinds(tensors, where)
    config = configuration(path, contents.metadata, where)
    dialect = dialects.detect(tensors.keys(), where)
    parts = split(dialect, tensors, where)
    sound = file.checked({key: (tensors[key], parts[key].slot) for key in tensors}, where)
    configured = {k.rpartition(".")[2]: v for k, v in config.items() if isinstance(v, str)}
    words = configured | dict(contents.metadata)

    def home_of(layers: Mapping[LayerName, LowRank]) -> tuple[Family, frozenset[str]]:
        return _home(families.Evidence(layers, dialect.name, words), family, where)

    found = assemble(dialect, parts, sound, config, where, converter, home_of)
    layers = {key: found[key] for key in sorted(found, key=network_order)}
    home, rivals = home_of(layers)
    converted = {layer for done in converter.conversions for layer in done.layers}
    return Lora(
        layers=unflattened(layers, converted, home.name, where),
        family=home.name,
        provenance=provenance(contents.metadata, name, contents.sha256),
        metadata=contents.metadata,
        rivals=rivals,
        conversions=tuple(sorted(converter.conversions, key=lambda x: network_order(x.layers[0]))),
    )


def _home(
    evidence: families.Evidence, family: str | None, where: str
) -> tuple[Family, frozenset[str]]:
    """The family, and its rivals.

    Raises:
        LoraFileError: None has all layers, or the named one has not.
    """
    if family is None:
        return families.recognise(evidence, where)
    home = families.get(family)
    foreign = [str(layer) for layer in evidence.layers if not home.owns(layer)]
    if foreign:
        raise LoraFileError(
            f"{home.title} has no such layers: {listed(foreign, 3)}",
            where=where,
            advice="Name another --family, or none, so that it is told from the file",
        )
    return home, frozenset()


def read_both(
    content: str | Path,
    style: str | Path,
    *,
    family: str | None = None,
    svd_rank: int | None = None,
) -> tuple[Lora, Lora]:
    """Read two LoRAs at once: most of reading is hashing, which runs beside other threads.

    Raises:
        LoraFileError: As `read` has it; the content's if both fail.
        RecipeError: Likewise.
    """
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(partial(read, family=family, svd_rank=svd_rank), (content, style))
    return first, second
