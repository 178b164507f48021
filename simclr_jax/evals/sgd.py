"""SimCLR's linear evaluation on ImageNet: one linear layer trained with SGD on frozen features."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.evals.linear import Classifier


def fit(x: np.ndarray, y: np.ndarray, *, classes: int, batch: int = 4096, epochs: int = 90, base_rate: float = 0.1,
        momentum: float = 0.9, seed: int = 0) -> Classifier:
    """Nesterov SGD at rate base_rate * batch / 256 with a cosine to 0, no warm-up, no weight decay.

    Chen et al. (2020), appendix B.6. There the features are those of random crops, drawn anew each epoch; frozen
    features have seen one crop, which costs some accuracy on ImageNet. Starts from zeros (the problem is convex).

    Args:
      x: f32[n,D] features, used as they come; held on the device.
      y: i[n] classes in [0, classes).
      batch: cut to n; each epoch is a new order of which the last n % batch examples are left out.
      seed: of the order.
    """
    batch = min(batch, len(x))
    weight, bias = _train(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32), jax.random.key(seed), classes, batch,
                          epochs, base_rate, momentum)
    return Classifier(np.asarray(weight), np.asarray(bias))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _train(x, y, key, classes, batch, epochs, base_rate, momentum):
    rate = optax.cosine_decay_schedule(base_rate * batch / 256, epochs * (len(x) // batch))
    tx = optax.sgd(rate, momentum=momentum, nesterov=True)

    def loss(params, rows):
        scores = jnp.matmul(x[rows], params[0], precision="highest") + params[1]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y[rows]).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))
        return jax.lax.scan(step, carry, order[:len(x) // batch * batch].reshape(-1, batch))

    params = (jnp.zeros((x.shape[1], classes)), jnp.zeros(classes))
    (params, _), _ = jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))
    return params
