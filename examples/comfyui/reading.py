"""What reads bundles: a copy of lorabake/runtime in this folder, else the installed package."""

from __future__ import annotations

try:
    from .runtime.bundle import Bundle, read
    from .runtime.errors import AttachError, BundleError, OverrideError, listed
    from .runtime.manifest import DENOISERS, Layer
    from .runtime.plan import Constant, gates
except ModuleNotFoundError:
    from lorabake.runtime.bundle import Bundle, read
    from lorabake.runtime.errors import AttachError, BundleError, OverrideError, listed
    from lorabake.runtime.manifest import DENOISERS, Layer
    from lorabake.runtime.plan import Constant, gates

__all__ = [
    "DENOISERS", "AttachError", "Bundle", "BundleError", "Constant", "Layer", "OverrideError",
    "gates", "listed", "read",
]  # fmt: skip
