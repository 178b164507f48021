"""References of info_nce, sup_con and uni_cl: the papers' sums over the whole batch, written out row by row."""
import jax.numpy as jnp
import numpy as np

from exactness import BATCH, Case, normal, views
from simclr_jax.losses.info_nce import info_nce
from simclr_jax.losses.sup_con import sup_con
from simclr_jax.losses.uni_cl import uni_cl

LABELS = np.array([0, 1, 2, -1, 0, 1, 2, 0, -1, 3, 0, 1, 4, 2, -1, 0], np.int32)  # 3 and 4 have one example each
TEXT_LABELS = np.array([0, 1, 2, -1, 1, 1, 0, 0, 2, 3, -1, 1, 4, 2, 0, 0], np.int32)


def rows_of(x, normalize=True):
    return x / jnp.sqrt((x ** 2).sum(axis=-1, keepdims=True)) if normalize else x


def log_sum_exp(x):
    top = x.max(axis=-1, keepdims=True)
    return top[..., 0] + jnp.log(jnp.exp(x - top).sum(axis=-1))


def info_nce_reference(x, shared, similarity="dot", normalize=True):
    """The candidates of each query side by side: its key, then its negatives."""
    t, weight = shared["temperature"], shared.get("weight", 0.0)
    x = {**x, **shared}
    q, k = (rows_of(x[name], normalize) for name in ("q", "k"))
    s = lambda a, b: (jnp.mean if similarity == "mean" else jnp.sum)(a * b, axis=-1) / t
    i = np.arange(BATCH)
    if "queue" in x:
        others = s(q[:, None], rows_of(x["queue"], normalize)[None])
    elif "paired" in x:
        others = s(q[:, None], rows_of(x["paired"], normalize))
    else:
        others = s(q[:, None], k[np.array([[j for j in i if j != r] for r in i])])
    if "hard" in x:
        own = s(q[:, None], rows_of(x["hard"], normalize)[None]) + weight * np.eye(BATCH)
        others = jnp.concatenate([others, own], axis=1)
    logits = jnp.concatenate([s(q, k)[:, None], others], axis=1)
    return jnp.mean(log_sum_exp(logits) - logits[:, 0])


def sup_con_reference(x, shared, contrast="all", base_temperature=None):
    z, t = rows_of(x["features"]), shared["temperature"]
    views = np.array([(i, v) for i in range(BATCH) for v in range(z.shape[1])])
    example, labels = views[:, 0], np.asarray(x["labels"]) if "labels" in x else np.full(BATCH, -1)
    label = labels[example]
    s = z.reshape(len(views), -1) @ z.reshape(len(views), -1).T / t
    losses = []
    for a in range(len(views)) if contrast == "all" else np.flatnonzero(views[:, 1] == 0):
        others = np.flatnonzero(np.arange(len(views)) != a)
        positive = [c for c in others if example[c] == example[a] or label[c] == label[a] >= 0]
        if positive:
            losses.append((a, others, np.array(positive)))
    lse = log_sum_exp(jnp.stack([s[a, others] for a, others, _ in losses]))
    to_positives = jnp.stack([s[a, positive].mean() for a, _, positive in losses])
    return jnp.mean(lse - to_positives) * (1 if base_temperature is None else t / base_temperature)


def uni_cl_reference(x, shared):
    u, v = rows_of(x["image"]), rows_of(x["text"])
    of_images = np.asarray(x["labels"])
    of_texts = np.asarray(x.get("text_labels", of_images))
    logits = shared["scale"] * u @ v.T
    target = np.array([[i == j or of_images[i] == of_texts[j] >= 0 for j in range(BATCH)] for i in range(BATCH)], float)

    def one_way(logits, target):
        target = target / target.sum(axis=1, keepdims=True)
        return -(target * (logits - log_sum_exp(logits)[:, None])).sum() / BATCH
    return (one_way(logits, target) + one_way(logits.T, target.T)) / 2


def of_info_nce(rows, shared, takes=("comm", "block"), **options):
    def loss(x, shared, **how):
        names = {"queue": "negatives", "paired": "negatives", "hard": "hard_negatives",
                 "weight": "hard_negative_weight", "temperature": "temperature"}
        given = {names[n]: a for n, a in {**x, **shared}.items() if n in names}
        return info_nce(x["q"], x["k"], **given, **options, **how)
    q, k = views()
    return Case(loss, lambda x, shared: info_nce_reference(x, shared, **options), {"q": q, "k": k, **rows},
                {"temperature": jnp.float32(0.2), **shared}, takes)


def of_sup_con(rows, **options):
    def loss(x, shared, **how):
        return sup_con(x["features"], x.get("labels"), temperature=shared["temperature"], **options, **how)
    return Case(loss, lambda x, shared: sup_con_reference(x, shared, **options), rows,
                {"temperature": jnp.float32(0.2)})


def of_uni_cl(rows):
    def loss(x, shared, **how):
        return uni_cl(x["image"], x["text"], x["labels"], text_labels=x.get("text_labels"), scale=shared["scale"],
                      **how)
    image, text = views(seed=3)
    return Case(loss, uni_cl_reference, {"image": image, "text": text, "labels": LABELS, **rows},
                {"scale": jnp.float32(10.0)})


TWO = np.stack(views(seed=1), axis=1)  # [BATCH, 2, D]
CASES = {
    "info_nce": of_info_nce({}, {}),
    "info_nce with hard negatives": of_info_nce({"hard": normal(BATCH, 12, seed=5)}, {"weight": jnp.float32(1.5)}),
    "info_nce with a queue": of_info_nce({}, {"queue": normal(10, 12, seed=6)}, takes=("block",)),
    "info_nce with paired negatives": of_info_nce({"paired": normal(BATCH, 10, 12, seed=7)}, {}, takes=("block",)),
    "info_nce by the mean product": of_info_nce({"paired": normal(BATCH, 10, 12, seed=8)}, {}, takes=("block",),
                                                similarity="mean", normalize=False),
    "sup_con": of_sup_con({"features": TWO, "labels": LABELS}),
    "sup_con without labels": of_sup_con({"features": TWO}, base_temperature=0.07),
    "sup_con of one view": of_sup_con({"features": TWO[:, :1], "labels": LABELS}, base_temperature=0.1),
    "sup_con with one view as anchor": of_sup_con({"features": normal(BATCH, 3, 12, seed=2), "labels": LABELS},
                                                  contrast="one"),
    "uni_cl": of_uni_cl({}),
    "uni_cl with text labels": of_uni_cl({"text_labels": TEXT_LABELS}),
}
