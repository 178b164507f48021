"""Losses of a student that predicts a teacher: a row against its own target, and no row against another."""
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax import dist
from simclr_jax.losses.running import OUT
from simclr_jax.losses.sweep import wide
from simclr_jax.losses.unit import unit

UNROLLED = 10  # iterations of `sinkhorn` that are written out


def cosine_regression(prediction, target, *, normalize=True, metrics=False):
    """Squared distance of unit vectors (BYOL, Grill et al. 2020, arXiv:2006.07733, equation 2).

        loss = 1/b sum_i |p_i / |p_i| - z_i / |z_i||^2 = 2 - 2/b sum_i cos(p_i, z_i)

    BYOL adds the losses of both directions. SimSiam (Chen & He 2021, arXiv:2011.10566, equation 2) takes the mean
    of both -cos, each loss / 2 - 1. The gradient flows to both arguments: both papers stop the target's, which
    is for the caller to say, with `lax.stop_gradient(target)`.

    Args:
      prediction, target: float[b, D], this shard's rows, row i of both from one example. Computed in f32 (f64 for f64),
        in O(b D).
      normalize: make rows unit length first (squared norm clamped at 1e-12).
      metrics: also return {"positive"} under `stop_gradient`: the mean inner product of pairs (cosine, if normalised).

    Returns:
      f32[]: the mean over this shard's rows; its `pmean` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: the shapes are not one [b, D].

    >>> p, z = jnp.array([[1., 0.], [0., 3.]]), jnp.array([[2., 0.], [1., 0.]])
    >>> float(cosine_regression(p, z))  # cosines 1 and 0: the mean of 0 and 2
    1.0
    """
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError("cosine_regression wants two arrays of one shape [b, D], got "
                         f"{prediction.shape} and {target.shape}")
    p, z = (unit(x) if normalize else wide(x) for x in (prediction, target))
    loss = jnp.mean(jnp.sum((p - z) ** 2, axis=1))
    return (loss, {"positive": lax.stop_gradient(jnp.mean(jnp.sum(p * z, axis=1)))}) if metrics else loss


def dino(student, teacher, *, student_temperature=0.1, teacher_temperature, center=None, pairs="other", metrics=False):
    """Cross entropy of the student's views with the teacher's (DINO, Caron et al. 2021, arXiv:2104.14294, equation 3).

        p_t = softmax((teacher_t - center) / T_t),  q_s = softmax(student_s / T_s)
        loss = mean over pairs (s, t), s != t, and over rows of -sum_k p_tk log q_sk

    The teacher gets no gradient. DINOv2's released function returns the sum over all pairs: `pairs="all"`, times S V.
    With codes of `sinkhorn` as given probabilities this is SwAV's swapped prediction (arXiv:2006.09882, equation 2).

    Args:
      student: float[S, b, K], logits of this shard's rows in S views. Computed in f32 (f64 for f64), as all of this.
      teacher: float[V, b, K], logits of V views, which are the first V of the student's.
      student_temperature, teacher_temperature: T_s and T_t, numbers or scalar arrays; T_s gets a gradient.
        teacher_temperature=None: `teacher` holds probabilities.
      center: float[K], or None for 0. The paper's is a moving average of the teacher's mean over the global batch.
      pairs: "other" (every student's view with the teacher's other views) or "all" (with its own too).
      metrics: also return {"entropy", "kl", "accuracy"} under `stop_gradient`: the teacher's entropy (nats), the
        divergence KL(p_t | q_s), and how often both have their largest logit in one place; means over pairs and rows.

    The teacher's probabilities are held, V b K in f32. The student's views come one after another, each against the sum
    of its teachers, and their softmax is made again in the backward pass: O(b K) in f32 for all of them. Arithmetic:
    S + V softmaxes of b K and S V sums.

    Returns:
      f32[]: the mean over this shard's rows; its `pmean` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes other than these, unknown or no pairs, a centre for given probabilities.

    >>> student, teacher = jnp.array([[[0., 0.]], [[0., 0.1]]]), jnp.array([[[1., 0.]]])
    >>> round(float(dino(student, teacher, teacher_temperature=None)), 4)  # view 2 with view 1: log(1 + e)
    1.3133
    """
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ValueError(f"dino wants student [S, b, K] and teacher [V, b, K], got {student.shape} and {teacher.shape}")
    if pairs not in ("other", "all"):
        raise ValueError(f"dino: pairs={pairs!r}, wanted 'other' or 'all'")
    views, of_teacher = student.shape[0], teacher.shape[0]
    if pairs == "other" and not max(2, of_teacher) <= views:
        raise ValueError("dino wants the teacher's views among 2 or more of the student's, got "
                         f"{of_teacher} and {views}")
    met = np.array([[pairs == "all" or s != t for t in range(of_teacher)] for s in range(views)])
    target = _target("dino", teacher, teacher_temperature, center)  # [V, b, K]
    best = target.argmax(axis=2) if metrics else None

    @jax.checkpoint
    def view(x):
        logits, met = x  # [b, K], [V]
        together = jnp.sum(jnp.where(met[:, None, None], target, 0), axis=0)
        entropy = _cross_entropy(logits, together, student_temperature)
        return entropy, jnp.sum((logits.argmax(axis=1) == best) & met[:, None], axis=0) if metrics else None
    rows, hits = lax.map(view, (student, met))  # [S, b], a sum over the view's pairs
    mean = lambda x: jnp.sum(x, dtype=rows.dtype) / (met.sum() * student.shape[1])
    loss = mean(rows)
    if not metrics:
        return loss
    entropy = jnp.mean(_entropy(target))
    return loss, lax.stop_gradient({"entropy": entropy, "kl": loss - entropy, "accuracy": mean(hits)})


