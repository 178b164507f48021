"""Every loss x way of meeting x devices x tiling x dtype against its float64 reference. See tests/exactness.py."""
import functools
import itertools

import jax.numpy as jnp
import pytest

import simclr_jax.losses
from exactness import compare, expected, measured, ways
from losses import of_distill, of_metric, of_pairs, of_softmax

CASES = of_pairs.CASES | of_softmax.CASES | of_metric.CASES | of_distill.CASES
DEVICES = 1, 2, 4, 8
DTYPES = jnp.float32, jnp.bfloat16
ROW_2 = "info_nce", "clip", "siglip", "dino", "cosine_regression", "barlow_twins", "vicreg"  # of the scorecard


def matrix():
    """All combinations in f32; in bf16, which is about rounding, both ways of meeting on 1 and 8 devices, untiled.

    One of every other loss is fast, and all losses have fast cases in files of their own; going round, they meet every
    comm, device count, tiling and dtype.
    """
    seen = set()
    for k, (name, case) in enumerate(CASES.items()):
        options = list(ways(case.takes))
        fast = {(DEVICES[k % 4], k % len(options), DTYPES[len(seen) // 2 % 2])}
        if (loss := name.split(" ")[0]) in seen or len(seen) % 2:
            fast = set()
        seen.add(loss)
        for n, (i, how), dtype in itertools.product(DEVICES, enumerate(options), DTYPES):
            if dtype == jnp.bfloat16 and (n, i, dtype) not in fast and (n in (2, 4) or how.get("block")):
                continue
            marks = [] if (n, i, dtype) in fast else [pytest.mark.slow]
            if loss in ROW_2 and dtype == jnp.float32:
                marks.append(pytest.mark.scorecard(2))
            yield pytest.param(name, n, how, dtype, marks=marks,
                               id=f"{name}-{n}-{'-'.join(map(str, how.values()))}-{jnp.dtype(dtype).name}")


@functools.lru_cache(maxsize=None)
def reference(name, dtype):
    return expected(CASES[name], dtype)


@pytest.mark.parametrize("name, devices, how, dtype", list(matrix()))
def test_value_and_gradients(name, devices, how, dtype):
    compare(measured(CASES[name], devices, dtype, **how), reference(name, dtype), dtype)


def test_no_loss_is_left_out():
    assert {name.split(" ")[0] for name in CASES} == set(simclr_jax.losses.__all__)
