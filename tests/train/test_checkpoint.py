"""Checkpoints come back bit for bit, or not at all: round trips, damage, kills, a full disk, other device counts."""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from simclr_jax import dist
from simclr_jax.errors import UsageError
from simclr_jax.train import checksum, guard
from simclr_jax.train.checkpoint import Checkpoints
from simclr_jax.types import TrainState

ROOT = pathlib.Path(__file__).parents[2]


class Moments(NamedTuple):
    mu: Any
    nothing: Any


def make_state(step, sharding=None):
    """A state with every kind of leaf a run has: bf16, integers, bool, a scalar, empty arrays, None and empty trees."""
    rng = np.random.default_rng(step)
    kernel = rng.standard_normal((64, 8), dtype=np.float32)  # over 1 KiB: orbax puts it in a file of its own
    state = TrainState(
        step=jnp.int32(step),
        params={"net": {"kernel": jnp.asarray(kernel), "half": jnp.asarray(rng.standard_normal(8), jnp.bfloat16)},
                "empty": {}},
        opt_state=(Moments({"kernel": jnp.asarray(-kernel)}, None), ()),
        extra={"ids": jnp.asarray(rng.integers(0, 2**32, (8, 2)), jnp.uint32), "mask": jnp.asarray(rng.random(8) < 0.5),
               "queue": jnp.zeros((0, 3)), "none": None},
        guard=guard.new())
    return state if sharding is None else jax.device_put(state, sharding)


def same(a, b):
    """Whether two trees are equal bit for bit."""
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        p.dtype == q.dtype and p.shape == q.shape and np.asarray(p).tobytes() == np.asarray(q).tobytes()
        for p, q in zip(x, y))


def write(directory, steps, **options):
    """A directory with `make_state(step)` for each step, closed; {step: state}."""
    checkpoints = Checkpoints(directory, **options)
    states = {step: make_state(step) for step in steps}
    for step, state in states.items():
        checkpoints.save(step, state, {"config": {"name": "x"}, "at": step})
    checkpoints.close()
    return states


@pytest.fixture
def two_steps(tmp_path):
    """A function that gives a fresh copy of a directory with steps 1 and 2, which was written once."""
    write(tmp_path / "original", [1, 2])
    count = iter(range(10**6))

    def copy():
        return pathlib.Path(shutil.copytree(tmp_path / "original", tmp_path / f"copy{next(count)}"))
    return copy


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path, mesh):
    replicated = NamedSharding(mesh(8), P())
    state = make_state(7, replicated)
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.restore(state) is None and checkpoints.meta() is None and checkpoints.steps() == []
    checkpoints.save(7, state, {"config": {"lr": 0.1, "crop": [1, 2]}, "data": {"next_example": 12}}, wait=True)
    checkpoints.close()
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    step, restored, meta = Checkpoints(tmp_path / "c").restore(template)
    assert step == 7 and meta == {"config": {"lr": 0.1, "crop": [1, 2]}, "data": {"next_example": 12}}
    assert same(restored, state)
    assert all(x.sharding == replicated for x in jax.tree.leaves(restored))


def test_numpy_leaves_stay_numpy(tmp_path):
    state = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.float64(0.1), "c": np.zeros((2, 0), np.float16)}
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {})
    state["a"][:] = -1  # the writer has its own copy
    checkpoints.wait()
    _, restored, _ = checkpoints.restore(jax.tree.map(np.zeros_like, state))
    assert all(isinstance(x, np.ndarray) for x in restored.values())
    assert same(restored, {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.asarray(0.1), "c": state["c"]})


@pytest.mark.parametrize("spec", [P(), P("data")])
def test_state_may_be_donated_as_soon_as_save_returns(tmp_path, mesh, spec):
    sharding = NamedSharding(mesh(8), spec)
    fresh = lambda: {"w": jax.device_put(jnp.arange(2**20, dtype=jnp.float32), sharding)}  # noqa: E731
    step_fn = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "c", keep=9)
    for step in range(1, 4):
        state = fresh()
        checkpoints.save(step, state, {})
        jax.block_until_ready(step_fn(state))
        assert state["w"].is_deleted()  # saving left no hold on the buffers that would make donation a copy
    checkpoints.wait()
    for step in range(3, 0, -1):
        found, restored, _ = checkpoints.restore(fresh())
        assert found == step and same(restored, fresh())
        shutil.rmtree(tmp_path / "c" / str(step))
    jax.block_until_ready(step_fn(restored))
    assert restored["w"].is_deleted()


