"""Methods against numbers of the originals' own code, value and gradient, and against their formulas written out."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from oracle import cases
from simclr_jax import dist, losses, names
from simclr_jax.errors import UsageError
from simclr_jax.methods import branches, prototypes as wide
from simclr_jax.nets import mlp
from simclr_jax.train.state import init_state
from simclr_jax.train.step import make_step
from simclr_jax.types import Ctx, Net

CTX = Ctx(jnp.int32(0), jax.random.key(0), None)
RUN = dict(batch=8, steps=10, examples=64)
IDENTITY = Net(lambda key, x: ({}, {}), lambda params, stats, x, **_: ({"pooled": x}, stats))


def linear(out, bias=False, after=lambda x: x):
    def init(key, x):
        return {"kernel": jnp.zeros((x.shape[-1], out))} | ({"bias": jnp.zeros(out)} if bias else {}), {}

    def apply(params, stats, x, *, train, key=None, mask=None):
        return {"pooled": after(x @ params["kernel"] + params.get("bias", 0))}, stats
    return Net(init, apply)


def make(name, nets=None, **spec):
    nets = nets or {role: IDENTITY for role in ("backbone", "projector", "predictor", "patch_projector")}
    return names.make("methods", dict(name=name, **spec), nets, **RUN)


def loss_of(method, extra, outputs, params=None):
    """criterion's loss, jitted, as a function of its outputs."""
    return jax.jit(jax.value_and_grad(lambda outputs: method.criterion(params or {}, extra, outputs, CTX)[0]))(outputs)


@pytest.mark.scorecard(8)
@pytest.mark.parametrize("case", [0, 1])
def test_byol_equals_the_released_loss(case):
    _, c = cases("byol")[case]
    outputs = {"prediction": np.stack([c["p1"], c["p2"]], 1), "target": np.stack([c["z1"], c["z2"]], 1)}
    loss, grad = loss_of(make("byol"), {}, outputs)
    np.testing.assert_allclose(loss, c["out_loss_f32"], rtol=1e-5)
    np.testing.assert_allclose(grad["prediction"], np.stack([c["grad_p1_f32"], c["grad_p2_f32"]], 1), rtol=1e-4, atol=1e-6)
    assert not np.any(grad["target"])


@pytest.mark.scorecard(8)
def test_the_momentum_rises_as_released():
    _, c = cases("dino_schedules")[1]
    got = branches.rising(0.996, jnp.arange(70), 70)
    np.testing.assert_allclose(got, c["out"], rtol=1e-6)
    assert branches.rising(0.9, 10, 10) == 1 and abs(branches.rising(0.9, 5, 10) - 0.95) < 1e-6


def test_simsiam_equals_the_released_module():
    """Batch statistics of each view, a last normalisation without parameters, the gradient of every parameter."""
    _, c = cases("simsiam_module")[0]
    w = {k.removeprefix("sd/"): v for k, v in c.items() if k.startswith("sd/")}
    nets = {"backbone": linear(20, bias=True, after=jax.nn.relu),
            "projector": mlp.make(layers=3, hidden=20, out=24, last_scale=False),
            "predictor": mlp.make(layers=2, hidden=8, out=24, last_bn=False)}
    method = make("simsiam", nets)

    def tree(of):
        dense = lambda name: {"kernel": of(f"{name}.weight").T}
        bn = lambda name: {"scale": of(f"{name}.weight"), "bias": of(f"{name}.bias")}
        fc = "encoder.fc."
        return {"backbone": {**dense("encoder.body"), "bias": of("encoder.body.bias")},
                "projector": {"layer1": {"dense": dense(fc + "0"), "bn": bn(fc + "1")},
                              "layer2": {"dense": dense(fc + "3"), "bn": bn(fc + "4")}, "layer3": {"dense": dense(fc + "6")}},
                "predictor": {"layer1": {"dense": dense("predictor.0"), "bn": bn("predictor.1")},
                              "layer2": {"dense": {**dense("predictor.3"), "bias": of("predictor.3.bias")}}}}
    batch = {"views": np.stack([c["x1"], c["x2"]], 1), "id": np.zeros((16, 2), np.uint32)}
    params, (_, extra) = tree(lambda name: w[name]), jax.jit(method.init)(CTX.key, batch)

    def whole(params):
        outputs, after = method.forward(params, extra, batch, CTX)
        return method.criterion(params, after, outputs, CTX)[0], outputs
    (loss, outputs), grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    np.testing.assert_allclose(loss, c["out_loss_f64"], rtol=1e-5)
    for name, key in (("p", "out_p{}_f64"), ("z", "out_z{}_f64")):
        for v in (0, 1):
            np.testing.assert_allclose(outputs[name][:, v], c[key.format(v + 1)], rtol=1e-3, atol=1e-4)
    want = tree(lambda name: c[f"out_pgrad/{name}_f64"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), grads, want)


