"""What is recommended and the largest batch, of plans that are made up."""
import math

import pytest

from simclr_jax.errors import UsageError
from simclr_jax.plan import largest, search


def plan(total, limit, bound=None, known=True):
    return {"fits": total <= limit, "time_bound_s": bound,
            "memory_bytes": {"total": total if known or total <= limit else None, "limit": limit}}


@pytest.mark.parametrize("known", [True, False], ids=["asked", "unknown"])
@pytest.mark.parametrize("start", [1, 7, 64, 500])
@pytest.mark.parametrize("held, each, limit", [(1000, 10, 2000), (100, 1.3, 1000), (0, 100, 1000), (900, 10, 1000)])
def test_the_largest_batch_is_found_in_few_compilations(start, held, each, limit, known):
    asked = []

    def measured(n):
        asked.append(n)
        return plan(held + each * n, limit, known=known)
    low, tried = largest.bisect(start, plan(held + each * start, limit, known=known), measured)
    most = math.floor((limit - held) / each)
    assert low <= most and len(asked) <= largest.COMPILATIONS and len(set(asked)) == len(asked)
    if known or start <= most:
        assert low >= most - max(1, most // 10)
    assert tried[0] == (start, start <= most) and [n for n, _ in tried[1:]] == asked


def test_nothing_fits():
    assert largest.bisect(8, plan(9000, 1000), lambda n: plan(1001 + n, 1000))[0] == 0


def test_rows_that_cannot_be_end_the_search():
    def refuse(n):
        raise UsageError("bn='rows=8' does not divide")
    assert largest.bisect(8, plan(100, 1000), refuse) == (8, [(8, True)])


GIB = 2**30


@pytest.mark.parametrize("tried, best", [
    ([({}, plan(3 * GIB, 2 * GIB, 1.0)), ({"remat": 1}, plan(GIB, 2 * GIB, 1.5))], {"remat": 1}),  # what fits
    ([({}, plan(GIB, 4 * GIB, 1.0)), ({"remat": 1}, plan(GIB // 2, 4 * GIB, 1.5))], {}),  # what is quicker
    ([({}, plan(2 * GIB, 4 * GIB, 1.0)), ({"ring": 1}, plan(GIB, 4 * GIB, 1.01))], {"ring": 1}),  # alike, but smaller
    ([({"ring": 1}, plan(GIB, 4 * GIB, 1.0)), ({}, plan(GIB, 4 * GIB, 1.0))], {}),  # alike in all
    ([({}, plan(9 * GIB, GIB, None)), ({"remat": 1}, plan(5 * GIB, GIB, None)), ({"x": 1}, None)], {"remat": 1}),
    ([({}, plan(GIB, 4 * GIB)), ({"remat": 1}, plan(GIB // 2, 4 * GIB))], {"remat": 1}),  # without bounds
], ids=str)
def test_the_recommendation(tried, best):
    assert search.recommended(tried)[0] == best
