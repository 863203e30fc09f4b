"""Teachers, student and gradient against dense copies of the model, one forward per sample."""

from __future__ import annotations

import pytest
import torch

from lorabake.training.branches import BOTH
from lorabake.training.objective import SIMILARITIES

from .stage import Stage, alone, build, merged, predict

FAMILIES = ("sd15", "sdxl", "sd3", "flux")


def shaken(stage: Stage) -> Stage:
    dice = torch.Generator().manual_seed(3)
    noise = torch.randn(stage.coefficients.flat.shape, generator=dice, dtype=torch.float64)
    stage.coefficients.load(1 + 0.3 * noise)
    return stage


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_and_student_are_the_dense_ones(family: str) -> None:
    stage = shaken(build(family, batch=2))
    noised, taught = lesson = stage.problem.lesson(seed=1, update=5)
    wanted = [predict(stage, noised, row, alone(row // 2)) for row in range(4)]
    torch.testing.assert_close(taught, torch.cat(wanted), rtol=1e-5, atol=1e-6)

    student = torch.cat([predict(stage, noised, row, merged(stage)) for row in range(4)])
    with torch.no_grad(), stage.branches.acting(BOTH, zipped=True):
        content, style = stage.problem.losses(lesson)
    distances = (student - torch.cat(wanted)).flatten(1).norm(dim=1)
    torch.testing.assert_close(content, distances[:2].mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(style, distances[2:].mean(), rtol=1e-5, atol=0)
    assert content > 0.01
    assert style > 0.01


@pytest.mark.parametrize(
    ("family", "checkpointing"), [("sd15", False), ("sd15", True), ("sd3", False), ("sd3", True)]
)
def test_gradient_against_finite_differences(family: str, checkpointing: bool) -> None:
    """In float64; FLUX is not among them because its norms compute in float32 whatever they get."""
    stage = shaken(build(family))
    if checkpointing:
        stage.model.enable_gradient_checkpointing()
    lesson, m = stage.problem.lesson(0, 0), stage.coefficients

    def loss() -> torch.Tensor:
        content, style = stage.problem.losses(lesson)
        return content + style

    with stage.branches.acting(BOTH, zipped=True):
        loss().backward()
    for term in SIMILARITIES.values():
        (0.01 * term(m.flat, m.layer)).backward()
    gradient, values = m.grad.clone(), m.flat.detach().clone()
    dice = torch.Generator().manual_seed(11)
    for _ in range(4):
        step = torch.randn(values.shape, generator=dice, dtype=torch.float64)
        found: list[float] = []
        for h in (1e-5, -1e-5):
            m.load(values + h * step)
            with torch.no_grad(), stage.branches.acting(BOTH, zipped=True):
                terms = sum(0.01 * term(m.flat, m.layer) for term in SIMILARITIES.values())
                found.append(float(loss() + terms))
        slope = (found[0] - found[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * step).sum()), rel=1e-5)


def test_prompts_of_different_lengths_take_a_call_each() -> None:
    """As with a tokenizer that does not pad: the numbers stay those of the dense copies."""
    stage = shaken(build("sd15", lengths=(5, 9)))
    called = count_calls(stage)
    noised, taught = lesson = stage.problem.lesson(0, 2)
    assert called == [4, 4]
    wanted = [predict(stage, noised, row, alone(row)) for row in range(2)]
    torch.testing.assert_close(taught, torch.cat(wanted), rtol=1e-5, atol=1e-6)
    student = torch.cat([predict(stage, noised, row, merged(stage)) for row in range(2)])
    with torch.no_grad(), stage.branches.acting(BOTH, zipped=True):
        losses = torch.stack(stage.problem.losses(lesson))
    distances = (student - torch.cat(wanted)).flatten(1).norm(dim=1)
    torch.testing.assert_close(losses, distances, rtol=1e-5, atol=0)


def count_calls(stage: Stage) -> list[int]:
    """Rows of each forward from now on."""
    found: list[int] = []
    stage.model.register_forward_hook(lambda module, args, output: found.append(len(output[0])))
    return found


def test_lessons_are_prepared_together_and_used_twice() -> None:
    stage, other = build("sd15"), build("sd15")
    called = count_calls(stage)
    lessons = [stage.problem.lesson(0, update) for update in range(16)]
    assert called == [8, 8]
    seen = [lesson.noised.latents for lesson in lessons]
    same = [[torch.equal(a, b) for b in seen].index(True) for a in seen]
    assert same == [0, 1, 2, 3, 0, 1, 2, 3, 8, 9, 10, 11, 8, 9, 10, 11]
    late = other.problem.lesson(0, 13)
    assert torch.equal(late.taught, lessons[13].taught)
    assert not torch.equal(other.problem.lesson(1, 13).noised.latents, seen[13])


def test_nothing_is_left_in_the_model() -> None:
    stage = build("sd15")
    stage.branches.remove()
    assert not stage.branches.branches
    hooks = [len(module._forward_hooks) for module in stage.model.modules()]  # pyright: ignore[reportPrivateUsage]
    assert sum(hooks) == 0
