from __future__ import annotations

import pytest

from datafree.synthesis.noise import Noise
from networks import SPEC, captured


def test_pixels_are_standard_normal() -> None:
    values = Noise().generate(captured("NoNorm"), SPEC, 200).images.double()
    assert values.numel() == 200 * 192
    assert values.mean().item() == pytest.approx(0, abs=0.03)
    assert values.std().item() == pytest.approx(1, abs=0.03)
    assert (values**4).mean().item() == pytest.approx(3, abs=0.3)
    neighbours = (values[..., 1:] * values[..., :-1]).mean().item()
    assert neighbours == pytest.approx(0, abs=0.03)


def test_more_images_begin_like_fewer() -> None:
    noise, teacher = Noise(), captured("NoNorm")
    few, many = noise.generate(teacher, SPEC, 3), noise.generate(teacher, SPEC, 9)
    assert few.images.equal(many.images[:3])