def ibot(student, teacher, mask, *, student_temperature=0.1, teacher_temperature, center=None, axis=None,
         metrics=False):
    """Cross entropy of masked patches with what the teacher sees there (iBOT, Zhou et al. 2022, arXiv:2111.07832).

        loss = 1/n sum over images of the mean over masked patches of -sum_k p_k log q_k

    with p = softmax((teacher - center) / T_t) and q = softmax(student / T_s). Every masked patch so weighs 1 / (masked
    patches of its image), and an image without any counts in n, as in DINOv2. The teacher gets no gradient.

    Args:
      student, teacher: float[n, N, K], logits of this shard's images, patch by patch; row i of both from one view. As
        only masked patches count, N may be slots for those alone: as many as an image has at most. What the others
        hold is of no consequence, even if not finite. Computed in f32 (f64 for f64).
      mask: bool[n, N], which patches were masked (which slots are in use).
      student_temperature, teacher_temperature, center: as in `dino`; teacher_temperature=None: `teacher` holds
        probabilities, such as those of `sinkhorn` with `weights=mask`.
      axis: mesh axis whose shards hold the other images; the metrics alone need it.
      metrics: also return {"entropy", "kl", "accuracy"} as of `dino` under `stop_gradient`: means over the images with
        masked patches of the mean over these.

    Softmaxes are made again in the backward pass, so nothing of n N K in f32 is kept for it.

    Returns:
      f32[]: the mean over this shard's images; its `pmean` is the loss of the global batch. With `metrics`,
      (f32[], {name: f32[]}).

    Raises:
      ValueError: shapes other than these, a centre for given probabilities.

    >>> student, teacher = jnp.array([[[0., 0.1], [7., 8.]]]), jnp.array([[[1., 0.], [0., 1.]]])
    >>> mask = jnp.array([[True, False]])
    >>> round(float(ibot(student, teacher, mask, teacher_temperature=None)), 4)  # the first patch alone: log(1 + e)
    1.3133
    """
    if student.ndim != 3 or student.shape != teacher.shape or mask.shape != student.shape[:2]:
        raise ValueError("ibot wants student and teacher [n, N, K] and mask [n, N], got "
                         f"{student.shape}, {teacher.shape} and {mask.shape}")

    @jax.checkpoint
    def patches(student, teacher):
        student, teacher = (jnp.where(mask[:, :, None], x, 0) for x in (student, teacher))
        target = _target("ibot", teacher, teacher_temperature, center)
        hit = student.argmax(axis=2) == target.argmax(axis=2)
        return _cross_entropy(student, target, student_temperature), (_entropy(target), hit) if metrics else None
    patch, of_patch = patches(student, teacher)  # [n, N]
    weight = (mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)).astype(patch.dtype)
    total = lambda x: jnp.sum(weight * x)
    loss = total(patch) / len(mask)
    if not metrics:
        return loss
    images = dist.pmean(mask.any(axis=1).sum(dtype=patch.dtype), axis)
    images = jnp.where(images > 0, images, 1)
    loss_there, entropy, accuracy = (lax.stop_gradient(total(x) / images) for x in (patch, *of_patch))
    return loss, {"entropy": entropy, "kl": loss_there - entropy, "accuracy": accuracy}