@pytest.mark.parametrize("saved, read", [
    ((8, P()), (4, P())), ((8, P("data")), (1, P())), ((4, P(None, "data")), (8, P("data"))),
    ((1, P()), (8, P(None, "data")))])
def test_other_device_counts_and_placements_raise_no_false_alarm(tmp_path, mesh, saved, read):
    n, spec = saved
    value = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"w": jax.device_put(value, NamedSharding(mesh(n), spec))}, {}, wait=True)
    n, spec = read
    target = NamedSharding(mesh(n), spec)
    _, restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=target)})
    assert restored["w"].sharding == target and same(restored, {"w": value})


def test_model_axis_survives(tmp_path):
    mesh = dist.make_mesh({"data": 2, "model": 4})
    state = {"w": jax.device_put(jnp.arange(32.0).reshape(4, 8), NamedSharding(mesh, P(None, "model"))),
             "b": jax.device_put(jnp.arange(4.0), NamedSharding(mesh, P()))}
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {}, wait=True)
    _, restored, _ = checkpoints.restore(state)
    assert same(restored, state) and restored["w"].sharding == state["w"].sharding


@pytest.mark.parametrize("shape, cuts", [
    ((8, 6), (2, 1)), ((8, 6), (1, 3)), ((8, 6), (4, 2)), ((2, 3, 4, 5), (2, 1, 4, 1)), ((2, 3, 4, 5), (1, 3, 2, 5)),
    ((12,), (4,))])
