"""Which of two licences is the stricter, for somebody who shares a merge of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum


class Terms(IntEnum):
    """What a licence asks of those who share something made of the work; the last, the most."""

    NOTHING = 0
    CREDIT = 1
    SAME_LICENCE = 2
    RULES_OF_USE = 3
    LIMITED_BUSINESS = 4
    NO_BUSINESS = 5
    NO_CHANGES = 6
    UNKNOWN = 7
    UNSTATED = 8


@dataclass(frozen=True)
class Licence:
    """A licence as the card's metadata names it.

    Attributes:
        name: Its identifier.
        terms: What it asks.
        rank: The place in `_KNOWN`, which goes from lax to strict.
        listed: Whether the hub has this identifier; if not it is `license: other` there.
        shares_alike: Whether what is made of the work must have this same licence.
        link: Where its text is; empty where the identifier says it.
    """

    name: str
    terms: Terms
    rank: int
    listed: bool = True
    shares_alike: bool = False
    link: str = ""


# https://huggingface.co/docs/hub/repositories-licenses, but for licences of code, fonts and texts
# that no LoRA has; from lax to strict.
_KNOWN = {
    Terms.NOTHING: "pddl cc0-1.0 unlicense wtfpl",
    Terms.CREDIT: (
        "mit isc zlib ncsa bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear postgresql "
        "artistic-2.0 afl-3.0 ecl-2.0 ms-pl apache-2.0 etalab-2.0 c-uda odc-by "
        "cdla-permissive-1.0 cdla-permissive-2.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by"
    ),
    Terms.SAME_LICENCE: (
        "mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 lgpl lgpl-2.1 lgpl-3.0 odbl cdla-sharing-1.0 osl-3.0 "
        "cc-by-sa-3.0 cc-by-sa-4.0 cc-by-sa gfdl gpl gpl-2.0 gpl-3.0 agpl-3.0"
    ),
    Terms.RULES_OF_USE: (
        "openrail bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
        "creativeml-openrail-m openrail++ gemma faipl-1.0-sd"
    ),
    Terms.LIMITED_BUSINESS: "llama2 stabilityai-ai-community",
    Terms.NO_BUSINESS: (
        "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc "
        "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nc-sa "
        "sai-nc-community flux-1-dev-non-commercial-license deepfloyd-if-license"
    ),
    Terms.NO_CHANGES: (
        "cc-by-nd-4.0 cc-by-nd cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-nd"
    ),
}  # fmt: skip
_UNLISTED = {
    "cc-by": "", "cc-by-sa": "", "cc-by-nc": "", "cc-by-nc-sa": "", "cc-by-nd": "",
    "cc-by-nc-nd": "",
    "faipl-1.0-sd": "https://freedevproject.org/faipl-1.0-sd/",
    "stabilityai-ai-community":
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-large/blob/main/LICENSE.md",
    "sai-nc-community": "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
    "flux-1-dev-non-commercial-license":
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
}  # fmt: skip
_SHARES_ALIKE = re.compile(r"cc-by-(nc-)?sa|[al]?gpl|gfdl|mpl|epl|eupl|odbl|osl|cdla-sharing|faipl")
_ALIASES = {
    "apache": "apache-2.0", "mozilla2": "mpl-2.0", "domain": "cc0-1.0", "cc0": "cc0-1.0",
    "cczero": "cc0-1.0", "cczero1": "cc0-1.0", "openrailm": "openrail",
    "openrail++m": "openrail++", "creativemlopenrail++m": "openrail++",
    "creativemlopenrail": "creativeml-openrail-m",
    "creativemlopenrailmaddendum": "creativeml-openrail-m",
    "stabilityaicommunity": "stabilityai-ai-community",
    "stabilitycommunity": "stabilityai-ai-community",
    "flux.1devnc": "flux-1-dev-non-commercial-license",
    "fluxdevnc": "flux-1-dev-non-commercial-license",
    "fairai1sd": "faipl-1.0-sd",
}  # fmt: skip
_CREATIVE_COMMONS = re.compile(
    r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)(?:/([\d.]+))?"
)
_LONG_GPL = re.compile(r"(lesser |affero )?general public license")
_FILLERS = re.compile(
    r"\b(the|license[sd]?|version|international|unported|universal|gnu|public|agreement)\b"
)
_NOTHING_SAID = ("", "none", "unknown", "na", "nolicense", "unlicensed")
_WORDS = {
    "attribution": "by", "noncommercial": "nc", "sharealike": "sa", "noderivatives": "nd",
    "noderivs": "nd", "creativecommons": "cc",
}  # fmt: skip


def _bare(text: str) -> str:
    """What is left of a name when spelling does not matter: `GNU GPL v3.0` and `gpl-3` are gpl3."""
    text = text.lower().replace("licence", "license")
    if at := _CREATIVE_COMMONS.search(text):
        text = f"cc {at[1]} {at[2] or ''}"
    text = _LONG_GPL.sub(lambda match: (match[1] or "")[:1] + "gpl", text)
    text = re.sub(r"[^a-z0-9.+]", "", _FILLERS.sub("", text)).strip(".")
    for word, short in _WORDS.items():
        text = text.replace(word, short)
    return re.sub(r"v(?=\d)|(?<=\d)\.0(?!\d)", "", text)


def _table() -> dict[str, Licence]:
    found: dict[str, Licence] = {}
    for terms, names in _KNOWN.items():
        for name in names.split():
            alike = _SHARES_ALIKE.match(name) is not None
            link = _UNLISTED.get(name)
            found[_bare(name)] = Licence(name, terms, len(found), link is None, alike, link or "")
    return found | {alias: found[_bare(name)] for alias, name in _ALIASES.items()}


_TABLE = _table()
_UNKNOWN_RANK = len(_TABLE)
"""After every known one."""
UNSTATED = Licence("unknown", Terms.UNSTATED, _UNKNOWN_RANK + 1)


def of(text: str | None) -> Licence:
    """The licence that somebody's text means; one that is not known counts as very strict."""
    bare = _bare(text or "")
    if bare in _NOTHING_SAID and (bare or not (text or "").strip()):
        return UNSTATED
    if found := _TABLE.get(bare):
        return found
    name = re.sub(r"[^a-z0-9.+]+", "-", (text or "").lower())[:60].strip("-.")
    return Licence(name or "unnamed", Terms.UNKNOWN, _UNKNOWN_RANK, listed=False)


