"""Pictures of a plan: which LoRA each layer applies at each step (like K-LoRA's figure 6)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import output
from .errors import shortened
from .parts import part
from .runtime import Bundle

_COLOURS = {"content": "#3b6fb6", "style": "#f2a33a", "both": "#d9d9d9"}
_BOTH = 2


def plot(
    bundle: Bundle, path: str | Path, *, steps: int = 50, force: bool = False
) -> dict[str, float]:
    """Draw a bundle's plan as a PNG: steps go down, layers across in network order.

    Args:
        bundle: Any bundle; what applies both LoRAs is grey.
        path: The PNG to write.
        steps: Number of denoising steps, at least 1.
        force: Whether an existing file may be replaced.

    Returns:
        Share of layer × step cells by `content`, `style` and `both`.

    Raises:
        OutputError: The file exists already or cannot be written.
    """
    target = output.check(path, force=force, inputs=(Path(bundle.path),))
    layers = bundle.manifest.layers
    columns = [bundle.select(layer, steps) for layer in layers]
    cells = np.array([[_BOTH if c is None else c for c in column] for column in columns]).T
    share = {name: float((cells == i).mean()) for i, name in enumerate(_COLOURS)}
    groups = [part(layer.component, layer.module) for layer in layers]
    picture = io.BytesIO()
    # Texts come from the bundle: a $ in them must not start a formula.
    with rc_context({"text.parse_math": False}):
        figure = _draw(cells, groups, share, shortened(bundle.manifest.method, 60))
        # Without a fixed entry the PNG would name the version of matplotlib.
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": "lorabake"})
    with output.replacing(target) as file:
        file.write(picture.getvalue())
    return share


def _draw(cells: np.ndarray, groups: Sequence[str], share: dict[str, float], method: str) -> Figure:
    steps, width = cells.shape
    inches = min(16.0, max(7.0, 1.5 + width / 40))
    figure = Figure(figsize=(inches, 5.0), dpi=150)
    axes = figure.add_axes((0.6 / inches, 0.18, 1 - 0.75 / inches, 0.71))
    axes.imshow(
        cells, cmap=ListedColormap(list(_COLOURS.values())), vmin=0, vmax=_BOTH,
        aspect="auto", interpolation="nearest", extent=(0, width, steps, 0),
    )  # fmt: skip
    start, ticks, labels, roomy = 0, [], [], True
    for name, members in groupby(groups):
        end = start + len(list(members))
        # A letter is about 0.08 inches wide.
        roomy &= (end - start) / width * 0.9 * inches > 0.08 * (len(name) + 1)
        if start:
            axes.axvline(start, color="white", linewidth=1.5)
        ticks.append((start + end) / 2)
        labels.append(name)
        start = end
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, labels, fontsize=8, **({} if roomy else turned))
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"step (of {steps})")
    axes.set_xlabel(f"{width} layers, input to output")
    used = [name for name in _COLOURS if share[name] > 0]
    axes.set_title(f"{method}: {share['style']:.0%} style", loc="left", fontsize=11)
    figure.legend(
        handles=[Patch(color=_COLOURS[name], label=f"{name} {share[name]:.0%}") for name in used],
        loc="upper right", bbox_to_anchor=(1 - 0.05 / inches, 0.97), ncols=3, frameon=False,
        fontsize=9,
    )  # fmt: skip
    return figure
