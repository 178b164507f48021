"""Collectives and traffic of compiled programs, to the byte, and of lines as the TPU compiler writes them."""
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from plan import toys
from simclr_jax import dist
from simclr_jax.plan import hlo


def compiled(function, mesh, *args):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return jax.jit(mapped).lower(*args).compile().as_text()


def test_collectives_in_a_loop_count_as_often_as_it_runs(mesh):
    def program(x):  # f32[2,8] on each of 4
        x, _ = lax.scan(lambda x, _: (dist.send_next(x, "data") * 2, None), x, length=3)
        table = lax.all_gather(x, "data", tiled=True)
        return x + lax.psum(table.sum(0), "data")
    found = hlo.collectives(compiled(program, mesh(4), jnp.zeros((8, 8))))
    assert hlo.by_kind(found) == {"all-gather": {"count": 1, "bytes": 8 * 8 * 4},
                                  "all-reduce": {"count": 1, "bytes": 32},
                                  "collective-permute": {"count": 3, "bytes": 3 * 2 * 8 * 4}}
    assert hlo.sent(found) == 3 / 4 * 256 + 2 * 3 / 4 * 32 + 3 * 64


def test_a_group_of_devices_sends_less_than_all(mesh):
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    program = lambda x: lax.all_gather(x, "data", axis_index_groups=groups).sum(0)
    found = hlo.collectives(compiled(program, mesh(8), jnp.zeros((8, 16))))
    assert hlo.by_kind(found) == {"all-gather": {"count": 1, "bytes": 2 * 16 * 4}} and hlo.sent(found) == 64


def test_a_step_reduces_its_gradient_and_its_loss_and_nothing_else(mesh):
    for microbatches in (1, 2):
        text = toys.traced(mesh(8), 32, microbatches).lower().compile().as_text()
        size = hlo.by_kind(hlo.collectives(text))
        assert size.keys() == {"all-reduce"} and size["all-reduce"]["bytes"] == 4 * (toys.IN * toys.OUT + 1)
        assert bool(hlo.loops(text)) == (microbatches > 1)


def test_traffic_of_a_loop_is_that_of_its_body_as_often_as_it_runs(mesh):
    def program(x, length):
        return lax.scan(lambda c, _: (jnp.sin(c), None), x, length=length)[0]
    few, many = (hlo.traffic(compiled(lambda x: program(x, n), mesh(1), jnp.zeros(10**6))) for n in (10, 30))
    assert 2 * 20 * 4 * 10**6 <= many - few <= 4 * 20 * 4 * 10**6  # read and written, perhaps copied too


TPU = """HloModule jit_step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b), metadata={op_name="psum"}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %go = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) collective-permute-start(%x)
  %done = f32[8,4]{1,0:T(8,128)} collective-permute-done(%go)
  ROOT %out = (s32[], f32[8,4]) tuple(%i, %done)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %on_chip = f32[8,4]{1,0:T(8,128)S(1)} copy(%a)
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body
  %sum = (f32[], f32[4]{0:T(128)}) all-reduce(%b, %c), replica_groups=[2,2]<=[4], to_apply=%add
  ROOT %r = f32[8,4]{1,0:T(8,128)} copy(%on_chip)
}
"""


def test_lines_of_the_tpu_compiler():
    found = hlo.collectives(TPU)
    assert hlo.by_kind(found) == {"all-reduce": {"count": 1, "bytes": 20},
                                  "collective-permute": {"count": 7, "bytes": 7 * 128}}
    assert {label for _, label in found} == {"all-reduce, combined", "async collective-permute"}
    assert hlo.sent(found) == 2 * 1 / 2 * 20 + 7 * 128
    # A tile is 8 x 128 numbers, however few are used; what is on the chip costs nothing.
    filled = 8 * 128 * 4
    assert hlo.traffic(TPU) == filled + filled + (4 + 512) + 7 * 2 * filled
    assert hlo.largest(TPU, 1) == [(filled, "f32[8,4]", "copy")]


@pytest.mark.parametrize("groups, count", [("{{0,2},{1,3}}", 2), ("[2,4]<=[8]", 4),
                                           ("mesh['data'=8,'model'=2] {'data'}", 8),
                                           ("mesh['data'=8,'model'=2] {'data','model'}", 16), ("{}", 32)])
def test_groups_as_they_are_written(groups, count):
    assert hlo._group(f"%x), channel_id=1, replica_groups={groups}, to_apply=%add", 32) == count


@pytest.mark.parametrize("shape, size", [("bf16[12,64]{1,0:T(8,128)(2,1)}", 16 * 128 * 2), ("f32[3]", 12),
                                         ("u8[5,5]{1,0}", 25),
                                         ("(f32[2]{0}, s32[4]{0})", 24), ("f32[8,128]{1,0:T(8,128)S(1)}", 0)])
def test_bytes_of_shapes(shape, size):
    assert hlo._stored(shape) == size
