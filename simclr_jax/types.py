"""The protocol: what a method is, what it may know, and what a training state holds."""
from typing import Any, Callable, NamedTuple

import flax.struct
import jax

Array = jax.Array

# What a batch may hold, by key. Leading axis b: the rows of this shard.
#   image      u8/f32[b,H,W,3]   in [0,255] or [0,1]
#   views      f32[b,V,H,W,3]    augmented views, all of one size
#   crops      f32[b,K,h,w,3]    further views of a smaller size
#   mask       bool[b,V,N]       patches hidden from the student
#   text       i32[b,L]          token ids;  text_mask bool[b,L]: True at real tokens
#   audio      f32[b,T]
#   label      i32[b]            -1 where there is none
#   id         u32[b,2]          the example's index in its source, and its epoch
Batch = dict[str, Array]


class Ctx(NamedTuple):
    """What a method may know about where and when it runs."""

    step: Array  # i32[]: every schedule is a function of it
    key: Array  # PRNG key folded with the step, and with nothing else
    axis: str | None  # the mesh axis of the data, or None on one device


def row_keys(key: Array, batch: Batch) -> Array:
    """key[b]: one key a row, from its id alone, so that a row draws the same wherever and with whomever it is computed.

    `key` is of the step, as in `Ctx`.
    """
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i[0]), i[1]))(batch["id"])


def keep(params, extra, ctx):
    """The default `finish`: nothing in `extra` follows the parameters."""
    del params, ctx
    return extra


def trained(params, extra):
    """The default `weights`: those that the optimiser owns."""
    return params, extra["stats"]


class Method(NamedTuple):
    """A pretraining method; to self-supervision what `optax.GradientTransformation` is to optimisation.

    `forward` works row by row: the leading axis of every leaf of its outputs is that of the batch. `criterion` holds
    everything that crosses rows. That cut is what lets `train/step.py` split a batch exactly.
    """

    init: Callable  # (key, batch) -> (params, extra)
    forward: Callable  # (params, extra, batch, ctx) -> (outputs, extra)
    criterion: Callable  # (params, extra, outputs, ctx) -> (f32[], (extra, metrics)); `pmean` of the first is the loss
    embed: Callable  # (params, extra, inputs) -> {modality: f32[b,D]}; evaluation mode, no collectives
    finish: Callable = keep  # (params, extra, ctx) -> extra, after the optimiser: teachers
    weights: Callable = trained  # (params, extra) -> ({role: params}, {role: stats}) of the nets that `embed` runs


class Net(NamedTuple):
    """The only face of Flax that a method sees."""

    init: Callable  # (key, x) -> (params, stats)
    apply: Callable  # (params, stats, x, *, train, key=None, mask=None) -> ({"pooled", "tokens"}, stats)
    layers: Callable | None = None  # (params, stats, x, names, *, mask=None) -> {name: output}; see `nets.linen.net`


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint keeps. The random key is `fold_in(key(seed), step)`, so none is stored."""

    step: Array  # i32[]: optimiser steps done
    params: Any  # what the optimiser owns: encoders, heads, prototypes, temperature
    opt_state: Any
    extra: Any  # what it does not own: batch statistics, teachers, queues, centres
    guard: Any  # what it takes to tell a bad step, and how many were skipped: `train.guard.Guard`
