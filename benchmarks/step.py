"""One SimCLR training step on a CPU beside plain flax and PyTorch: views a second, and where ours goes.

    python benchmarks/step.py --torch-python ~/torch/bin/python
    python benchmarks/step.py --net r50 --rounds 5

r18: ResNet-18 with the stem for small images, 32 px, batch 64. r50: ResNet-50, 224 px, batch 16. Two views of every
example, a head of two layers, NT-Xent at 0.1, SGD with momentum; forward, backward and optimiser. Every measurement is
a fresh process; contestants take turns, so that a machine which slows down slows all of them. A contestant's devices
are simulated ones of XLA, over which the batch is split. The share of loss and optimiser is that of each compiled by
itself: the loss with its gradient; the update with the norms that the log shows.
"""
import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]


class Task(NamedTuple):
    depth: int
    blocks: tuple
    small: bool  # the stem
    size: int
    batch: int


TASKS = {"r18": Task(18, (2, 2, 2, 2), True, 32, 64), "r50": Task(50, (3, 4, 6, 3), False, 224, 16)}
RATE, MOMENTUM, TEMPERATURE = 0.01, 0.9, 0.1


def main():
    flags = _flags()
    print("| net | contestant | views/s | / flax, 1 device | / torch | seconds a step | to the first step's end, s | "
          "loss, % of the step | optimiser, % |\n|" + "---|" * 9)
    versions = set()
    for net in flags.net:
        names = ["ours", "flax"] + ["torch"] * _imports(flags.torch_python)
        turns = [(name, d) for name in names for d in ([1] if name == "torch" else flags.devices)]
        results = {turn: [] for turn in turns}
        for _ in range(flags.rounds):
            for turn in turns:
                results[turn].append(_measure(net, *turn, flags.seconds, flags.torch_python))
        if len(counts := {r["parameters"] for runs in results.values() for r in runs}) > 1:
            sys.exit(f"error: the nets of {net} differ, by their numbers of parameters {sorted(counts)}")
        middle = {turn: {k: statistics.median(r[k] for r in runs) for k in set(runs[0]) - {"versions"}}
                  for turn, runs in results.items()}
        for (name, d), m in middle.items():
            ratios = [f"{m['views'] / middle[turn]['views']:.2f}" if turn in middle else ""
                      for turn in (("flax", 1), ("torch", 1))]
            shares = [f"{100 * m[k] / m['s']:.1f}" if k in m else "" for k in ("loss", "optimiser")]
            on = f"{d} device" + "s" * (d > 1)
            what = {"ours": f"ours, {on}", "flax": f"plain flax, {on}", "torch": "torch channels_last"}[name]
            print("|", " | ".join([net, what, f"{m['views']:.1f}", *ratios,
                                   f"{m['s']:.2f}", f"{m['first']:.1f}", *shares]), "|", flush=True)
            versions |= set(results[name, d][0]["versions"])
    print(f"\n{', '.join(sorted(versions))}; {os.cpu_count()} cores; medians of {flags.rounds} processes each.")


def _flags():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--net", nargs="+", choices=TASKS, default=list(TASKS))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=8, help="of repeated steps in a process")
    p.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="simulated, of ours and of flax")
    p.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch and torchvision")
    return p.parse_args()


