"""What a replay applied, out of its report: how much of it was style, by progress and layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OverrideError
from .runtime import Bundle
from .runtime.plan import CONTENT, STYLE

BOTH, UNKNOWN = 2.0, math.nan


def read(path: str | Path) -> dict[str, Any]:
    """A report that was saved as JSON.

    Raises:
        OverrideError: There is no such file, or it is no report.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("layers"), list):
            return found
        reason = "it is something else"
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except (ValueError, RecursionError):
        reason = "it is no JSON"
    raise OverrideError(
        f"is not a replay's report: {reason}",
        where=str(path),
        advice="Write one with `lorabake generate --report`, or save replay.report() as JSON",
    )


def shares(bundle: Bundle, report: Mapping[str, Any]) -> np.ndarray:
    """Share of style among what each layer chose: `[progresses, layers]`, float64.

    0 is content and 1 style; in between live choices of the samples and calls differed. 2 is
    where both were applied, NaN where it is not known: see `Applied.decisions`.

    Args:
        bundle: Whose layers.
        report: Of a replay of it.

    Raises:
        OverrideError: It is of another bundle, or nothing was painted.
    """
    layers = bundle.manifest.layers
    try:
        if report["method"] != bundle.manifest.method:
            raise ValueError
        rows = {(row["component"], row["module"]): row for row in report["layers"]}
        count = len(report["progress"])
        of = [(rows[x.component, x.module], x.ranks) for x in layers]
        found = [[_share(row, ranks, i) for row, ranks in of] for i in range(count)]
    except (LookupError, TypeError, ValueError) as error:
        raise OverrideError(
            "the report is not of a replay of this bundle",
            where=str(bundle.path),
            advice="Give the report and the bundle that it was made with",
        ) from error
    if not found:
        raise OverrideError(
            "the report is of a replay that painted nothing",
            where=str(bundle.path),
            advice="Take the report after the pipeline was called",
        )
    return np.array(found, dtype=np.float64)


def _share(row: Mapping[str, Any], ranks: tuple[int, ...], i: int) -> float:
    """Of one layer at one progress; what only one source has is that one's, as in a plan."""
    if row["decisions"]:
        chosen = [(CONTENT, STYLE).index(one) for call in row["decisions"][i] for one in call or ()]
        return sum(chosen) / len(chosen) if chosen else UNKNOWN
    if (gates := row["gates"][i]) is None:
        return UNKNOWN
    content, style = (bool(gate) for gate in gates)
    if 0 in ranks:
        return float(CONTENT if ranks[STYLE] == 0 else STYLE)
    return BOTH if content == style else float(STYLE if style else CONTENT)
