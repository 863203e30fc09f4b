"""Pictures of a plan: what is applied where and when (like K-LoRA's figure 6), or how strongly."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import output
from .applied import BOTH, shares
from .errors import shortened
from .parts import part
from .runtime import Bundle
from .runtime.plan import CONTENT, STYLE, Constant, Live

_COLOURS = {
    "content": "#3b6fb6", "style": "#f2a33a", "both": "#d9d9d9", "live": "#8d7bb8",
    "unknown": "#ffffff",
}  # fmt: skip
_OVERLAP = "overlap |m_c·m_s|"
_CURVES = {"content m_c": "#3b6fb6", "style m_s": "#f2a33a", _OVERLAP: "#6b6b6b"}


def plot(
    bundle: Bundle,
    path: str | Path,
    *,
    steps: int = 50,
    report: Mapping[str, Any] | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Draw a bundle's plan as a PNG: steps go down, layers across in network order.

    With a report of a replay it draws what was applied in that instead (figure 5 of arXiv
    2602.15539): between the colours of content and style, as many samples and calls chose each.
    A bundle that selects nothing but has column coefficients shows these instead: per layer the
    mean of m_c, of m_s and of |m_c·m_s|, and where 10 to 90 % of m_c and of m_s lie.

    Args:
        bundle: Any bundle; what applies both LoRAs is grey.
        path: The PNG to write.
        steps: Number of denoising steps, at least 1; a report has its own.
        report: Of a replay of this bundle.
        force: Whether an existing file may be replaced.

    Returns:
        Share of layer × step cells by `content`, `style` and `both`; also by `live`, where it is
        not known what would be chosen, and `unknown`, where samples have no choice of a layer, if
        there are such cells.

    Raises:
        OutputError: The file exists already or cannot be written.
        BundleError: A column coefficient is 0 or not finite.
        OverrideError: The report is of another bundle.
    """
    target = output.check(path, force=force, inputs=(Path(bundle.path),))
    layers = bundle.manifest.layers
    cells = _planned(bundle, steps) if report is None else _told(shares(bundle, report))
    found = {name: float(cells[..., i].mean()) for i, name in enumerate(_COLOURS)}
    share = {k: v for k, v in found.items() if v or k not in ("live", "unknown")}
    groups = [part(layer.component, layer.module) for layer in layers]
    curves = _curves(bundle) if report is None else {}
    picture = io.BytesIO()
    # Texts come from the bundle: a $ in them must not start a formula.
    with rc_context({"text.parse_math": False}):
        method = shortened(bundle.manifest.method, 60)
        figure = _curved(curves, groups, method) if curves else _draw(cells, groups, share, method)
        # Without a fixed entry the PNG would name the version of matplotlib.
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": "lorabake"})
    with output.replacing(target) as file:
        file.write(picture.getvalue())
    return share


def _planned(bundle: Bundle, steps: int) -> np.ndarray:
    """What is applied by plan, as weights of the colours: `[steps, layers, colours]`."""
    names = {CONTENT: "content", STYLE: "style"}
    columns = [
        ["live"] * steps
        if isinstance(layer.rule, Live)
        else ["both" if c is None else names[c] for c in bundle.select(layer, steps)]
        for layer in bundle.manifest.layers
    ]
    index = list(_COLOURS).index
    return np.eye(len(_COLOURS))[np.array([[index(c) for c in column] for column in columns]).T]


def _told(style: np.ndarray) -> np.ndarray:
    """The same of what was applied, from shares of style as `applied.shares` has them."""
    unknown, both = np.isnan(style), style == BOTH
    chosen = ~(unknown | both)
    part = np.where(chosen, style, 0.0)
    weights = {"content": chosen - part, "style": part, "both": both, "unknown": unknown}
    return np.stack([weights.get(name, 0.0 * part) for name in _COLOURS], -1).astype(float)


