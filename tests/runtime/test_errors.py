from __future__ import annotations

from lorabake.runtime.errors import UserError, shortened


def test_a_short_message_is_whole() -> None:
    assert str(UserError("is odd", where="here", advice="Mend it")) == "here: is odd. Mend it"
    assert str(UserError("is odd")) == "is odd."
    assert shortened("a" * 500) == "a" * 500


def test_a_long_name_is_cut_in_the_middle() -> None:
    """Each part by itself, so that what, where and what to do all stay."""
    long = "/home/" + "a" * 5000 + "/name"
    error = UserError(f"{long!r} is odd", where=long, advice=f"Mend {long} now")
    start, end = str(error)[:8], str(error)[-10:]
    assert (start, end) == ("/home/aa", "a/name now")
    assert "a/name: '/home/a" in str(error)
    assert "a/name' is odd. Mend /home/" in str(error)
    assert len(str(error)) < 3100
    assert error.where == long


def test_names_with_line_breaks_stay_in_one_line() -> None:
    error = UserError("a tensor is called 'to\nq\u2028'", where="lora\r\n.safetensors")
    assert str(error) == "lora .safetensors: a tensor is called 'to q '."
