"""InfoNCE: the numbers of MoCo, SimCSE, CPC and others, closed forms, and what it takes in memory and messages."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exactness import close, f64, normal, value_and_grad, views
from oracle import DATA, cases
from simclr_jax import dist
from simclr_jax.losses.info_nce import info_nce
from simclr_jax.losses.unit import unit

compiled = jax.jit(info_nce, static_argnames=("similarity", "normalize", "comm", "block", "metrics"))


def test_equals_info_nce_pytorch():
    for p, c in cases("infonce"):
        given = {"query": c["q"], "key": c["pos"]} | ({} if p["mode"] == "in-batch" else {"negatives": c["neg"]})
        with jax.enable_x64(True):
            loss, g = value_and_grad(lambda x: info_nce(**x, temperature=p["temperature"]))(jax.tree.map(f64, given))
        names = {"query": "q", "key": "pos", "negatives": "neg"}
        close(loss, c["out_loss_f64"], g.values(), [c[f"grad_{names[k]}_f64"] for k in g])


def test_replays_moco_v2():
    for p, c in cases("moco_v2"):
        def loss_of(wq, wk, queue, im_q, im_k):
            # The stored queue has unit columns in f32 only, and the original does not normalise them again.
            return info_nce(unit(im_q @ wq.T), unit(im_k @ wk.T), negatives=queue.T, temperature=p["T"],
                            normalize=False, block=5)
        step = value_and_grad(loss_of)
        with jax.enable_x64(True):
            wq = wk = f64(c["w0"])
            queue, at = f64(c["queue0"]), 0
            for i in range(p["steps"]):
                im_q, im_k = f64(c["im_q"][i]), f64(c["im_k"][i])
                wk = p["m"] * wk + (1 - p["m"]) * wq  # first the average, then the keys
                loss, g = step(wq, wk, queue, im_q, im_k)  # the queue does not hold this step's keys yet
                close(loss, c["out_loss_f64"][i], [g], [c["out_grad_wq_f64"][i]])
                wq = wq - p["lr"] * g
                queue = queue.at[:, at:at + p["B"]].set(unit(im_k @ wk.T).T)
                at = (at + p["B"]) % p["K"]
                close(wq, c["out_wq_after_f64"][i])
                close(wk, c["out_wk_after_f64"][i])
                close(queue, c["out_queue_after_f64"][i])
                assert at == c["out_ptr_after_f64"][i]


def test_equals_moco_v3():
    for p, c in cases("moco_v3"):
        one_way = functools.partial(info_nce, temperature=p["T"])
        with jax.enable_x64(True):
            q1, q2, k1, k2 = (f64(c[n]) for n in ("q1", "q2", "k1", "k2"))
            # The original multiplies by 2T and adds both directions.
            loss, g = value_and_grad(lambda q1, q2: 2 * p["T"] * (one_way(q1, k2) + one_way(q2, k1)), (0, 1))(q1, q2)
        close(loss, c["out_loss_f64"], g, [c["grad_q1_f64"], c["grad_q2_f64"]])


@pytest.mark.parametrize("comm", ["gather", "ring"])
@pytest.mark.parametrize("name, temperature", [("mocov3_0", 0.5), ("mocov3_1", 0.1)])
def test_equals_moco_v3_on_four_processes(mesh, name, temperature, comm):
    stored = np.load(DATA / "distributed4.npz")
    q, k, want, dq = (stored[f"{name}/{n}"] for n in ("q", "k", "out_loss_f64", "grad_q_f64"))

    def shard(q, k):
        local = lambda q: 2 * temperature * info_nce(q, jax.lax.stop_gradient(k), temperature=temperature, axis="data",
                                                     comm=comm)
        # Stored are each process's own loss, 2T times ours, and its gradient before DDP averages: 4 times that of the
        # mean over 4 processes. Keys have none there: they are gathered without gradient, as MoCo's need none.
        value, g = jax.value_and_grad(lambda q: dist.pmean(local(q), "data"))(q)
        return value, local(q)[None], 4 * g
    fn = jax.jit(jax.shard_map(shard, mesh=mesh(4), in_specs=P("data"), out_specs=(P(), P("data"), P("data"))))
    with jax.enable_x64(True):
        value, local, g = fn(*(f64(x.reshape(-1, x.shape[-1])) for x in (q, k)))
    close(value, want.mean())
    close(local, want, [g], [dq.reshape(-1, dq.shape[-1])])


def test_equals_simcse():
    for p, c in cases("simcse"):
        def loss_of(hidden):
            mask = c["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1) if p["pooler"] == "avg" else hidden[:, 0]
            first, second, *hard = (pooled[i::p["num_sent"]] for i in range(p["num_sent"]))
            return info_nce(first, second, hard_negatives=hard[0] if hard else None,
                            hard_negative_weight=p["hard_negative_weight"], temperature=p["temp"])
        with jax.enable_x64(True):
            loss, g = value_and_grad(loss_of)(f64(c["hidden"]))
        close(loss, c["out_loss_f64"], [g], [c["grad_hidden_f64"]])


def test_equals_cpc():
    for p, c in cases("cpc"):
        window = p["window"]
        index = c["out_neg_idx_f64"].transpose(0, 2, 1).reshape(-1, p["n_neg"])  # [B * window, n_neg]

        def loss_of(x):
            z = x["z"].reshape(-1, p["dim_enc"])
            losses, hits = [], []
            for k, w in enumerate(x["W"], start=1):
                predicted = (x["c"][:, :window] @ w.T).reshape(-1, p["dim_enc"])
                at = (np.arange(p["B"])[:, None] * p["T"] + k + np.arange(window)).reshape(-1, 1)
                score = lambda index: info_nce(predicted, z[at[:, 0]], negatives=z[index], similarity="mean",
                                               normalize=False, temperature=1, block=4, metrics=True)
                losses.append(score(index)[0])
                # A key may be drawn as a negative of its own. The original's accuracy has it win over itself, ours
                # counts no ties: another negative is put in its place.
                other = np.take_along_axis(index, (index != at).argmax(axis=1)[:, None], axis=1)
                hits.append(score(np.where(index == at, other, index))[1]["accuracy"])
            return sum(losses), (jnp.stack(losses), jnp.stack(hits))
        with jax.enable_x64(True):
            (loss, (steps, hits)), g = value_and_grad(loss_of, has_aux=True)({n: f64(c[n]) for n in ("c", "z", "W")})
        close(loss, c["out_loss_f64"], g.values(), [c[f"grad_{n}_f64"] for n in g])
        close(steps, c["out_loss_steps_f64"][0])
        np.testing.assert_allclose(hits, c["out_acc_steps_f64"][0], rtol=1e-6)


@pytest.mark.slow
def test_ntxent_of_metric_learning_is_that_of_all_positive_pairs():
    for p, c in cases("pml"):
        if p["loss"] != "NTXentLoss":
            continue

        pairs = [(i, j) for i, a in enumerate(c["labels"]) for j, b in enumerate(c["labels"]) if a == b and i != j]
        by_count = {}  # pairs whose first row has so many rows of other classes, with those rows
        for i, j in pairs:
            others, = np.nonzero(c["labels"] != c["labels"][i])
            by_count.setdefault(len(others), []).append((i, j, others))

        def loss_of(z):
            # A query for each pair of a class; its negatives are the rows of other classes. The mean is over all pairs.
            total = 0
            for group in by_count.values():
                i, j, others = map(np.array, zip(*group))
                total += len(i) * info_nce(z[i], z[j], negatives=z[others], temperature=p["temperature"])
            return total / len(pairs)
        with jax.enable_x64(True):
            loss, g = value_and_grad(loss_of)(f64(c["embeddings"]))
        close(loss, c["out_loss_f64"], [g], [c["grad_embeddings_f64"]])


def test_closed_forms():
    b, t, e = 6, 0.3, np.exp(1 / 0.3)
    apart = jnp.eye(b)
    far = jnp.zeros((b, 4, b))
    for given, want in [({}, np.log(e + b - 1) - 1 / t), ({"negatives": far[0]}, np.log(e + 4) - 1 / t),
                        ({"negatives": far}, np.log(e + 4) - 1 / t),
                        # The hard negatives equal the keys: a second e among the candidates, times 2 by its weight.
                        ({"hard_negatives": apart, "hard_negative_weight": np.log(2)},
                         np.log(3 * e + 2 * b - 2) - 1 / t),
                        ({"similarity": "mean"}, np.log(e ** (1 / b) + b - 1) - 1 / t / b)]:
        np.testing.assert_allclose(compiled(apart, apart, temperature=t, **given), want, rtol=1e-6)


def test_the_order_of_rows_and_of_negatives_does_not_matter():
    q, k = views(8)
    queue, order = normal(9, 8), np.random.default_rng(0).permutation(16)
    for options in ({}, {"hard_negatives": normal(16, 8, seed=1), "hard_negative_weight": 0.7}):
        moved = {n: x[order] if np.ndim(x) else x for n, x in options.items()}
        np.testing.assert_allclose(compiled(q[order], k[order], temperature=0.1, **moved),
                                   compiled(q, k, temperature=0.1, **options), rtol=1e-6)
    np.testing.assert_allclose(compiled(q, k, negatives=queue[::-1], temperature=0.1),
                               compiled(q, k, negatives=queue, temperature=0.1), rtol=1e-6)


def test_one_queue_for_all_is_each_querys_own_when_repeated():
    q, k = views(8)
    queue = normal(9, 8)
    own = jnp.broadcast_to(queue, (16, 9, 8))
    for options in ({}, {"block": 4}):
        np.testing.assert_allclose(compiled(q, k, negatives=own, temperature=0.1, **options),
                                   compiled(q, k, negatives=queue, temperature=0.1, **options), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_rows_are_compared_in_float32():
    q, k, queue = (jnp.asarray(x, jnp.bfloat16) for x in (*views(8), normal(9, 8)))
    for negatives in (None, queue, jnp.broadcast_to(queue, (16, 9, 8))):
        for similarity in ("dot", "mean"):
            options = dict(temperature=0.1, normalize=False, similarity=similarity)
            got = compiled(q, k, negatives=negatives, **options)
            assert got.dtype == jnp.float32
            with jax.enable_x64(True):
                want = compiled(f64(q), f64(k), negatives=None if negatives is None else f64(negatives), **options)
            np.testing.assert_allclose(got, want, rtol=1e-5)


MODES = {"in-batch": {}, "queue": {"negatives": normal(9, 6, seed=4)},
         "paired": {"negatives": normal(16, 5, 6, seed=5)},
         "hard": {"hard_negatives": normal(16, 6, seed=6), "hard_negative_weight": 2.0}}


@pytest.mark.parametrize("n, how", [(1, {}), (1, {"block": 4}), (4, {}), (4, {"comm": "ring", "block": 3})], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_metrics_against_the_written_out_softmax(mesh, mode, n, how):
    q, k = views(6)
    given, t = MODES[mode], 0.5
    weight = given.get("hard_negative_weight", 0.0)
    arrays = {name: x for name, x in given.items() if np.ndim(x)}
    specs = {name: P() if mode == "queue" else P("data") for name in arrays}

    def shard(q, k, arrays):
        return dist.pmean(info_nce(q, k, **arrays, hard_negative_weight=weight, temperature=t, axis="data",
                                   metrics=True, **how)[1], "data")
    fn = jax.shard_map(shard, mesh=mesh(n), in_specs=(P("data"), P("data"), specs), out_specs=P())
    got = jax.jit(fn)(q, k, arrays)

    length_one = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    q, k, arrays = length_one(q), length_one(k), {name: length_one(x) for name, x in arrays.items()}
    rows = []
    for i in range(16):
        others = np.concatenate([np.delete(k, i, axis=0), *([arrays["hard_negatives"]] if mode == "hard" else [])])
        if "negatives" in arrays:
            others = arrays["negatives"] if mode == "queue" else arrays["negatives"][i]
        s, negatives = q[i] @ k[i], others @ q[i]
        logits = np.concatenate([[s], negatives]) / t
        if mode == "hard":
            logits[16 + i] += weight
        p = np.exp(logits) / np.exp(logits).sum()
        rows.append((s > negatives.max(), -(p * np.log(p)).sum(), s, negatives.mean()))
    want = dict(zip(("accuracy", "entropy", "positive", "negative"), np.mean(rows, axis=0)))
    assert 0 < want["accuracy"] < 1 and got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_metrics_carry_no_gradient():
    q, k = views(4)
    for mode in ({}, {"negatives": normal(5, 4)}, {"negatives": normal(16, 3, 4)}):
        report = jax.jit(jax.jacrev(lambda q: info_nce(q, k, **mode, temperature=0.5, metrics=True)[1]))(q)
        assert report.keys() == {"accuracy", "entropy", "positive", "negative"}
        assert not any(np.any(g) for g in report.values())


@pytest.mark.parametrize("options", [{}, {"block": 3}], ids=str)
def test_extremes_stay_finite(options):
    q, k = map(jnp.asarray, views(6))
    zero = jnp.zeros_like(q)
    fn = value_and_grad(lambda x, t: info_nce(**x, temperature=t, metrics=True, **options), (0, 1), has_aux=True)
    for q, k, t, more in [(zero, zero, 0.01, {}), (q, k, 1e-3, {}), (q, -q, 0.01, {}), (q, -q, 0.01, {"negatives": q}),
                          (q, k, 0.01, {"negatives": jnp.zeros((16, 5, 6))}), (zero, k, 0.01, {"negatives": zero})]:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fn({"query": q, "key": k, **more}, t)))


@pytest.mark.parametrize("options", [{}, {"block": 3}], ids=str)
def test_without_negatives_the_loss_is_nothing(options):
    q, k = (jnp.asarray(x[:1]) for x in views(4))
    (loss, report), g = value_and_grad(lambda q: info_nce(q, k, temperature=0.1, metrics=True, **options), has_aux=True)(q)
    assert loss == 0 and not np.any(g)
    assert report["accuracy"] == 1 and report["entropy"] == 0 and report["negative"] == 0


def equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for inner in jax.tree.leaves(list(e.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_a_queue_of_moco_s_size_is_never_met_whole():
    b, d, k, block = 256, 128, 65536, 1024
    rows = jax.ShapeDtypeStruct((b, d), jnp.float32), jax.ShapeDtypeStruct((k, d), jnp.float32)
    traced = jax.make_jaxpr(jax.grad(lambda q, queue: info_nce(q, q, negatives=queue, temperature=0.2, block=block),
                                     argnums=(0, 1)))(*rows)
    shapes = {v.aval.shape for e in equations(traced.jaxpr) for v in e.outvars}
    assert (b, block) in shapes
    assert max(int(np.prod(s)) for s in shapes) == k * d  # the queue itself; b * k would be twice that


@pytest.mark.parametrize("negatives", ["queue", "paired"])
def test_negatives_at_hand_need_no_message(mesh, negatives):
    x = {"queue": normal(12, 6), "paired": normal(16, 3, 6)}[negatives]
    spec = {"queue": P(), "paired": P("data")}[negatives]

    def shard(q, k, n):
        n = jax.lax.stop_gradient(n)
        return jax.grad(lambda q: info_nce(q, k, negatives=n, temperature=0.2, axis="data", block=4))(q)
    traced = jax.make_jaxpr(jax.shard_map(shard, mesh=mesh(4), in_specs=(P("data"), P("data"), spec),
                                          out_specs=P("data")))(*views(6), x)
    used = {str(e.primitive) for e in equations(traced.jaxpr)}
    assert "dot_general" in used
    assert not any(word in name for name in used for word in ("psum", "all_gather", "permute", "scatter", "all_to_all"))


def test_refuses_what_does_not_fit():
    z = jnp.ones((4, 2))
    for given, text in [({"key": jnp.ones((4, 3))}, "one shape"), ({"negatives": jnp.ones((5, 3))}, r"\[K, 2\]"),
                        ({"negatives": jnp.ones((3, 5, 2))}, r"\[4, M, 2\], got \(3, 5, 2\)"),
                        ({"negatives": z, "hard_negatives": z}, "in-batch"),
                        ({"hard_negatives": jnp.ones((3, 2))}, "hard_negatives"),
                        ({"similarity": "cosine"}, "similarity='cosine'"), ({"comm": "all"}, "comm='all'")]:
        with pytest.raises(ValueError, match=text):
            info_nce(**{"query": z, "key": z, "temperature": 0.1, **given})