def sinkhorn(scores, *, temperature, iterations=3, weights=None, axis=None):
    """Spreads the global batch's rows evenly over K prototypes (SwAV, Caron et al. 2020, arXiv:2006.09882, eq. 3 to 5).

    From Q = exp(scores / T), `iterations` times: every prototype's column is divided by its sum over the rows of the
    global batch, then every row by its sum over prototypes. This is the Sinkhorn-Knopp algorithm of the paper's
    appendix; its marginals 1/K and 1/B are common factors, which the next division takes out. DINOv2 makes its
    teacher's probabilities so, from logits.

    Args:
      scores: float[..., K], this shard's rows.
      temperature: T, the paper's epsilon (0.05 there), a number or scalar array.
      iterations: how often, at least once.
      weights: float or bool[...], how often each row counts in the sums of columns; None: once. A row of weight 0 has
        no part and is not assigned: it is 0 in the result. So patches that were not masked are left out.
      axis: mesh axis whose shards hold the other rows; None if these are all. Two reductions of f32[K] an iteration.

    Works in logarithms, each column under its largest entry, so that no temperature overflows or leaves a row empty.

    Returns:
      f32[..., K] (f64 for f64), rows that sum to 1, without gradient.

    Raises:
      ValueError: weights not of the rows' shape, or no iteration.

    >>> scores = jnp.log(jnp.array([[3., 1.], [1., 1.]]))
    >>> q = sinkhorn(scores, temperature=1.0, iterations=1)  # columns sum to 4 and 2: rows 3/4, 1/2 and 1/4, 1/2
    >>> np.round(np.asarray(q), 2).tolist() == np.float32([[.6, .4], [.33, .67]]).tolist()
    True
    """
    weights = jnp.ones(scores.shape[:-1]) if weights is None else weights
    if scores.ndim < 2 or weights.shape != scores.shape[:-1]:
        raise ValueError(f"sinkhorn wants scores [..., K] and weights [...], got {scores.shape} and {weights.shape}")
    if iterations < 1:
        raise ValueError(f"sinkhorn: iterations={iterations}, wanted 1 or more")
    scores, weights, temperature = lax.stop_gradient((wide(scores), weights, temperature))
    weights = weights[..., None].astype(scores.dtype)
    part = weights > 0
    log_q = jnp.where(part, scores, 0) / jnp.asarray(temperature, scores.dtype)
    rows = tuple(range(scores.ndim - 1))

    def even(log_q):
        top = jnp.max(jnp.where(part, log_q, OUT), axis=rows)  # [K]
        top = top if axis is None else lax.pmax(top, axis)
        top = jnp.where(top == OUT, 0, top)
        column = dist.psum(jnp.sum(weights * jnp.exp(jnp.where(part, log_q - top, OUT)), axis=rows), axis)
        return jax.nn.log_softmax(log_q - top - jnp.log(jnp.where(column > 0, column, 1)))
    if iterations > UNROLLED:
        log_q = lax.fori_loop(0, iterations, lambda _, x: even(x), log_q)
    else:  # a step's collectives stand outside of loops
        for _ in range(iterations):
            log_q = even(log_q)
    return jnp.where(part, jnp.exp(log_q), 0)


def _target(name, teacher, temperature, center):
    """The teacher's probabilities, without gradient."""
    teacher, temperature, center = lax.stop_gradient((wide(teacher), temperature, center))
    if temperature is not None:
        centred = teacher if center is None else teacher - center
        return jax.nn.softmax(centred / jnp.asarray(temperature, teacher.dtype))
    if center is not None:
        raise ValueError(f"{name}: a teacher of probabilities (teacher_temperature=None) takes no center")
    return teacher


def _cross_entropy(logits, target, temperature):
    """-sum_k target_k log softmax(logits / T)_k over the last axis; targets of any sum."""
    x = wide(logits)
    x = x / jnp.asarray(temperature, x.dtype)
    return jnp.sum(target * (jax.nn.logsumexp(x, axis=-1, keepdims=True) - x), axis=-1)


def _entropy(p):
    return lax.stop_gradient(jnp.sum(jax.scipy.special.entr(p), axis=-1))