def test_checksum_of_blocks_is_that_of_the_whole(shape, cuts):
    array = np.random.default_rng(1).integers(0, 2**16, shape).astype(np.uint16)
    total = 0
    for place in np.ndindex(*cuts):
        index = tuple(slice(p * n // c, (p + 1) * n // c) for p, n, c in zip(place, shape, cuts))
        total ^= checksum.of_block(array[index], index, shape)
    assert total == checksum.of_array(array)
    array.reshape(-1)[-1] ^= 1
    assert total != checksum.of_array(array)


def damage_flip(path, rng):
    data = bytearray(path.read_bytes())
    bit = int(rng.integers(len(data) * 8))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def damage_truncate(path, rng):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def damage_zero(path, rng):
    path.write_bytes(b"")


def damage_delete(path, rng):
    path.unlink()


def files_of(step_directory):
    return sorted(p for p in step_directory.rglob("*") if p.is_file())


def file_of(step_directory, array):
    """The file, and the place in it, that holds an array's bytes."""
    for path in files_of(step_directory):
        if (at := path.read_bytes().find(np.asarray(array).tobytes())) >= 0:
            return path, at
    raise AssertionError("no file holds these bytes")


@pytest.mark.scorecard(18)
@pytest.mark.scorecard(19)
@pytest.mark.parametrize("damage, times", [
    (damage_flip, 6), (damage_truncate, 1), (damage_zero, 1), (damage_delete, 1)])
def test_damage_to_any_file_never_gives_wrong_values(two_steps, damage, times):
    rng = np.random.default_rng(0)
    noticed = set()
    original = two_steps() / "2"
    for name in [str(p.relative_to(original)) for p in files_of(original)]:
        for _ in range(times):
            directory, lines = two_steps(), []
            damage(directory / "2" / name, rng)
            step, state, meta = Checkpoints(directory, writable=False, log=lines.append).restore(make_state(0))
            assert same(state, make_state(step)) and meta["at"] == step, (name, step)
            assert len(lines) == (step == 1), (name, lines)
            for line in lines:
                assert line.startswith(f"checkpoint {directory}/2 is damaged") and "\n" not in line and len(line) < 600
                noticed.add(name)
    # Some files are orbax's own notes, or parts of its index that nothing points to: values are whole without them.
    directory = two_steps() / "2"
    kernel, _ = file_of(directory, make_state(2).params["net"]["kernel"])
    must = {"meta/metadata", "state/manifest.ocdbt", str(kernel.relative_to(directory))}
    assert must - noticed == set()


@pytest.mark.scorecard(18)
@pytest.mark.parametrize("leaf", ["kernel", "moment"])
def test_a_flipped_bit_in_a_leaf_is_named(two_steps, leaf):
    state = make_state(2)
    array, path = {"kernel": (state.params["net"]["kernel"], "params/net/kernel"),
                   "moment": (state.opt_state[0].mu["kernel"], "opt_state/0/mu/kernel")}[leaf]
    directory, lines = two_steps(), []
    file, at = file_of(directory / "2", array)
    data = bytearray(file.read_bytes())
    data[at + 100] ^= 4
    file.write_bytes(data)
    step, restored, _ = Checkpoints(directory, log=lines.append).restore(make_state(0))
    assert step == 1 and same(restored, make_state(1))
    assert lines == [f"checkpoint {directory}/2 is damaged, trying the one before: {path}: its checksum does not match"]


def test_a_damaged_step_is_written_over_and_never_crowds_out_a_good_one(two_steps):
    directory, lines = two_steps(), []
    shutil.rmtree(directory / "2" / "state")
    checkpoints = Checkpoints(directory, keep=1, log=lines.append)
    assert checkpoints.restore(make_state(0))[0] == 1 and len(lines) == 1
    checkpoints.save(2, make_state(22), {"at": 22}, wait=True)
    step, state, meta = checkpoints.restore(make_state(0))
    assert step == 2 and same(state, make_state(22)) and meta["at"] == 22 and len(lines) == 1
    assert checkpoints.steps() == [2]

    directory = two_steps()
    damage_zero(directory / "2" / "meta" / "metadata", None)
    checkpoints = Checkpoints(directory, keep=2, log=lines.append)
    checkpoints.restore(make_state(0))
    assert checkpoints.steps() == [1, 2]  # reading deletes nothing
    checkpoints.save(3, make_state(3), {"at": 3}, wait=True)
    assert checkpoints.steps() == [1, 3]  # the damaged one is none of the two to keep


def test_when_none_is_whole_one_line_lists_them(two_steps):
    directory, lines = two_steps(), []
    for step in (1, 2):
        damage_zero(directory / str(step) / "state" / "manifest.ocdbt", None)
    with pytest.raises(UsageError, match=r"^none of the checkpoints 2, 1 in .*$") as e:
        Checkpoints(directory, log=lines.append).restore(make_state(0))
    assert "\n" not in str(e.value) and len(lines) == 2 and "/2 is" in lines[0] and "/1 is" in lines[1]


@pytest.mark.parametrize("change, words", [
    (lambda s: s.replace(params={**s.params, "net": {**s.params["net"], "kernel": jnp.zeros((64, 9))}}),
     r"leaf params/net/kernel is float32\[64, 8\] in the checkpoint and float32\[64, 9\] in this config"),
    (lambda s: s.replace(extra={**s.extra, "mask": s.extra["mask"].astype(jnp.int8)}),
     r"leaf extra/mask is bool\[8\] .* int8\[8\]"),
    (lambda s: s.replace(params={**s.params, "head": jnp.zeros(3)}), r"leaf params/head is missing .* float32\[3\]"),
    (lambda s: s.replace(opt_state=()), r"leaf opt_state/0/mu/kernel is float32\[64, 8\] .* missing in this config"),
])
def test_another_config_is_refused_with_the_leaf_and_both_shapes(two_steps, change, words):
    directory, lines = two_steps(), []
    with pytest.raises(UsageError, match=words) as e:
        Checkpoints(directory, log=lines.append).restore(change(make_state(0)))
    assert f"{directory}/2" in str(e.value) and "\n" not in str(e.value) and lines == []


def test_meta_is_read_without_arrays_and_past_damage(two_steps):
    directory = two_steps()
    for step in (1, 2):
        shutil.rmtree(directory / str(step) / "state")
    reader = Checkpoints(directory, writable=False)
    assert reader.meta() == {"config": {"name": "x"}, "at": 2} and reader.meta(1)["at"] == 1
    damage_truncate(directory / "2" / "meta" / "metadata", None)
    assert reader.meta()["at"] == 1
    with pytest.raises(UsageError, match="/2: its metadata cannot be read"):
        reader.meta(2)
    damage_delete(directory / "1" / "meta" / "metadata", None)
    with pytest.raises(UsageError, match="metadata cannot be read"):
        reader.meta()


@pytest.mark.scorecard(24)
def test_keep_and_keep_every_are_exact(tmp_path):
    write(tmp_path / "c", range(1, 24), keep=2, keep_every=5)
    assert Checkpoints(tmp_path / "c").steps() == [5, 10, 15, 20, 22, 23]
    write(tmp_path / "c", [25, 26], keep=1, keep_every=10)
    assert Checkpoints(tmp_path / "c").steps() == [10, 20, 26]


def test_saving_a_step_that_exists_leaves_it_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(3, make_state(3), {"at": 3})
    checkpoints.save(3, make_state(4), {"at": 4}, wait=True)
    assert checkpoints.restore(make_state(0))[2] == {"at": 3}


@pytest.mark.scorecard(24)
def test_best_is_the_largest_value_and_outlives_a_restart(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    values = {1: 0.3, 2: 0.5, 3: float("nan"), 4: 0.5, 5: 0.4}
    saved = {}
    for step, value in values.items():
        checkpoints.save(step, make_state(step), {"at": step})
        saved[step] = checkpoints.save_best(step, make_state(step), {"at": step}, value)
    checkpoints.close()
    assert saved == {1: True, 2: True, 3: False, 4: False, 5: False}
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert not checkpoints.save_best(1, make_state(1), {"at": 1}, 0.45)
    step, state, meta = Checkpoints(tmp_path / "best", writable=False).restore(make_state(0))
    assert step == 2 and meta == {"at": 2, "best": 0.5} and same(state, make_state(2))
    assert checkpoints.save_best(1, make_state(1), {"at": 1}, 0.6)  # a smaller step, after a restart from before it
    checkpoints.wait()
    damage_truncate(tmp_path / "best" / "1" / "meta" / "metadata", None)
    assert checkpoints.save_best(1, make_state(1), {"at": 1}, 0.1)  # what cannot be read is written over
    checkpoints.close()
    assert Checkpoints(tmp_path / "best").steps() == [1] and Checkpoints(tmp_path / "c").steps() == [5]
    assert Checkpoints(tmp_path / "best").meta()["best"] == 0.1


def test_the_best_of_one_thing_is_not_compared_with_that_of_another(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.save_best(1, make_state(1), {"best_of": "knn"}, 0.9)
    assert not checkpoints.save_best(2, make_state(2), {"best_of": "knn"}, 0.5)
    assert checkpoints.save_best(3, make_state(3), {"best_of": "retrieval"}, 0.1)
    checkpoints.close()
    assert Checkpoints(tmp_path / "best").steps() == [3]


def test_the_old_best_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save_best(1, make_state(1), {}, 0.1)
    checkpoints.wait()
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append((tmp_path / "best" / "1").exists()), rename(a, b))[1])
    checkpoints.save_best(2, make_state(2), {}, 0.2)
    checkpoints.wait()
    assert seen and all(seen)  # each rename that makes something final happened with the old one in place
    assert Checkpoints(tmp_path / "best").steps() == [2]


@pytest.mark.scorecard(20)
def test_left_over_temporaries_are_ignored_by_readers_and_cleaned_by_the_next_run(two_steps):
    directory = two_steps()
    stale = directory / "3.orbax-checkpoint-tmp"
    shutil.copytree(directory / "2", stale)
    reader = Checkpoints(directory, writable=False)
    assert reader.steps() == [1, 2] and reader.restore(make_state(0))[0] == 2 and stale.exists()
    with pytest.raises(UsageError, match="reading only"):
        reader.save(3, make_state(3), {})
    checkpoints = Checkpoints(directory)
    checkpoints.save(3, make_state(3), {"at": 3}, wait=True)
    assert not stale.exists() and checkpoints.restore(make_state(0))[0] == 3


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=f"cannot write checkpoints in {tmp_path}/file/c") as e:
        Checkpoints(tmp_path / "file" / "c")
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match="meta must be what JSON can hold"):
        Checkpoints(tmp_path / "c").save(1, make_state(1), {"config": object()})