def _draw(cells: np.ndarray, groups: Sequence[str], share: dict[str, float], method: str) -> Figure:
    steps, width, _ = cells.shape
    figure, axes = _frame(width)
    axes.imshow(
        cells @ np.array([to_rgb(colour) for colour in _COLOURS.values()]),
        aspect="auto", interpolation="nearest", extent=(0, width, steps, 0),
    )  # fmt: skip
    _label(figure, axes, groups, "white")
    axes.set_ylabel(f"step (of {steps})")
    axes.set_title(f"{method}: {share['style']:.0%} style", loc="left", fontsize=11)
    used = [name for name in share if share[name] > 0]
    _legend(figure, {f"{name} {share[name]:.0%}": _COLOURS[name] for name in used})
    return figure


def _curves(bundle: Bundle) -> dict[str, np.ndarray]:
    """Per layer the mean and the 10 % and 90 % quantiles of m_c, m_s and |m_c·m_s|: `[layers, 3]`.

    NaN for layers without coefficients; empty if a layer selects, or none has coefficients.
    """
    layers = bundle.manifest.layers
    selects = not all(isinstance(layer.rule, Constant) for layer in layers)
    if selects or not bundle.manifest.columns:
        return {}
    nothing = np.full(3, np.nan)
    curves = {name: [nothing] * len(layers) for name in _CURVES}
    found = bundle.coefficients()
    for i, layer in enumerate(layers):
        if layer.columns:
            content, style = (m.numpy() for m in found[str(layer)])
            for name, m in zip(_CURVES, (content, style, abs(content * style)), strict=True):
                curves[name][i] = np.array([m.mean(), *np.quantile(m, (0.1, 0.9))])
    return {name: np.stack(rows) for name, rows in curves.items()}


def _curved(curves: dict[str, np.ndarray], groups: Sequence[str], method: str) -> Figure:
    width = len(groups)
    figure, axes = _frame(width)
    edges = np.repeat(np.arange(width + 1), 2)[1:-1]  # a layer is as wide as in the other picture
    for name, colour in _CURVES.items():
        mean, low, high = np.repeat(curves[name], 2, axis=0).T
        if name != _OVERLAP:
            axes.fill_between(edges, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(edges, mean, color=colour, linewidth=1.5)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.margins(x=0)
    _label(figure, axes, groups, "#d9d9d9")
    axes.set_ylabel("mean, and 10 to 90 % of the columns")
    axes.set_title(method, loc="left", fontsize=11)
    means = {name: float(np.nanmean(curve[:, 0])) for name, curve in curves.items()}
    _legend(figure, {f"{name} {mean:.2f}": _CURVES[name] for name, mean in means.items()})
    return figure


def _frame(width: int) -> tuple[Figure, Axes]:
    """An empty picture for so many layers."""
    inches = min(16.0, max(7.0, 1.5 + width / 40))
    figure = Figure(figsize=(inches, 5.0), dpi=150)
    return figure, figure.add_axes((0.6 / inches, 0.18, 1 - 0.75 / inches, 0.71))


def _label(figure: Figure, axes: Axes, groups: Sequence[str], between: str) -> None:
    """Name the parts of the network below their layers, with lines of this colour between them."""
    width, inches = len(groups), figure.get_figwidth()
    start, ticks, labels, roomy = 0, [], [], True
    for name, members in groupby(groups):
        end = start + len(list(members))
        # A letter is about 0.08 inches wide.
        roomy &= (end - start) / width * 0.9 * inches > 0.08 * (len(name) + 1)
        if start:
            axes.axvline(start, color=between, linewidth=1.5)
        ticks.append((start + end) / 2)
        labels.append(name)
        start = end
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, labels, fontsize=8, **({} if roomy else turned))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"{width} layers, input to output")


def _legend(figure: Figure, entries: dict[str, str]) -> None:
    """Colours by label, at the top right."""
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in entries.items()],
        loc="upper right", bbox_to_anchor=(1 - 0.05 / figure.get_figwidth(), 0.97), ncols=3,
        frameon=False, fontsize=9,
    )  # fmt: skip