@functools.cache
def _imports(python):
    done = subprocess.run([python, "-c", "import torchvision"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        print(f"torch left out (see --torch-python): {python} says {reason}", file=sys.stderr)
    return done.returncode == 0


def _measure(net, name, devices, seconds, torch_python):
    python = torch_python if name == "torch" else sys.executable
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run([python, __file__, "--worker", net, name, str(seconds)], stdout=subprocess.PIPE, text=True,
                          env=env)
    if done.returncode:  # such as -9, for want of memory
        sys.exit(f"error: {net} by {name} on {devices} devices ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# The process that measures one contestant.


def _work(net, name, seconds):
    task = TASKS[net]
    views = np.random.default_rng(0).random((task.batch, 2, task.size, task.size, 3), dtype=np.float32)
    start = time.perf_counter()
    made = CONTESTANTS[name](task, views)
    loss = made["step"]()
    assert math.isfinite(loss)
    out = {"first": time.perf_counter() - start, "s": _timed(made["step"], seconds)}
    for piece in {"loss", "optimiser"} & set(made):
        made[piece]()
        out[piece] = _timed(made[piece], seconds / 8)
    print(json.dumps(out | {"views": 2 * task.batch / out["s"], "parameters": made["parameters"],
                            "versions": made["versions"]}))


def _timed(step, seconds):
    times, stop = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < stop:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# Contestants: (task, views) -> {"step": () -> loss, which waits; "parameters": of the net, no head; "versions"}.


def _ours(task, views):
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import PartitionSpec as P

    from simclr_jax import dist
    from simclr_jax.methods import simclr
    from simclr_jax.nets import mlp, resnet
    from simclr_jax.train import optim
    from simclr_jax.train.state import init_state
    from simclr_jax.train.step import make_step
    from simclr_jax.types import Ctx
    axis, mesh = dist.DATA, dist.make_mesh({dist.DATA: -1})
    nets = {"backbone": resnet.make(axis=axis, depth=task.depth, stem="cifar" if task.small else "imagenet",
                                    layout="torch"),
            "projector": mlp.make(axis=axis, layers=2, last_bn=False)}
    method = simclr.make(nets, temperature=TEMPERATURE)
    tx = optim.make(name="sgd", lr=RATE, scaling="none", schedule="constant", momentum=MOMENTUM, weight_decay=0.0,
                    warmup_epochs=0, batch=task.batch, steps=1000, examples=task.batch).tx
    batch = dist.place_batch({"views": views}, mesh)
    state = init_state(method, tx, mesh, batch, seed=0)
    parameters = sum(p.size for p in jax.tree.leaves(state.params["backbone"]))
    opt = (*jax.tree.map(jnp.copy, (state.params, state.opt_state)), jax.tree.map(jnp.ones_like, state.params))
    step = make_step(method, tx, mesh, seed=0)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    def loss(z):
        ctx = Ctx(jnp.int32(0), jax.random.key(0), axis)
        return jax.value_and_grad(lambda z: dist.pmean(method.criterion({}, {}, {"z": z}, ctx)[0], axis))(z)
    loss = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=P(axis), out_specs=(P(), P(axis))))
    z = dist.place_batch({"z": np.random.default_rng(1).standard_normal((task.batch, 2, 128), np.float32)}, mesh)["z"]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, optax.tree.norm(grads), optax.tree.norm(updates)

    def optimiser():
        nonlocal opt
        *moved, _, _ = jax.block_until_ready(update(*opt))
        opt = (*moved, opt[2])
    return {"step": run, "loss": lambda: jax.block_until_ready(loss(z)), "optimiser": optimiser,
            "parameters": parameters, "versions": [f"jax {jax.__version__}"]}


def _flax(task, views):
    """As one writes it at first: linen's layers, one program over the whole batch, its rows split by the compiler."""
    import flax
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from jax.sharding import NamedSharding, PartitionSpec as P

    def unit(x, width, kernel, stride=1):
        x = nn.Conv(width, (kernel, kernel), stride, [((kernel - 1) // 2,) * 2] * 2, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9)(x)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(unit(x, 64, 3) if task.small else unit(x, 64, 7, 2))
            if not task.small:
                x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            for i, blocks in enumerate(task.blocks):
                for j in range(blocks):
                    c, stride = 64 * 2 ** i, 2 if i and not j else 1
                    if task.depth < 50:
                        y = unit(nn.relu(unit(x, c, 3, stride)), c, 3)
                    else:
                        y = unit(nn.relu(unit(nn.relu(unit(x, c, 1)), c, 3, stride)), 4 * c, 1)
                    x = nn.relu(y + (x if x.shape == y.shape else unit(x, y.shape[-1], 1, stride)))
            return jnp.mean(x, axis=(1, 2))

    class Head(nn.Module):
        @nn.compact
        def __call__(self, h):
            return nn.Dense(128)(nn.relu(nn.Dense(h.shape[-1])(h)))

    net, head, tx = Net(), Head(), optax.sgd(RATE, MOMENTUM)
    x = np.concatenate([views[:, 0], views[:, 1]])
    start = jax.jit(net.init)(jax.random.key(0), x[:2])
    width = 512 if task.depth < 50 else 2048
    params = {"net": start["params"], "head": head.init(jax.random.key(1), jnp.zeros((1, width)))}
    parameters = sum(p.size for p in jax.tree.leaves(params["net"]))
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(x, NamedSharding(mesh, P("rows")))
    state = jax.device_put((params, tx.init(params), start["batch_stats"]), NamedSharding(mesh, P()))

    def loss(params, stats, x):
        h, changed = net.apply({"params": params["net"], "batch_stats": stats}, x, mutable=["batch_stats"])
        z = head.apply(params["head"], h)
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        logits = z @ z.T / TEMPERATURE - 1e9 * jnp.eye(len(z))
        other = jnp.roll(jnp.arange(len(z)), len(z) // 2)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(z)), other]), changed["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, x):
        params, opt_state, stats = state
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, stats), value

    def run():
        nonlocal state
        state, value = step(state, x)
        return float(value)
    return {"step": run, "parameters": parameters, "versions": [f"jax {jax.__version__}", f"flax {flax.__version__}"]}


def _torch(task, views):
    import torch
    import torchvision
    from torch import nn
    from torch.nn import functional as F
    net = getattr(torchvision.models, f"resnet{task.depth}")(weights=None)
    width, net.fc = net.fc.in_features, nn.Identity()
    if task.small:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    parameters = sum(p.numel() for p in net.parameters())
    model = nn.Sequential(net, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)).train()
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.concatenate([views[:, 0], views[:, 1]])).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    tx = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    own, other = torch.eye(len(x), dtype=torch.bool), torch.arange(len(x)).roll(len(x) // 2)

    def run():
        tx.zero_grad(set_to_none=True)
        z = F.normalize(model(x), dim=1)
        loss = F.cross_entropy((z @ z.T / TEMPERATURE).masked_fill(own, -1e9), other)
        loss.backward()
        tx.step()
        return loss.item()
    return {"step": run, "parameters": parameters, "versions": [f"torch {torch.__version__}"]}


CONTESTANTS = {"ours": _ours, "flax": _flax, "torch": _torch}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
