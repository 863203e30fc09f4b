"""The majority of hand-made votes, and how alike they are, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lorabake.bundle.agreement import Agreement, agreement, followed
from lorabake.bundle.votes import table, votes

Calls = Sequence[list[int] | None]


def report(progress: list[float], *layers: Sequence[Calls]) -> Any:
    """Of one run: by layer and progress, what each call chose; a fused layer before them."""
    return {
        "progress": progress,
        "layers": [{"decisions": []}, *({"decisions": layer} for layer in layers)],
    }


def plan(bins: int, *reports: Any) -> list[list[int]]:
    cast = votes(reports, range(1, len(reports[0]["layers"])))
    return table(cast, bins).tolist()


def test_the_majority_of_runs_calls_and_samples() -> None:
    """Three of five votes for style; a tie is content; a call without the layer has no vote."""
    one = report([0.0, 0.5], [[[1, 0], [1]], [[0, 1], None]])
    two = report([0.0, 0.5], [[[0, 1], None], [[1, 0], [1]]])
    assert plan(2, one, two) == [[1, 1]]
    assert plan(2, one) == [[1, 0]]
    assert plan(2, two) == [[0, 1]]
    assert plan(1, one, two) == [[1]]
    assert plan(1, report([0.0, 0.5], [[[1]], [[0]]])) == [[0]]


def test_fewer_bins_than_steps() -> None:
    """Steps i of 7 in 3 bins: floor(3i / 7), exactly."""
    choices = [1, 1, 0, 0, 0, 1, 1]
    run = report([i / 7 for i in range(7)], [[[c]] for c in choices])
    assert plan(3, run) == [[1, 0, 1]]
    assert plan(7, run) == [choices]
    # 49 · (k / 49) is less than k as a product of doubles for some k.
    choices = [i % 2 for i in range(49)]
    run = report([i / 49 for i in range(49)], [[[c]] for c in choices])
    assert plan(49, run) == [choices]


def test_cells_without_votes_take_after_the_nearest() -> None:
    """Two denoisers share a schedule; one layer is never computed."""
    none: Calls = []
    early = [[[1]], [[0]], none, none, none, none]
    late = [none, none, none, none, [[0]], [[1]]]
    gap = [[[1]], none, none, none, [[0]], [[0]]]
    odd = [none, [[1]], none, [[0]], none, none]
    never = [[None]] * 6
    run = report([i / 6 for i in range(6)], early, late, gap, odd, never)
    assert plan(6, run) == [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert plan(12, run)[0] == [1, 1, 0, *[0] * 9]


def test_positions_of_a_schedule_that_repeats_timesteps() -> None:
    """Heun's with 3 steps: 5 entries, of which 1 and 2 are one timestep, and 3 and 4."""
    run = report([0.0, 0.2, 0.6], [[[0]], [[1], [1]], [[0], [1]]])
    cast = votes([run], [1])
    assert cast.positions == 5
    assert table(cast, 5).tolist() == [[0, 1, 1, 0, 0]]
    assert votes([report([0.5, 0.75], [[[0]], [[0]]])], [1]).positions == 4


def test_runs_that_saw_different_progress() -> None:
    one, two = report([0.0], [[[1]]]), report([0.5], [[[0]]])
    cast = votes([one, two], [1])
    assert table(cast, 2).tolist() == [[1, 0]]
    assert agreement(cast, [0, 0]) == Agreement(None, None, None, None)


def test_agreement_by_hand() -> None:
    """Three runs of two prompts; one layer, two steps, two halves: four places."""
    runs = [
        report([0.0, 0.5], [[[0, 0]], [[0, 1]]]),
        report([0.0, 0.5], [[[0, 1]], [[1, 1]]]),
        report([0.0, 0.5], [[[0, 1]], [[1, 0]]]),
    ]
    cast = votes(runs, [1])
    found = agreement(cast, [3, 3, 8])
    # Equal of the pairs (1, 2), (1, 3), (2, 3): by place all; the last; the last; the first.
    assert found.runs == pytest.approx((3 + 1 + 1 + 1) / 12)
    assert found.within == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found.between == pytest.approx((2 + 1 + 1 + 0) / 8)
    assert found.halves == pytest.approx(2 / 6)
    # The plan of one bin is style: 0, 0, 0, 1, then 0, 1, 1, 1, then 0, 1, 1, 0.
    assert table(cast, 1).tolist() == [[0]]
    assert followed(cast, table(cast, 1)) == pytest.approx(6 / 12)
    assert table(cast, 2).tolist() == [[0, 1]]
    assert followed(cast, table(cast, 2)) == pytest.approx((4 + 4) / 12)


def test_each_place_counts_alike() -> None:
    """A layer that two of three runs computed has one pair, the other layer three."""
    runs = [
        report([0.0], [[[0]]], [[[0]]]),
        report([0.0], [[[0]]], [[[1]]]),
        report([0.0], [[None]], [[[1]]]),
    ]
    found = agreement(votes(runs, [1, 2]), [0, 1, 1])
    assert found.runs == pytest.approx((1 + 1 / 3) / 2)
    assert found.within == pytest.approx(1.0)
    assert found.between == pytest.approx((1 + 0) / 2)
    assert found.halves is None


def test_halves_are_those_of_calls_with_two_samples() -> None:
    run = report([0.0], [[[0, 0], [1], [0, 1, 1]]], [[[1, 0], [1], None]])
    assert agreement(votes([run], [1, 2]), [0]).halves == pytest.approx(0.5)
