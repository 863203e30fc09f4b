"""The root of lorabake's one exception tree, and the errors of reading and replaying a bundle."""

from __future__ import annotations

_LONGEST = 2000
"""Characters of what is wrong: room for why no known key style fits, one reason for each."""


class LorabakeError(Exception):
    """Anything lorabake raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UserError(LorabakeError):
    """A mistake that the user can mend.

    Args:
        what: What is wrong, without a final full stop.
        where: The file, layer, tensor or option concerned; empty if `what` says it.
        advice: What to do about it; empty if nothing can be done.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", advice: str = "") -> None:
        self.what, self.where, self.advice = what, where, advice
        what, where, advice = shortened(what, _LONGEST), shortened(where), shortened(advice)
        message = f"{where}: {what}" if where else what
        whole = f"{message}. {advice}" if advice else f"{message}."
        super().__init__(" ".join(whole.splitlines()))  # names in it may have line breaks


class BundleError(UserError):
    """The file is not a bundle, is damaged, or is a bundle of a newer major version."""


class AttachError(UserError):
    """The bundle does not fit the pipeline, or the pipeline cannot be replayed into."""


class OverrideError(UserError):
    """A value given at load time is unknown or out of range for this bundle's plan."""


def shortened(text: str, limit: int = 500) -> str:
    """Text for a message, cut in the middle: its ends tell most, and it may be a stranger's."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def listed(names: list[str], limit: int = 5) -> str:
    """Names for a message: the first `limit`, then how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