def child(code, *args, **environment):
    """Starts Python on `code`, which finds this file's helpers as `t`."""
    code = "import sys, json, pathlib; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n" + textwrap.dedent(code)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", code, str(ROOT), str(pathlib.Path(__file__).parent), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process, seconds):
    """(exit code, stdout, stderr); killed after `seconds`."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {seconds} s\n{out}\n{err}")
    return process.returncode, out, err


@pytest.mark.scorecard(21)
def test_a_full_disk_is_one_line_at_the_next_call_and_older_steps_stay(tmp_path):
    process = child("""
        import resource, signal
        import numpy as np
        from simclr_jax.errors import UsageError
        from simclr_jax.train.checkpoint import Checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        big = lambda: {"w": np.random.default_rng(0).standard_normal(500_000)}
        checkpoints = Checkpoints(sys.argv[3])
        checkpoints.save(1, big(), {}, wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        errors = []
        checkpoints.save(2, big(), {})
        for call in (lambda: checkpoints.save(3, big(), {}), lambda: checkpoints.save(4, big(), {}, wait=True)):
            try:
                call()
            except UsageError as e:
                errors.append(str(e))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        steps = checkpoints.steps()
        checkpoints.save(5, big(), {}, wait=True)
        print(json.dumps([errors, steps, checkpoints.steps(), checkpoints.restore(big())[0]]))
        checkpoints.close()
        """, tmp_path / "c")
    code, out, err = finish(process, 60)
    assert code == 0, err
    errors, steps, after, restored = json.loads(out)
    assert len(errors) == 2 and all(f"cannot write checkpoints in {tmp_path}/c" in e and "\n" not in e for e in errors)
    assert all("File too large" in e for e in errors)
    assert steps == [1] and after == [1, 5] and restored == 5
    assert "Traceback" not in err, err


def cleaned_within(seconds, directory):
    """Whether the temporaries go; it happens in the background."""
    end = time.monotonic() + seconds
    while left := any("tmp" in p.name for p in directory.iterdir()):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return not left


@pytest.mark.scorecard(20)
@pytest.mark.slow
def test_after_kill_9_at_any_time_a_whole_step_loads(tmp_path):
    rng = np.random.default_rng(0)
    last, hit = 0, 0
    for _ in range(4):
        process = child("""
            import test_checkpoint as t
            checkpoints = t.Checkpoints(sys.argv[3], keep=2)
            first = int(sys.argv[4])
            for step in range(first + 1, first + 10_000):
                state = {**vars(t.make_state(step)), "big": t.np.full(300_000, step)}
                checkpoints.save(step, state, {"at": step})
                checkpoints.save_best(step, state, {"at": step}, step)
                print(step, flush=True)
            """, tmp_path / "c", last)
        while int(process.stdout.readline()) < last + 3:
            pass
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for directory in ("c", "best"):
            lines = []
            hit += any("tmp" in p.name for p in (tmp_path / directory).iterdir())
            checkpoints = Checkpoints(tmp_path / directory, log=lines.append)
            step, state, meta = checkpoints.restore({**vars(make_state(0)), "big": np.zeros(300_000, np.int64)})
            checkpoints.close()
            assert cleaned_within(5, tmp_path / directory)
            assert same(state, {**vars(make_state(step)), "big": np.full(300_000, step)})
            assert meta["at"] == step > last and lines == []
        last = max(Checkpoints(tmp_path / "c", writable=False).steps())
    assert hit  # at least one kill hit a write


def test_two_processes_agree_on_the_step(tmp_path):
    code = """
        import jax
        index, port, directory = int(sys.argv[3]), sys.argv[4], pathlib.Path(sys.argv[5])
        jax.distributed.initialize(f"localhost:{port}", 2, index, heartbeat_timeout_seconds=10,
                                   shutdown_timeout_seconds=10)
        import numpy as np
        from jax.experimental import multihost_utils
        from jax.sharding import NamedSharding, PartitionSpec as P
        from simclr_jax import dist
        from simclr_jax.train import stored
        from simclr_jax.train.checkpoint import Checkpoints
        mesh = dist.make_mesh({"data": 2, "model": 2})
        specs = {"replicated": P(), "over_processes": P(None, "data"), "over_both": P("data", "model"),
                 "in_process": P("model")}

        def make(step):
            values = np.random.default_rng(step).standard_normal((len(specs), 64, 32)).astype(np.float32)
            return {name: jax.make_array_from_callback((64, 32), NamedSharding(mesh, spec), value.__getitem__)
                    for (name, spec), value in zip(specs.items(), values)}

        def same(a, b):
            return all(np.array_equal(s.data, t.data) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
                       for s, t in zip(x.addressable_shards, y.addressable_shards))

        lines, found = [], {}
        checkpoints = Checkpoints(directory / "c", log=lines.append)
        overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)

        def write(step):
            state = make(step)
            checkpoints.save(step, state, {"at": step})
            jax.block_until_ready(overwrite(state))
            checkpoints.wait()

        def restore(what):
            multihost_utils.sync_global_devices(what)
            step, state, meta = checkpoints.restore(make(0))
            found[what] = [step, same(state, make(step)), meta["at"], len(lines)]

        def flip(step, name):
            if index == 0:
                value = np.random.default_rng(step).standard_normal((len(specs), 64, 32)).astype(np.float32)
                value = value[list(specs).index(name)]
                hits = 0
                for path in (directory / "c" / str(step)).rglob("*"):
                    if path.is_file() and (at := path.read_bytes().find(value[0, :8].tobytes())) >= 0:
                        data = bytearray(path.read_bytes())
                        data[at + 8] ^= 1
                        path.write_bytes(data)
                        hits += 1
                assert hits, name

        write(1)
        write(2)
        restore("whole")
        for name in specs:
            flip(2, name)
            restore("flipped " + name)
            write(2)
            restore("again after " + name)
        read = stored.record
        if index == 1:
            def unreadable(path):
                if path.name == "2":
                    raise OSError("cannot be read on this host")
                return read(path)
            stored.record = unreadable
        restore("unreadable on process 1")
        stored.record = read
        write(2)
        restore("last")
        found["best"] = [checkpoints.save_best(2, make(2), {"at": 2}, 0.5), checkpoints.save_best(2, make(2), {}, 0.4)]
        checkpoints.close()
        print(json.dumps([found, lines]), flush=True)
        """
    port = free_port()
    processes = [child(code, i, port, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2") for i in range(2)]
    try:
        ends = [finish(p, 60) for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
    assert all(code == 0 for code, _, _ in ends), "\n".join(err for _, _, err in ends)
    (found, lines), (found_1, lines_1) = (json.loads(out.splitlines()[-1]) for _, out, _ in ends)
    assert {k: v[:3] for k, v in found.items()} == {k: v[:3] for k, v in found_1.items()}
    names = ["replicated", "over_processes", "over_both", "in_process"]
    wanted = {"whole": [2, True, 2, 0], "best": [True, False]}
    for i, name in enumerate(names):
        wanted["flipped " + name] = [1, True, 1, i + 1]
        wanted["again after " + name] = [2, True, 2, i + 1]
    wanted |= {"unreadable on process 1": [1, True, 1, 5], "last": [2, True, 2, 5]}
    assert found == wanted and lines_1 == []
    assert [name in line for name, line in zip(names, lines)] == [True] * 4
    assert "process 1 could not read it" in lines[4]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
