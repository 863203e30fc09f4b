from __future__ import annotations

from fractions import Fraction

import pytest

from lorabake.runtime.plan import Constant, Scale, Table, Threshold, gates, select, steps_of


def test_scale() -> None:
    """Equation 7 and the supplement's S*, by hand."""
    linear, modulo = Scale("linear", 1.5, 0.5, 2.0), Scale("modulo", 1.5, 1.3, 2.0)
    assert [linear.at(p) for p in steps_of(4)] == [1.0, 1.75, 2.5, 3.25]
    assert [modulo.at(p) for p in steps_of(4)] == pytest.approx([2.6, 0.35, 1.1, 1.85])


def test_where_the_two_patterns_part() -> None:
    """What `Scale` says of them, for the paper's alpha and its two betas."""
    for beta, turn in ((0.5, Fraction(2, 3)), (1.3, Fraction(2, 15))):
        linear, modulo = Scale("linear", 1.5, beta, 1.0), Scale("modulo", 1.5, beta, 1.0)
        for p in steps_of(1000):
            if p < turn:
                assert modulo.at(p) == linear.at(p) >= beta
            else:
                assert modulo.at(p) < beta
                assert modulo.at(p) == pytest.approx(linear.at(p) - 1.5)


def test_a_tie_is_content() -> None:
    scale = Scale("linear", 1.0, 0.5, 1.0)
    assert [select(Threshold((1.0, 1.0)), scale, p) for p in steps_of(4)] == [0, 0, 0, 1]
    assert select(Threshold((0.0, 0.0)), scale, Fraction(0)) == 0


def test_table_bins_are_exact() -> None:
    """Progress i/n is in bin floor(i·m/n), also where i/n·m in floating point is just below."""
    for bins in (3, 49, 50):
        table = Table(tuple(i % 2 for i in range(bins)))
        for count in (1, 7, 49, 50, 103):
            found = [select(table, None, p) for p in steps_of(count)]
            assert found == [(i * bins // count) % 2 for i in range(count)]


def test_gates() -> None:
    assert gates(Constant((1.0, 0.5)), None, Fraction(0)) == (1.0, 0.5)
    assert select(Constant((1.0, 0.5)), None, Fraction(0)) is None
    assert gates(Table((0, 1)), None, Fraction(0)) == (1.0, 0.0)
    assert gates(Table((0, 1)), None, Fraction(1, 2)) == (0.0, 1.0)
