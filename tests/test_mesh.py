"""The order of a TPU's devices: neighbours side by side."""
import math
from types import SimpleNamespace

import jax
import pytest

from simclr_jax import dist


def pod(*sides, cores=1):
    """Devices as a runtime may list them: not in order of place."""
    places = [()]
    for side in sides:
        places = [(i, *p) for i in range(side) for p in places]
    return [SimpleNamespace(platform="tpu", coords=p, core_on_chip=c) for c in range(cores) for p in places]


def leaps(ring):
    return [sum(abs(a - b) for a, b in zip(x.coords, y.coords)) for x, y in zip(ring, ring[1:] + ring[:1])]


SIDES = (2, 2, 1), (2, 4, 1), (8, 8, 1), (4, 8, 1), (16, 16, 1), (2, 2, 4), (4, 4, 4), (3, 4, 5)


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_a_ring_has_no_leaps(sides):
    ring = dist.in_a_ring(pod(*sides))
    assert len({d.coords for d in ring}) == math.prod(sides) == len(ring) and set(leaps(ring)) == {1}


def test_cores_of_a_chip_are_neighbours():
    ring = dist.in_a_ring(pod(4, 4, 1, cores=2))
    assert leaps(ring) == [0, 1] * 16 and [d.core_on_chip for d in ring] == [0, 1] * 16


def test_what_is_no_grid_is_left_alone():
    assert dist.in_a_ring(pod(4, 4, 1)[:-1]) is None and dist.in_a_ring(jax.devices()) is None
    assert dist.in_a_ring([SimpleNamespace(platform="gpu")]) is None
    assert len(dist.in_a_ring(pod(1, 1, 1))) == 1
