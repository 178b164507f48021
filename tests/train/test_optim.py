"""Optimisers and schedules against the released code's own numbers and written-out references."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from oracle import cases
from runs import ROOT
from simclr_jax import build, config as configs
from simclr_jax.errors import UsageError
from simclr_jax.train import optim

RUN = dict(batch=256, steps=100, examples=1000)


def constant(**kw):
    """An optimiser whose rate is `lr` at every step."""
    return optim.make(**{"scaling": "none", "schedule": "constant", "warmup_epochs": 0.0, **RUN, **kw})


def follow(tx, params, grads):
    """The parameters after each step of a list of gradients."""
    state, out = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


@pytest.mark.scorecard(7)
@pytest.mark.parametrize("case", [0, 1, 2, 4])  # 3 is the momentum that SimCLR's own runs do not use
def test_lars_simclr_equals_the_released_optimizer(case):
    p, c = cases("simclr_lars")[case]
    names = [n.replace("/", ".") for n in p["params"]]
    excluded = r"(bias|gamma$|head_supervised)"
    rules = ((excluded, 0.0), (".*", 1.0))
    tx = constant(name="lars_simclr", lr=p["learning_rate"], momentum=p["momentum"], weight_decay=p["weight_decay"],
                  nesterov=p.get("use_nesterov", False), trust=p.get("eeta", 0.001), decay=rules, adapt=rules).tx
    params = {n: jnp.asarray(c[f"{n}:p0"]) for n in names}
    grads = [{n: c[f"{n}:grads"][i] for n in names} for i in range(p["steps"])]
    for i, got in enumerate(follow(tx, params, grads)):
        for n in names:
            np.testing.assert_allclose(got[n], c[f"{n}:out_params_f32"][i], rtol=3e-5, atol=1e-7, err_msg=f"{n} step {i}")


@pytest.mark.scorecard(7)
@pytest.mark.parametrize("name", ["lars_simclr", "lars_byol"])
def test_the_two_lars_forms_differ_by_where_the_rate_stands(name):
    rng = np.random.default_rng(0)
    w, steps, wd, m = rng.normal(size=(4, 3)), 20, 1e-3, 0.9
    grads = rng.normal(size=(steps, 4, 3))
    made = optim.make(name=name, lr=0.5, scaling="none", warmup_epochs=1.0, weight_decay=wd, momentum=m, batch=100,
                      steps=steps, examples=500)
    got = follow(made.tx, {"kernel": jnp.asarray(w, jnp.float32)}, [{"kernel": jnp.asarray(g, jnp.float32)} for g in grads])
    buffer = np.zeros_like(w)
    for i, g in enumerate(grads):
        g = g + wd * w
        g = 0.001 * np.linalg.norm(w) / np.linalg.norm(g) * g
        rate = 0.5 * (i / 5 if i < 5 else (1 + np.cos(np.pi * (i - 5) / 15)) / 2)
        buffer = m * buffer + (rate * g if name == "lars_simclr" else g)
        w = w - (buffer if name == "lars_simclr" else rate * buffer)
        np.testing.assert_allclose(got[i]["kernel"], w, rtol=1e-5, err_msg=f"step {i}")


def test_schedule_equals_the_released_code():
    for p, c in cases("simclr_schedule"):
        total = optim.total_steps(p["num_examples"], p["epochs"], p["batch"])
        assert total == c["total_steps"]
        made = optim.make(lr=p["base_lr"], scaling=p["scaling"], warmup_epochs=p["warmup_epochs"], batch=p["batch"],
                          steps=total, examples=p["num_examples"])
        got = jax.vmap(made.rate)(jnp.asarray(c["steps"]))
        np.testing.assert_allclose(got, c["out_lr_f32"], atol=1e-6 * c["out_lr_f32"].max())


def test_the_schedule_starts_at_nought_peaks_after_the_warmup_and_ends_where_told():
    rate = optim.make(lr=1.0, scaling="none", warmup_epochs=2.0, final=0.01, batch=100, steps=50, examples=500).rate
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(30), rate(50), rate(60)],
                               [0, 0.5, 1, 0.505, 0.01, 0.01], rtol=1e-6)


def test_sgd_and_adamw_equal_their_definitions():
    params, grads = {"kernel": jnp.array([1.0, -2.0])}, [{"kernel": jnp.array([0.5, 0.25])}] * 3
    w, v = np.array([1.0, -2.0]), 0
    for got in follow(constant(name="sgd", lr=0.1, weight_decay=0.01).tx, params, grads):
        v = 0.9 * v + np.array([0.5, 0.25]) + 0.01 * w
        w = w - 0.1 * v
        np.testing.assert_allclose(got["kernel"], w, rtol=1e-6)
    ours = follow(constant(name="adamw", lr=0.1, weight_decay=0.01).tx, params, grads)
    theirs = follow(optax.adamw(0.1, weight_decay=0.01), params, grads)
    np.testing.assert_allclose(ours[-1]["kernel"], theirs[-1]["kernel"], rtol=1e-6)


def test_rules_choose_by_name():
    params = {"stem": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    grads = [jax.tree.map(jnp.zeros_like, params)]
    made = constant(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.1, rates=((r"^head", 0.5),), freeze=(r"^stem",))
    got = follow(made.tx, params, grads)[0]
    np.testing.assert_allclose(got["stem"]["kernel"], 1.0)
    np.testing.assert_allclose(got["head"]["kernel"], 1 - 0.5 * 0.1)
    np.testing.assert_allclose(got["head"]["bias"], 1.0)  # norms and biases do not decay
    report = "\n".join(made.report(params))
    assert "weight decay not applied: 1 tensors, 2 parameters" in report and "head/bias" in report
    assert "frozen: 1 tensors" in report and "x0.5: 2 tensors" in report


@pytest.mark.parametrize("wrong, message", [
    (dict(name="lasr"), "'lasr', wanted one of lars_simclr"),
    (dict(scaling="square"), "scaling='square'"),
    (dict(schedule="step"), "schedule='step'"),
    (dict(decay=(("(", 0.0),)), "no regular expression"),
    (dict(rates=("head",)), "no \\(regex, number\\) pair"),
    (dict(hold=("head",)), "config.optim.hold: 'head' is no \\(regex, number\\) pair"),
    (dict(layer_decay=0.0), "layer_decay=0.0, wanted .* a factor above 0"),
    (dict(steady=("(",)), "config.optim.steady: '\\(' is no regular expression"),
])
def test_refusals(wrong, message):
    with pytest.raises(UsageError, match=message):
        optim.make(**RUN, **wrong)


def test_a_rule_that_nothing_obeys_is_refused():
    with pytest.raises(UsageError, match="'bakbone'.*found in no parameter"):
        constant(freeze=("bakbone",)).report({"backbone": {"kernel": jnp.ones(2)}})


@pytest.mark.scorecard(9)
def test_bounds_bring_a_parameter_back_after_the_update_and_say_so():
    params = {"logit_scale": jnp.float32(4.5), "kernel": jnp.float32([4.5, -4.5])}
    grads = [{"logit_scale": jnp.float32(-1.0), "kernel": jnp.float32([-1.0, 1.0])}] * 2
    made = constant(name="adamw", lr=0.2, weight_decay=0.0, bounds=(("logit_scale$", 0.0, np.log(100.0)),))
    one, two = follow(made.tx, params, grads)
    np.testing.assert_allclose(jnp.exp(one["logit_scale"]), 100, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(two["logit_scale"]), 100, rtol=1e-5)
    np.testing.assert_allclose(two["kernel"], [4.9, -4.9], rtol=1e-4)  # which has no bounds
    assert made.at_bounds(params) == []
    assert "logit_scale sits at its upper bound 4.60517" in made.at_bounds(one)[0]
    assert "lower bound 0" in made.at_bounds({**params, "logit_scale": jnp.float32(0.0)})[0]
    with pytest.raises(UsageError, match=r"config.optim.bounds: \('x', 1.0\) is no \(regex, least, most\)"):
        constant(bounds=(("x", 1.0),))


def test_a_bounded_parameter_that_moves_inwards_is_left_alone():
    made = constant(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, bounds=[["w", -1.0, 1.0]])
    (got,) = follow(made.tx, {"w": jnp.float32([1.0, -1.0, 0.0])}, [{"w": jnp.float32([0.25, -0.5, 0.5])}])
    np.testing.assert_array_equal(got["w"], [0.75, -0.5, -0.5])


def test_clip_norm_shortens_the_whole_gradient_but_not_by_what_is_frozen():
    grads = [{"head": jnp.float32([3.0, 4.0]), "stem": jnp.float32([100.0])}]
    params = jax.tree.map(jnp.zeros_like, grads[0])
    made = constant(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1.0, freeze=("^stem",))
    (got,) = follow(made.tx, params, grads)
    np.testing.assert_allclose(got["head"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(got["stem"], [0.0])


def test_what_is_frozen_has_no_optimiser_state_and_does_not_decay():
    params = {"image": {"kernel": jnp.ones((50, 50))}, "text": {"kernel": jnp.ones(3)}}
    made = constant(name="adamw", lr=0.1, weight_decay=0.5, freeze=("^image/",))
    state = made.tx.init(params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 50
    (got,) = follow(made.tx, params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_array_equal(got["image"]["kernel"], params["image"]["kernel"])
    assert not np.allclose(got["text"]["kernel"], 1.0)


def test_adamw_with_a_warm_up_in_steps_follows_its_formula():
    rng = np.random.default_rng(1)
    w, b1, b2, eps, wd = rng.normal(size=5), 0.9, 0.98, 1e-6, 0.2
    grads = rng.normal(size=(6, 5))
    made = optim.make(name="adamw", lr=0.5, scaling="none", warmup_steps=4, warmup_epochs=99.0, weight_decay=wd, b1=b1, b2=b2,
                      eps=eps, batch=10, steps=8, examples=50)
    got = follow(made.tx, {"kernel": jnp.asarray(w, jnp.float32)}, [{"kernel": jnp.asarray(g, jnp.float32)} for g in grads])
    m, v = np.zeros(5), np.zeros(5)
    for i, g in enumerate(grads):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        rate = 0.5 * (i / 4 if i < 4 else (1 + np.cos(np.pi * (i - 4) / 4)) / 2)
        w = w - rate * (m / (1 - b1 ** (i + 1)) / (np.sqrt(v / (1 - b2 ** (i + 1))) + eps) + wd * w)
        np.testing.assert_allclose(got[i]["kernel"], w, rtol=2e-5, atol=1e-6, err_msg=f"step {i}")


def test_scale_and_bias_of_a_loss_do_not_decay():
    params = {"logit_scale": jnp.float32(2.0), "logit_bias": jnp.float32(-10.0), "text": {"norm": {"scale": jnp.ones(2)}}}
    made = constant(name="adamw", lr=0.1, weight_decay=0.5)
    (got,) = follow(made.tx, params, [jax.tree.map(jnp.zeros_like, params)])
    assert jax.tree.all(jax.tree.map(np.array_equal, got, params))


def test_schedules_equal_those_of_dino():
    for p, c in cases("dino_schedules")[::2]:  # the rate with a warm-up, the weight decay
        made = optim.make(schedule="dino", lr=p["base_value"], scaling="none", final=p["final_value"] / p["base_value"],
                          warmup_epochs=p["warmup_epochs"], batch=1, steps=len(c["out"]), examples=p["niter_per_ep"])
        np.testing.assert_allclose(jax.vmap(made.rate)(jnp.arange(len(c["out"]))), c["out"], rtol=1e-5, atol=1e-9)


def test_mocos_rate_falls_to_a_tenth_at_epochs_120_and_160():
    config, _ = configs.parse(["train", f"--config={ROOT}/configs/moco_imagenet.py:v=1"])
    made, steps = build.optimiser(config, 1_281_167), build.steps(config, 1_281_167)
    at = lambda epoch: epoch * steps // 200
    asked = [0, at(120) - 2, at(120) + 2, at(160) - 2, at(160) + 2, steps - 1]
    want = [0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003]
    np.testing.assert_allclose(jax.vmap(made.rate)(jnp.array(asked)), want, rtol=1e-6)
    got = follow(optim.make(name="sgd", lr=1.0, scaling="none", schedule="steps", warmup_epochs=0.0, momentum=0.0,
                            weight_decay=0.0, drops=(0.25, 0.75), batch=10, steps=8, examples=10).tx,
                 {"kernel": jnp.zeros(())}, [{"kernel": jnp.ones(())}] * 8)
    moved = -np.diff([0, *(float(p["kernel"]) for p in got)])
    np.testing.assert_allclose(moved, [1, 1, .1, .1, .1, .1, .01, .01], rtol=1e-4)


def test_weight_decay_follows_its_own_cosine():
    made = constant(name="adamw", lr=0.1, weight_decay=0.04, weight_decay_final=0.4)
    params, w = {"kernel": jnp.float32([1.0]), "bias": jnp.float32([1.0])}, 1.0
    for i, got in enumerate(follow(made.tx, params, [jax.tree.map(jnp.zeros_like, params)] * 60)):
        w *= 1 - 0.1 * (0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * i / 100)) / 2)
    np.testing.assert_allclose(got["kernel"], w, rtol=1e-5)
    np.testing.assert_array_equal(got["bias"], 1.0)


def test_each_tensor_is_clipped_by_itself():
    grads = [{"a": jnp.float32([3.0, 4.0]), "b": jnp.float32([0.3, 0.4])}]
    (got,) = follow(constant(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip_each=1.0).tx,
                    jax.tree.map(jnp.zeros_like, grads[0]), grads)
    np.testing.assert_allclose(got["a"], [-0.6, -0.8], rtol=1e-5)
    np.testing.assert_allclose(got["b"], [-0.3, -0.4], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars_byol", "lars_simclr"])
def test_what_is_held_starts_later_as_if_it_had_had_no_gradient(name):
    """Two epochs of four steps; Adam's averages, their corrections and momentum begin then, the schedule does not wait."""
    rng = np.random.default_rng(2)
    grads = [{"last": jnp.float32(g), "other": jnp.float32(g)} for g in rng.normal(size=(12, 3))]
    params = {"last": jnp.float32([1.0, 2.0, 3.0]), "other": jnp.float32([1.0, 2.0, 3.0])}
    how = dict(name=name, lr=0.1, weight_decay=0.1, batch=250)
    got = follow(constant(**how, hold=(("^last$", 2.0),)).tx, params, grads)
    free = follow(constant(**how).tx, params, grads)
    late = follow(constant(**how).tx, params, grads[8:])
    for i in range(12):
        np.testing.assert_allclose(got[i]["other"], free[i]["other"], rtol=1e-6)
        np.testing.assert_allclose(got[i]["last"], params["last"] if i < 8 else late[i - 8]["last"], rtol=1e-6)
    cosine = optim.make(name=name, lr=0.1, scaling="none", warmup_epochs=0.0, hold=(("^last$", 2.0),), **{**RUN, "batch": 250})
    state = cosine.tx.init(params)
    assert jax.tree.structure(cosine.tx.update(grads[0], state, params)[1]) == jax.tree.structure(state)


