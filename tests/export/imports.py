"""Published files through the command, and what comes of them."""
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from export import published as p
from nets import weights as tables
from simclr_jax.export import model as models
from simclr_jax.export.__main__ import main

C, B = 4, 2  # channels of the stems, rows
F32 = 2e-6  # nets/mlp computes in f32 whatever it is given


def imported(tmp_path, source, arrays, *flags):
    """The model that `--from` makes of a file of arrays; a nested dict becomes a pickle."""
    nested = any(isinstance(a, dict) for a in arrays.values())
    file = tmp_path / ("w.pkl" if nested else "w.npz" if "state_dict" in next(iter(arrays)) else "w.safetensors")
    if nested:
        file.write_bytes(pickle.dumps(arrays, protocol=2))
    elif file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, file)
    main(["export", f"--from={source}", f"--weights={file}", f"--out={tmp_path / 'ours'}", *flags])
    return models.read(tmp_path / "ours")


def outputs(model, role, x):
    """What an imported net computes, in f64."""
    with jax.enable_x64(True):
        net = models.build(model.nets[role])
        params, stats = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), models.tree(model, role))
        run = jax.jit(lambda p, s, x: net.apply(p, s, x, train=False)[0]["pooled"])
        return np.asarray(run(params, stats, jnp.asarray(x, jnp.float64)))


def pictures(side):
    return np.random.default_rng(7).normal(size=(B, side, side, 3))


def same(ours, theirs, tolerance=1e-9):
    """tolerance: of the largest value."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def sequential(w, x, at, layers, act=lambda x: np.maximum(x, 0)):
    """What an nn.Sequential of linears, norms and activations makes of x; layers: "l", "n" and "a", one a module."""
    for i, kind in enumerate(layers):
        name = f"{at}.{i}"
        if kind == "l":
            x = x @ w[f"{name}.weight"].astype(np.float64).T + w.get(f"{name}.bias", 0.0)
        elif kind == "n":
            n = x.shape[1]
            x = p.batch_norm(x, w.get(f"{name}.weight", np.ones(n)), w.get(f"{name}.bias", np.zeros(n)),
                             w[f"{name}.running_mean"], w[f"{name}.running_var"])
        else:
            x = act(x)
    return x


def torch_features(get, depth, side):
    x = pictures(side)
    return x, p.resnet(x, depth, C, get, p.symmetric, p.symmetric, project=False)