@pytest.mark.parametrize("case", [0, 1])
def test_moco_equals_six_steps_of_the_released_builder(case):
    """Its key encoder follows before the keys are made, ours after the optimiser: the same keys, queue and gradients."""
    p, c = cases("moco_v2")[case]
    nets = {"backbone": linear(p["dim"]), "projector": IDENTITY}
    method = make("moco", nets, queue=p["K"], momentum=p["m"], temperature=p["T"])
    mesh = dist.make_mesh({"data": 1}, jax.devices()[:1])
    tx = optax.sgd(p["lr"])
    batches = [{"views": np.stack([q, k], 1), "id": np.zeros((p["B"], 2), np.uint32)} for q, k in zip(c["im_q"], c["im_k"])]
    state = init_state(method, tx, mesh, batches[0], seed=0)
    params = {"backbone": {"kernel": jnp.asarray(c["w0"].T)}, "projector": {}}
    extra = {**state.extra, "queue": jnp.asarray(c["queue0"].T),
             "teacher": {**state.extra["teacher"], "params": jax.tree.map(jnp.copy, params)}}
    state = jax.device_put(state.replace(params=params, extra=extra), dist.replicated(mesh))
    step = make_step(method, tx, mesh, seed=0)
    for i, batch in enumerate(batches):
        teacher = state.extra["teacher"]["params"]["backbone"]["kernel"]
        np.testing.assert_allclose(teacher, c["out_wk_after_f64"][i].T, atol=1e-6)
        state, metrics = step(state, dist.place_batch(batch, mesh))
        np.testing.assert_allclose(metrics["loss"], c["out_loss_f64"][i], rtol=1e-4)
        np.testing.assert_allclose(state.params["backbone"]["kernel"], c["out_wq_after_f64"][i].T, rtol=1e-3, atol=2e-6)
        np.testing.assert_allclose(state.extra["queue"], c["out_queue_after_f64"][i].T, atol=2e-6)
        assert state.extra["position"] == c["out_ptr_after_f64"][i][0]


@pytest.mark.parametrize("case", range(6))
def test_moco_equals_another_memory_bank(case):
    """lightly's drops rows that do not fit: there the loss is the same, and ours refuses the queue."""
    p, c = cases("lightly_moco_bank")[case]
    method = make("moco", queue=p["K"], temperature=p["temperature"])
    bank = jnp.asarray(c["out_bank_before_f64"], jnp.float32)
    extra = {"queue": bank, "position": jnp.int32(c["out_ptr_before_f64"][0])}
    outputs = {"query": c["out0"], "key": c["out1"]}
    if p["K"] % p["n"]:
        with pytest.raises(UsageError, match="queue=40 is no multiple of the global batch of 16; take 32, or another"):
            method.criterion({}, extra, outputs, CTX)
        loss, grad = jax.jit(jax.value_and_grad(lambda q: losses.info_nce(
            q, c["out1"], temperature=p["temperature"], negatives=bank)))(c["out0"])
    else:
        (loss, (after, _)), grads = jax.jit(jax.value_and_grad(
            lambda outputs: method.criterion({}, extra, outputs, CTX), has_aux=True))(outputs)
        grad = grads["query"]
        assert not np.any(grads["key"])
        np.testing.assert_allclose(after["queue"], c["out_bank_after_f64"], atol=1e-6)
        assert after["position"] == c["out_ptr_after_f64"][0]
    tolerance = 1 if p["temperature"] >= 0.1 else 10
    np.testing.assert_allclose(loss, c["out_loss_f64"], rtol=1e-5 * tolerance)
    np.testing.assert_allclose(grad, c["grad_out0_f64"], rtol=1e-4 * tolerance, atol=1e-6 * tolerance)


@pytest.mark.parametrize("case", [0, 1])
def test_moco_v3_equals_the_released_loss(case):
    p, c = cases("moco_v3")[case]
    outputs = {"query": np.stack([c["q1"], c["q2"]], 1), "key": np.stack([c["k1"], c["k2"]], 1)}
    loss, grad = loss_of(make("moco_v3", temperature=p["T"]), {}, outputs)
    np.testing.assert_allclose(loss, c["out_loss_f64"], rtol=1e-5)
    np.testing.assert_allclose(grad["query"], np.stack([c["grad_q1_f64"], c["grad_q2_f64"]], 1), rtol=1e-4, atol=1e-6)
    assert not np.any(grad["key"])