def stricter(stated: Mapping[str, str | None]) -> tuple[Licence, tuple[str, ...]]:
    """The strictest of some licences, and what somebody should know who shares a merge.

    Args:
        stated: By the role of each LoRA, what it says about its licence.
    """
    found = {role: of(text) for role, text in stated.items()}
    strictest = max(found.values(), key=lambda licence: licence.rank)
    if strictest.terms == Terms.UNKNOWN:
        names = dict.fromkeys(x.name for x in found.values() if x.terms == Terms.UNKNOWN)
        strictest = replace(strictest, name="-and-".join(names))
    told = [_remark(role, licence) for role, licence in found.items()]
    alike = {licence.name for licence in found.values() if licence.shares_alike}
    if alike - {strictest.name}:
        told.append(
            f"{min(alike - {strictest.name})} asks that a merge has the same licence, which "
            f"{strictest.name} does not allow: ask the authors"
        )
    return strictest, tuple(filter(None, told))


def _remark(role: str, licence: Licence) -> str:
    match licence.terms:
        case Terms.UNSTATED:
            return f"the {role} LoRA states no licence: ask its author"
        case Terms.UNKNOWN:
            return f"the {role} LoRA's licence, {licence.name}, is not one that lorabake knows"
        case Terms.NO_CHANGES:
            return (
                f"the {role} LoRA's licence, {licence.name}, does not allow to share changed "
                "versions, and a merge is one: ask its author"
            )
        case _:
            return ""
