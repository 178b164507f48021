"""Products are counted as often as they are made, against counts by hand."""
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from plan import toys
from simclr_jax import dist
from simclr_jax.plan.arithmetic import products


def count(function, *args, devices=1, platform="tpu"):
    return products(jax.jit(function).trace(*args).jaxpr.jaxpr, devices, platform)


def test_a_loop_counts_as_often_as_it_runs():
    x = jnp.zeros((4, 4))

    def loops(x):
        inner = lambda c, _: (c @ x, None)
        outer = lambda c, _: (lax.scan(inner, c, length=3)[0], None)
        return lax.scan(outer, x, length=5)[0]
    one = 2 * 4 * 4 * 4
    assert count(lambda x: x @ x, x).flops == one
    assert count(loops, x).flops == 15 * one
    assert count(jax.grad(lambda x: loops(x).sum()), x).flops == 3 * 15 * one  # each product has two gradients


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    found = count(lambda x: lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ c, x), jnp.zeros((4, 4)))
    assert found.flops == 128 and not found.exact
    assert count(lambda x: lax.while_loop(lambda c: c.sum() < 1, lambda c: c + 1, x), jnp.zeros((4, 4))).exact


@pytest.mark.parametrize("precision, passes", [("default", 1), ("high", 3), ("highest", 6)])
def test_products_of_f32_are_made_of_several_of_bf16(precision, passes):
    x = jnp.zeros((4, 8))
    found = count(lambda x: jnp.dot(x, x.T, precision=precision), x)
    assert (found.flops, found.passes) == (256, 256 * passes)
    half = x.astype(jnp.bfloat16)
    assert count(lambda x: jnp.dot(x, x.T, precision=precision), half).passes == 256


def test_a_strided_convolution_and_both_its_gradients_need_the_same_products():
    """Along an axis of 8, three taps two by two after a zero: 4 places of 3 taps, of which one tap meets the zero."""
    x, k = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    kinds = "NHWC", "HWIO", "NHWC"
    conv = lambda x, k: lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=kinds)
    one = 2 * 2 * 3 * 5 * 11 * 11
    assert count(conv, x, k).flops == one
    assert count(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), argnums=(0, 1)), x, k).flops == 3 * one


def test_grouped_convolutions_meet_their_own_channels_only():
    x, k = jnp.zeros((1, 4, 4, 6)), jnp.zeros((1, 1, 2, 9))
    grouped = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", feature_group_count=3,
                                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert count(grouped, x, k).flops == 2 * 16 * 9 * 2


def test_of_code_that_differs_by_platform_that_of_the_platform_counts():
    x = jnp.zeros((4, 4))
    by_platform = lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)
    assert count(by_platform, x, platform="cpu").flops == 256
    assert count(by_platform, x, platform="tpu").flops == 128
    drawn = lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)
    assert count(drawn, x).flops == 128


def test_devices_share_the_products(mesh):
    x = jnp.zeros((16, 4))
    assert count(lambda x: x @ x.T, x, devices=8).flops == 2 * 16 * 16 * 4 // 8
    local = jax.shard_map(lambda x: x @ x.T, mesh=mesh(8), in_specs=P("data"), out_specs=P("data"))
    assert count(local, x, devices=8).flops == 2 * 2 * 2 * 4
    both = dist.make_mesh({"data": 4, "model": 2}, jax.devices()[:8])  # model is left to the compiler
    local = jax.shard_map(lambda x: x @ x.T, mesh=both, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
    assert count(local, x, devices=8).flops == 2 * 4 * 4 * 4 // 2


@pytest.mark.parametrize("devices, microbatches, times", [(1, 1, 2), (1, 4, 3), (4, 1, 2), (4, 2, 3)])
def test_a_step_in_micro_batches_makes_its_forward_products_twice(mesh, devices, microbatches, times):
    traced = toys.traced(mesh(devices), 32, microbatches)
    found = products(traced.jaxpr.jaxpr, devices, "cpu")
    assert found.flops == times * 2 * 32 * toys.IN * toys.OUT // devices and found.exact
