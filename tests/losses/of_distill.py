"""The losses of self-distillation, and alignment and uniformity, each with its formula written out for the whole batch."""
import jax.numpy as jnp
import numpy as np

from exactness import BATCH, Case, normal, views
from simclr_jax.losses.distill import cosine_regression, dino, ibot, sinkhorn
from simclr_jax.losses.correlation import barlow_twins, vicreg
from simclr_jax.losses.geometry import alignment, spread, uniformity
from simclr_jax.losses.koleo import koleo

S, V, N, K = 4, 2, 5, 10  # student's views, teacher's views, patches, prototypes


def fixed(*shape, seed):
    """Integers: 32 times the numbers of what gets no gradient, exact in bfloat16."""
    return np.round(32 * normal(*shape, seed=seed)).astype(np.int32)


def student(r):
    return jnp.moveaxis(r["student"], 1, 0)


def teacher(r):
    return jnp.moveaxis(r["teacher"] / 32, 1, 0)


def rows(x):
    """Rows of unit length, or as they are."""
    return x / jnp.sqrt((x ** 2).sum(-1, keepdims=True))


def log_softmax(x):
    return x - jnp.log(jnp.exp(x).sum(-1, keepdims=True))


def softmax(x):
    return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


def cosine_regression_written_out(p, z):
    return sum(((p[i] - z[i]) ** 2).sum() for i in range(BATCH)) / BATCH


def dino_written_out(student, probabilities, temperature, all_pairs=False):
    terms = [-(probabilities[:, t] * log_softmax(student[:, s] / temperature)).sum(-1).mean()
             for t in range(V) for s in range(S) if all_pairs or s != t]
    return sum(terms) / len(terms)


def ibot_written_out(student, probabilities, mask, temperature):
    total = 0.0
    for i in range(BATCH):
        masked = [j for j in range(N) if mask[i, j]]
        for j in masked:
            total -= (probabilities[i, j] * log_softmax(student[i, j] / temperature)).sum() / len(masked) / BATCH
    return total


def sinkhorn_written_out(scores, temperature, iterations=3):
    """The algorithm as published: prototypes' rows to 1/K, then samples' columns to 1/B."""
    q = np.exp(np.asarray(scores, np.float64).T / temperature)  # [K, B]
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def masked_sinkhorn_written_out(scores, mask, temperature):
    out = np.zeros(scores.shape)
    out[mask] = sinkhorn_written_out(scores[mask], temperature)
    return out


def koleo_written_out(x):
    distance = np.array([[np.inf if i == j else np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(BATCH)]
                         for i in range(BATCH)])
    near = distance.argmin(axis=1)
    return lambda x: -sum(jnp.log(jnp.sqrt(((x[i] - x[near[i]] + 1e-8) ** 2).sum()) + 1e-8)
                          for i in range(BATCH)) / BATCH


def uniformity_written_out(z, t):
    terms = [jnp.exp(-t * ((z[i] - z[j]) ** 2).sum()) for i in range(BATCH) for j in range(BATCH) if i != j]
    return jnp.log(sum(terms) / len(terms))


def spread_written_out(z):
    return jnp.sqrt(((z - z.mean(0)) ** 2).sum(0) / BATCH).mean() * np.sqrt(z.shape[1])


def barlow_twins_written_out(a, b, weight):
    a, b = ((z - z.mean(0)) / jnp.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5) for z in (a, b))
    terms = [[(a[:, i] * b[:, j]).mean() for j in range(b.shape[1])] for i in range(a.shape[1])]
    return sum((1 - c) ** 2 if i == j else weight * c ** 2 for i, row in enumerate(terms) for j, c in enumerate(row))


def vicreg_written_out(a, b, weights=(25.0, 25.0, 1.0)):
    d = a.shape[1]
    terms = [((a - b) ** 2).mean(), 0.0, 0.0]
    for z in (a, b):
        c = (z - z.mean(0)).T @ (z - z.mean(0)) / (BATCH - 1)
        terms[1] += sum(jnp.maximum(0, 1 - jnp.sqrt(c[i, i] + 1e-4)) for i in range(d)) / d / 2
        terms[2] += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return sum(w * t for w, t in zip(weights, terms))


A, B = views()
STUDENT, TEACHER, CENTER = normal(BATCH, S, K, seed=1), fixed(BATCH, V, K, seed=2), fixed(K, seed=3)
COUNTS = np.random.default_rng(4).integers(1, 9, (BATCH, V, K))
PATCHES, SEEN = normal(BATCH, N, K, seed=5), fixed(BATCH, N, K, seed=6)
MASK = np.random.default_rng(7).random((BATCH, N)) < np.linspace(0, 1, BATCH)[:, None]  # none in the first image
SCORES, CODED = fixed(BATCH, K, seed=8) // 2, normal(BATCH, K, seed=9)
T_S = np.float32(0.3)  # the student's temperature, which gets a gradient
LEFT_OUT = np.arange(BATCH) % 3 == 1
assert not MASK[0].any() and MASK[-1].all()