def test_a_steady_rate_is_the_peak_at_every_step():
    params = {"predictor": jnp.float32([0.0]), "backbone": jnp.float32([0.0])}
    made = optim.make(name="sgd", lr=0.1, scaling="none", warmup_epochs=1.0, momentum=0.0, weight_decay=0.0,
                      steady=("^predictor",), batch=100, steps=20, examples=500)
    got = follow(made.tx, params, [jax.tree.map(jnp.ones_like, params)] * 20)
    np.testing.assert_allclose(got[-1]["predictor"], -2.0, rtol=1e-5)
    np.testing.assert_allclose(got[-1]["backbone"], -sum(float(made.rate(i)) for i in range(20)), rtol=1e-5)


def test_rows_are_brought_back_to_unit_length():
    rng = np.random.default_rng(3)
    w, g = rng.normal(size=(2, 4, 3))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    params = {"prototypes": jnp.float32(w), "kernel": jnp.float32(w)}
    made = constant(name="sgd", lr=0.5, momentum=0.0, weight_decay=0.0, unit=("^prototypes$",))
    (got,) = follow(made.tx, params, [jax.tree.map(lambda _: jnp.float32(g), params)])
    moved = w - 0.5 * g
    np.testing.assert_allclose(got["kernel"], moved, rtol=1e-5)
    np.testing.assert_allclose(got["prototypes"], moved / np.linalg.norm(moved, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_layers_near_the_image_learn_more_slowly(scan):
    """dinov2 utils/param_groups.py: factor ** (L + 1 - l), with l = 0 for patches, tokens and positions."""
    one = {"norm1": {"scale": jnp.ones(2)}}
    stack = {"blocks": {"norm1": {"scale": jnp.ones((3, 2))}}} if scan else {f"block{i}": one for i in (1, 2, 3)}
    params = {"backbone": {"patches": {"kernel": jnp.ones(2)}, "positions": {"embedding": jnp.ones(2)}, "stack": stack,
                           "norm": {"scale": jnp.ones(2)}}, "projector": {"kernel": jnp.ones(2)}}
    made = constant(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, layer_decay=0.5, rates=(("patches/", 0.2),))
    (got,) = follow(made.tx, params, [jax.tree.map(jnp.ones_like, params)])
    moved = jax.tree.map(lambda p: 1 - p, got)
    blocks = [moved["backbone"]["stack"]["blocks"]["norm1"]["scale"][i] if scan else
              moved["backbone"]["stack"][f"block{i + 1}"]["norm1"]["scale"] for i in range(3)]
    for x, want in zip((*blocks, moved["backbone"]["patches"]["kernel"], moved["backbone"]["positions"]["embedding"],
                        moved["backbone"]["norm"]["scale"], moved["projector"]["kernel"]),
                       (0.125, 0.25, 0.5, 0.0625 * 0.2, 0.0625, 1, 1)):
        np.testing.assert_allclose(x, want, rtol=1e-6)


def test_the_report_names_what_is_held_steady_or_of_unit_length():
    params = {"last": {"direction": jnp.ones((2, 2))}, "predictor": {"kernel": jnp.ones(2)}}
    lines = "\n".join(constant(hold=(("^last/", 1.5),), steady=("^predictor/",), unit=("direction$",)).report(params))
    assert "held for 1.5 epochs: 1 tensors, 4 parameters" in lines
    assert "at the peak rate: 1 tensors" in lines and "of unit length: 1 tensors" in lines
    with pytest.raises(UsageError, match="'prototypes' .* is found in no parameter"):
        constant(unit=("prototypes",)).report(params)