@pytest.mark.parametrize("case", [0, 1], ids=["dino", "dinov2"])
def test_heads_equal_the_released_ones(case):
    p, c = cases("dino_heads")[case]
    head = mlp.make(layers=3, hidden=24, out=12, hidden_bn=False, last_bn=False, activation="gelu")

    def tree(of):
        return {f"layer{i}": {"dense": {"kernel": of(f"mlp.{2 * i - 2}.weight").T, "bias": of(f"mlp.{2 * i - 2}.bias")}}
                for i in (1, 2, 3)}
    last = {"direction": c["sd/last_layer.weight_v"]} | ({"gain": c["sd/last_layer.weight_g"][:, 0]} if case else {})

    def run(params, last, x):
        y = wide.scores(head.apply(params, {}, x, train=False)[0]["pooled"][:, None], wide.normed(last))[0]
        return jnp.sum(y ** 2) / 2, y
    (_, y), grads = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(
        tree(lambda name: c[f"sd/{name}"]), last, c["x"])
    np.testing.assert_allclose(y, c["out_y_f64"], rtol=1e-4, atol=1e-6)
    want = tree(lambda name: c[f"pgrad/{name}"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads[0], want)
    np.testing.assert_allclose(grads[1]["direction"], c["pgrad/last_layer.weight_v"], rtol=1e-3, atol=1e-6)
    if case:
        np.testing.assert_allclose(grads[1]["gain"], c["pgrad/last_layer.weight_g"][:, 0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(grads[2], c["grad_x_f64"], rtol=1e-3, atol=1e-6)


def units(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def shared(scores, epsilon=0.05):
    """main_swav.py's Sinkhorn of float[rows,K], in float64 as written there."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True)
        q /= len(q)
        q /= q.sum(0, keepdims=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("step, counts", [(0, False), (15, False), (16, True)])
def test_swav_is_its_formula_and_its_queue_counts_once_it_is_full(step, counts):
    """Eight batches an epoch; from epoch 1 the queue of 64 fills, and is full at step 16."""
    b, k, d = 8, 5, 6
    z, w, queue = units(b, 4, d), units(k, d, seed=1), units(2, 64, d, seed=2)
    method = make("swav", prototypes=k, queue=64, queue_epochs=1.0)
    extra = {"queue": jnp.asarray(queue, jnp.float32), "position": jnp.int32(56)}
    outputs = {"views": z[:, :2], "crops": z[:, 2:]}
    loss, (after, metrics) = jax.jit(lambda o: method.criterion({"prototypes": jnp.asarray(w)}, extra, o, CTX._replace(
        step=jnp.int32(step))))(outputs)
    want, scores = 0, z @ w.T
    for s in (0, 1):
        q = shared(np.concatenate([queue[s] @ w.T, scores[:, s]] if counts else [scores[:, s]]))[-b:]
        others = [v for v in range(4) if v != s]
        logits = scores / 0.1
        log_p = logits - np.log(np.exp(logits).sum(2, keepdims=True))
        want += sum(-np.mean(np.sum(q * log_p[:, v], axis=1)) for v in others) / len(others)
    np.testing.assert_allclose(loss, want / 2, rtol=1e-5)
    np.testing.assert_allclose(after["queue"][:, 56:], np.moveaxis(z[:, :2], 1, 0), atol=1e-6)
    np.testing.assert_array_equal(after["queue"][:, :56], extra["queue"][:, :56])
    assert after["position"] == 0


def test_dino_centres_after_use_and_warms_its_teacher():
    """Eight steps an epoch: at step 20, the third of five epochs, T_t is half way from .02 to .06."""
    method = make("dino", prototypes=5, teacher_temperature=0.06, warmup_teacher_temperature=0.02, warmup_teacher_epochs=5.0)
    student, teacher = units(8, 4, 6), units(8, 2, 6, seed=1)
    w, v, center = units(5, 6, seed=2), units(5, 6, seed=3), np.linspace(-0.2, 0.2, 5)
    extra = {"teacher": {"params": {"last": {"direction": 3 * v}}}, "center": jnp.asarray(center, jnp.float32)}
    loss, (after, _) = jax.jit(lambda o: method.criterion({"last": {"direction": 2 * w}}, extra, o, CTX._replace(
        step=jnp.int32(20))))({"student": student, "teacher": teacher})
    t = np.exp((teacher @ v.T - center) / 0.04)
    t /= t.sum(2, keepdims=True)
    s = student @ w.T / 0.1
    s = s - np.log(np.exp(s).sum(2, keepdims=True))
    pairs = [(i, j) for i in range(2) for j in range(4) if i != j]
    want = np.mean([-np.mean(np.sum(t[:, i] * s[:, j], axis=1)) for i, j in pairs])
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(after["center"], 0.9 * center + 0.1 * (teacher @ v.T).mean((0, 1)), atol=1e-6)


def test_dinov2_adds_its_three_losses():
    """As ssl_meta_arch.py does: pairs of other views over their number, masked patches by image, KoLeo summed over views."""
    method = make("dinov2", prototypes=5, warmup_teacher_epochs=0.0, teacher_temperature=0.07, koleo_weight=0.1,
                  patch_weight=0.5)
    used = np.random.default_rng(0).random((8, 2, 3)) < 0.5
    outputs = {"student": units(8, 4, 6), "teacher": units(8, 2, 6, seed=1), "patches": units(8, 2, 3, 6, seed=2),
               "teacher_patches": units(8, 2, 3, 6, seed=3), "class": units(8, 2, 6, seed=4), "used": used,
               "masked": np.full(8, 0.2, np.float32)}
    layers = {name: {"direction": units(5, 6, seed=i), "gain": np.linspace(1, 2, 5)} for i, name in
              enumerate(("last", "patch_last", "t", "patch_t"), start=5)}
    rows = {k: layers[k]["gain"][:, None] * layers[k]["direction"] for k in layers}
    extra = {"teacher": {"params": {"last": layers["t"], "patch_last": layers["patch_t"]}}}
    loss, (_, metrics) = jax.jit(lambda o: method.criterion(layers, extra, o, CTX))(outputs)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    codes = shared((outputs["teacher"] @ rows["t"].T).reshape(16, 5), 0.07).reshape(8, 2, 5)
    student = log_softmax(outputs["student"] @ rows["last"].T / 0.1)
    images = -sum(np.mean(np.sum(codes[:, i] * student[:, j], 1)) for i in range(2) for j in range(4) if i != j) / 6
    target = shared((outputs["teacher_patches"][used] @ rows["patch_t"].T), 0.07)
    each = -np.sum(target * log_softmax(outputs["patches"][used] @ rows["patch_last"].T / 0.1), axis=1)
    weight = (used / np.maximum(used.sum(2, keepdims=True), 1))[used]
    patches = np.sum(each * weight) / 16
    apart = sum(float(losses.koleo(jnp.asarray(outputs["class"][:, v]))) for v in range(2))
    np.testing.assert_allclose(metrics["patch_loss"], patches, rtol=1e-4)
    np.testing.assert_allclose(loss, images + 0.5 * patches + 0.1 * apart, rtol=1e-4)


def test_dinov2_scores_the_hidden_patches_and_no_others():
    """Tokens that tell their place: what reaches the patch head is what the mask names, in order, and the slots say so."""
    tokens = jnp.arange(1.0, 9.0)  # eight patches behind a class token

    def apply(params, stats, x, *, train, key=None, mask=None):
        rows = jnp.broadcast_to(jnp.concatenate([jnp.zeros(1), tokens])[None, :, None], (len(x), 9, 4))
        return {"pooled": rows[:, 0] + jnp.mean(x), "tokens": rows}, stats
    nets = {"backbone": Net(lambda key, x: ({}, {}), apply), "projector": IDENTITY, "patch_projector": IDENTITY}
    method = make("dinov2", nets, prototypes=4)
    mask = np.zeros((1, 2, 8), bool)
    mask[0, 0, [1, 4, 6]] = mask[0, 1, [0]] = True
    batch = {"views": jnp.ones((1, 2, 2, 2, 3)), "mask": jnp.asarray(mask), "id": np.zeros((1, 2), np.uint32)}
    params, extra = method.init(CTX.key, batch)
    outputs, _ = method.forward(params, extra, batch, CTX)
    assert outputs["used"].tolist() == [[[True, True, True, False], [True, False, False, False]]]
    assert outputs["patches"][0, 0, :3, 0].tolist() == [2, 5, 7] and outputs["teacher_patches"][0, 1, 0, 0] == 1