CASES = {
    "cosine_regression": Case(
        lambda r, s, axis: cosine_regression(r["p"], r["z"]),
        lambda r, s: cosine_regression_written_out(rows(r["p"]), rows(r["z"])),
        {"p": A, "z": B}, takes=()),
    "cosine_regression of rows as they are": Case(
        lambda r, s, axis: cosine_regression(r["p"], r["z"], normalize=False),
        lambda r, s: cosine_regression_written_out(r["p"], r["z"]),
        {"p": A, "z": B}, takes=()),
    "dino": Case(
        lambda r, s, axis: dino(student(r), teacher(r), student_temperature=s["t"], teacher_temperature=0.5,
                                center=s["center"] / 32),
        lambda r, s: dino_written_out(r["student"], softmax((r["teacher"] - s["center"]) / 32 / 0.5), s["t"]),
        {"student": STUDENT, "teacher": TEACHER}, {"t": T_S, "center": CENTER}, takes=()),
    "dino over all pairs": Case(
        lambda r, s, axis: dino(student(r), teacher(r), student_temperature=s["t"], teacher_temperature=0.1,
                                pairs="all"),
        lambda r, s: dino_written_out(r["student"], softmax(r["teacher"] / 32 / 0.1), s["t"], all_pairs=True),
        {"student": STUDENT, "teacher": TEACHER}, {"t": T_S}, takes=()),
    "dino of given probabilities": Case(
        lambda r, s, axis: dino(student(r), jnp.moveaxis(r["n"] / r["n"].sum(-1, keepdims=True), 1, 0),
                                teacher_temperature=None),
        lambda r, s: dino_written_out(r["student"], r["n"] / r["n"].sum(-1, keepdims=True), 0.1),
        {"student": STUDENT, "n": COUNTS}, takes=()),
    "ibot": Case(
        lambda r, s, axis: ibot(r["student"], r["teacher"] / 32, r["mask"], student_temperature=s["t"],
                                teacher_temperature=0.5, center=s["center"] / 32, axis=axis),
        lambda r, s: ibot_written_out(r["student"], softmax((r["teacher"] - s["center"]) / 32 / 0.5), MASK, s["t"]),
        {"student": PATCHES, "teacher": SEEN, "mask": MASK}, {"t": T_S, "center": CENTER}, takes=()),
    "ibot of sinkhorn's probabilities": Case(
        lambda r, s, axis: ibot(
            r["student"], sinkhorn(r["teacher"] / 32, temperature=0.5, weights=r["mask"], axis=axis), r["mask"],
            teacher_temperature=None, axis=axis),
        lambda r, s: ibot_written_out(r["student"], masked_sinkhorn_written_out(SEEN / 32, MASK, 0.5), MASK, 0.1),
        {"student": PATCHES, "teacher": SEEN, "mask": MASK}, takes=()),
    "sinkhorn": Case(
        lambda r, s, axis: jnp.mean(jnp.sum(r["x"] * sinkhorn(r["scores"] / 32, temperature=0.1, axis=axis), axis=1)),
        lambda r, s: (r["x"] * sinkhorn_written_out(r["scores"] / 32, 0.1)).sum() / BATCH,
        {"x": CODED, "scores": SCORES}, takes=()),
    "sinkhorn of some rows": Case(
        lambda r, s, axis: jnp.mean(jnp.sum(r["x"] * sinkhorn(r["scores"] / 32, temperature=0.1, weights=~r["out"],
                                                              axis=axis), axis=1)),
        lambda r, s: (r["x"] * masked_sinkhorn_written_out(r["scores"] / 32, ~LEFT_OUT, 0.1)).sum() / BATCH,
        {"x": CODED, "scores": SCORES, "out": LEFT_OUT}, takes=()),
    "koleo": Case(
        lambda r, s, **how: koleo(r["x"], **how),
        lambda r, s: koleo_written_out(np.asarray(A / np.linalg.norm(A, axis=1, keepdims=True)))(rows(r["x"])),
        {"x": A}),
    "koleo of rows as they are": Case(
        lambda r, s, **how: koleo(r["x"], normalize=False, **how),
        lambda r, s: koleo_written_out(A)(r["x"]),
        {"x": A}),
    "barlow_twins": Case(
        lambda r, s, axis: barlow_twins(r["a"], r["b"], off_diagonal=0.1, axis=axis),
        lambda r, s: barlow_twins_written_out(r["a"], r["b"], 0.1),
        {"a": A, "b": B}, takes=()),
    "vicreg": Case(
        lambda r, s, axis: vicreg(r["a"], r["b"], axis=axis),
        lambda r, s: vicreg_written_out(r["a"], r["b"]),
        {"a": A, "b": B}, takes=()),
    # Figures to watch rather than losses, held to the same.
    "alignment": Case(
        lambda r, s, axis: alignment(r["a"], r["b"], alpha=s["alpha"]),
        lambda r, s: (((rows(r["a"]) - rows(r["b"])) ** 2).sum(1) ** (s["alpha"] / 2)).mean(),
        {"a": A, "b": B}, {"alpha": np.float32(1.5)}, takes=()),
    "spread": Case(
        lambda r, s, axis: spread(r["z"], axis=axis),
        lambda r, s: spread_written_out(rows(r["z"])),
        {"z": A}, takes=()),
    "uniformity": Case(
        lambda r, s, **how: uniformity(r["z"], t=s["t"], **how),
        lambda r, s: uniformity_written_out(rows(r["z"]), s["t"]),
        {"z": A}, {"t": np.float32(2)}),
    "uniformity of rows as they are": Case(
        lambda r, s, **how: uniformity(r["z"], t=s["t"], normalize=False, **how),
        lambda r, s: uniformity_written_out(r["z"], s["t"]),
        {"z": A}, {"t": np.float32(0.2)}),
}
