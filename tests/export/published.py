"""Nets with the names and shapes of the published code, random numbers in them, and what they compute, in plain NumPy.

Names as in torchvision's resnet.py, google-research/simclr (resnet.py, tf2/resnet.py), dm-haiku's nets/resnet.py with
deepmind-research byol/utils/networks.py, and facebookresearch/dino's vision_transformer.py; nothing of the project's.
"""
import numpy as np
from scipy.special import erf

DEPTHS = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}  # blocks of the stages, whether they are bottlenecks


class Weights(dict):
    """{name: array}, filled at random."""

    def __init__(self, seed=0):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def put(self, name, *shape, fan_in=0):
        """Numbers of variance 1 / fan_in, or from 0.5 to 1.5, as scales and variances are."""
        self[name] = (self.random.normal(size=shape) / fan_in ** 0.5 if fan_in else self.random.uniform(0.5, 1.5, shape)
                      ).astype(np.float32)

    def linear(self, name, n, out, bias=True):
        self.put(f"{name}.weight", out, n, fan_in=n)
        if bias:
            self.put(f"{name}.bias", out, fan_in=4)

    def norm(self, name, n):
        self.put(f"{name}.weight", n)
        self.put(f"{name}.bias", n, fan_in=4)

    def batch_norm(self, name, n, affine=True):
        if affine:
            self.norm(name, n)
        self.put(f"{name}.running_mean", n, fan_in=4)
        self.put(f"{name}.running_var", n)
        self[f"{name}.num_batches_tracked"] = np.int64(7)


def units(depth, c, stem=7, project=True):
    """(place, window, stride, channels in, out) of the convolutions in the order TensorFlow 1 makes them.

    place: () of the stem, or (stage, block, i), i 0 for the shortcut. project: in every stage, or only where
    torchvision has to.
    """
    blocks, deep = DEPTHS[depth]
    yield (), stem, 2 if stem == 7 else 1, 3, c
    n = c
    for s, count in enumerate(blocks):
        width, out = c * 2 ** s, c * 2 ** s * (4 if deep else 1)
        for j in range(count):
            stride = 2 if s and not j else 1
            if not j and (project or n != out):
                yield (s, j, 0), 1, stride, n, out
            shapes = ((1, 1, n, width), (3, stride, width, width), (1, 1, width, out)) if deep else (
                (3, stride, n, width), (3, 1, width, width))
            for i, shape in enumerate(shapes, 1):
                yield (s, j, i), *shape
            n = out


def torch_resnet(w, at, depth, c):
    """Fills w with torchvision's names; returns place -> (kernel HWIO, scale, bias, mean, variance)."""
    names = {}
    for place, k, _, n, out in units(depth, c, project=False):
        if not place:
            conv, norm = "conv1", "bn1"
        else:
            s, j, i = place
            names_there = (f"conv{i}", f"bn{i}") if i else ("downsample.0", "downsample.1")
            conv, norm = (f"layer{s + 1}.{j}.{x}" for x in names_there)
        w.put(f"{at}{conv}.weight", out, n, k, k, fan_in=k * k * n)
        w.batch_norm(f"{at}{norm}", out)
        names[place] = at + conv, at + norm
    return lambda place: (w[names[place][0] + ".weight"].transpose(2, 3, 1, 0), *(
        w[f"{names[place][1]}.{x}"] for x in ("weight", "bias", "running_mean", "running_var")))


def keras_resnet(w, depth, c, stem, tf2=False):
    """The same with the names of google-research/simclr: resnet.py, or tf2/resnet.py as tf2/run.py saves it."""
    names, deep, end = {}, depth >= 50, "/.ATTRIBUTES/VARIABLE_VALUE" if tf2 else ""
    for k, (place, window, _, n, out) in enumerate(units(depth, c, stem)):
        if not tf2:
            conv, norm = (f"base_model/{x}" + (f"_{k}" if k else "") for x in ("conv2d", "batch_normalization"))
        elif not place:
            conv, norm = (f"model/resnet_model/initial_conv_relu_max_pool/{x}" for x in ("0/conv2d", "2/bn"))
        else:
            s, j, i = place
            at = f"model/resnet_model/block_groups/{s}/layers/{j}/"
            if not i:
                at, first = at + ("projection_layers" if deep else "shortcut_layers"), 0
            else:
                at, first = (at + "conv_relu_dropblock_layers", 3 * i - 3) if deep else (
                    at + "conv2d_bn_layers", 2 * i - 2)
            conv, norm = f"{at}/{first}/conv2d", f"{at}/{first + 1}/bn"
        w.put(f"{conv}/kernel{end}", window, window, n, out, fan_in=window ** 2 * n)
        keras_norm(w, norm, out, end)
        names[place] = conv, norm
    return lambda place: (w[names[place][0] + "/kernel" + end], *(
        w[f"{names[place][1]}/{x}{end}"] for x in ("gamma", "beta", "moving_mean", "moving_variance")))


def keras_norm(w, name, n, end="", center=True):
    for x, fan_in in (("gamma", 0), ("beta", 4), ("moving_mean", 4), ("moving_variance", 0)):
        if center or x != "beta":
            w.put(f"{name}/{x}{end}", n, fan_in=fan_in)


def haiku_resnet(params, state, depth, c):
    """The same with the names of BYOL's encoder, in two dicts {module: {leaf: array}}."""
    names, w = {}, Weights(3)
    for place, k, _, n, out in units(depth, c):
        at = f"res_net{depth}/~/"
        if not place:
            conv, norm = at + "initial_conv", at + "initial_batchnorm"
        else:
            s, j, i = place
            at += f"block_group_{s}/~/block_{j}/~/"
            conv, norm = (at + "shortcut_conv", at + "shortcut_batchnorm") if not i else (
                f"{at}conv_{i - 1}", f"{at}batchnorm_{i - 1}")
        w.put("w", k, k, n, out, fan_in=k * k * n)
        params[conv] = {"w": w["w"]}
        haiku_norm(w, params, state, norm, (1, 1, 1, out))
        names[place] = conv, norm

    def get(place):
        conv, norm = names[place]
        affine = [params[norm][x].reshape(-1) for x in ("scale", "offset")]
        return params[conv]["w"], *affine, *(state[f"{norm}/~/{x}_ema"]["average"].reshape(-1) for x in ("mean", "var"))
    return get


def haiku_norm(w, params, state, name, shape):
    w.put("scale", *shape)
    w.put("offset", *shape, fan_in=4)
    params[name] = {"scale": w["scale"], "offset": w["offset"]}
    for x, fan_in in (("mean", 4), ("var", 0)):
        w.put("average", *shape, fan_in=fan_in)
        state[f"{name}/~/{x}_ema"] = {"hidden": w["average"] / 3, "average": w["average"], "counter": np.int32(9)}


def symmetric(size, window, stride):
    return (window - 1) // 2, (window - 1) // 2


def same(size, window, stride):
    """TensorFlow's SAME."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def resnet(x, depth, c, get, conv_pad, pool_pad, stem=7, project=True):
    """Pooled features f64[b,D] of f64[b,H,W,3]. conv_pad, pool_pad: (size, window, stride) -> before, behind."""
    y, strides = x, {}
    for place, _, stride, _, _ in units(depth, c, stem, project):
        strides[place] = stride
    unit = lambda y, place: batch_norm(convolved(y, get(place)[0], strides[place], conv_pad), *get(place)[1:])
    y = np.maximum(unit(y, ()), 0)
    if stem == 7:
        y = pooled(y, pool_pad)
    blocks, deep = DEPTHS[depth]
    for s, count in enumerate(blocks):
        for j in range(count):
            z, last = y, 3 if deep else 2
            for i in range(1, last + 1):
                z = unit(z, (s, j, i))
                z = z if i == last else np.maximum(z, 0)
            y = np.maximum(z + (unit(y, (s, j, 0)) if (s, j, 0) in strides else y), 0)
    return y.mean(axis=(1, 2))


def taps(x, window, stride, pad, fill):
    """float[window,window,b,h,w,C]: what each tap of a window sees."""
    pads = [pad(n, window, stride) for n in x.shape[1:3]]
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    h, w = ((n - window) // stride + 1 for n in x.shape[1:3])
    return [[x[:, i:i + stride * (h - 1) + 1:stride, j:j + stride * (w - 1) + 1:stride] for j in range(window)]
            for i in range(window)]


def convolved(x, kernel, stride, pad):
    seen = taps(x, len(kernel), stride, pad if stride > 1 else symmetric, 0.0)
    return sum(seen[i][j] @ kernel[i, j].astype(np.float64) for i in range(len(kernel)) for j in range(len(kernel)))


def pooled(x, pad):
    return np.max(taps(x, 3, 2, pad, -np.inf), axis=(0, 1))


def batch_norm(x, scale, bias, mean, var, eps=1e-5):
    return (x - mean) / np.sqrt(var.astype(np.float64) + eps) * scale + bias


def vit_block(w, at, width, mlp, scaled=False, gated=False):
    """Fills w with the names of a block of DINO's, or DINOv2's with `scaled`, and of its g with `gated`."""
    w.norm(f"{at}norm1", width)
    w.norm(f"{at}norm2", width)
    w.linear(f"{at}attn.qkv", width, 3 * width)
    w.linear(f"{at}attn.proj", width, width)
    first, second = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
    w.linear(at + first, width, mlp * (1 + gated))
    w.linear(at + second, mlp, width)
    if scaled:
        w.put(f"{at}ls1.gamma", width)
        w.put(f"{at}ls2.gamma", width)


def vit(w, x, at, blocks, heads, patch, positions=None):
    """Class tokens f64[b,D] behind the last norm. blocks: what stands before the names of each."""
    get = lambda name: w[name].astype(np.float64)
    linear = lambda y, name: y @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(y, name):
        y = y - y.mean(-1, keepdims=True)
        return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * get(f"{name}.weight") + get(f"{name}.bias")

    b, side = len(x), x.shape[1] // patch
    seen = x.reshape(b, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4).reshape(b, side ** 2, -1)
    kernel = get(f"{at}patch_embed.proj.weight")
    y = seen @ kernel.reshape(len(kernel), -1).T + get(f"{at}patch_embed.proj.bias")
    y = np.concatenate([np.broadcast_to(get(f"{at}cls_token"), (b, 1, y.shape[-1])), y], 1)
    y = y + (get(f"{at}pos_embed") if positions is None else positions)
    if f"{at}register_tokens" in w:
        registers = get(f"{at}register_tokens")
        y = np.concatenate([y[:, :1], np.broadcast_to(registers, (b, *registers.shape[1:])), y[:, 1:]], 1)
    for block in blocks:
        z = linear(norm(y, f"{block}norm1"), f"{block}attn.qkv")
        q, k, v = np.moveaxis(z.reshape(b, y.shape[1], 3, heads, -1), 2, 0)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        z = np.einsum("bhqk,bkhd->bqhd", shares / shares.sum(-1, keepdims=True), v).reshape(y.shape)
        z = linear(z, f"{block}attn.proj")
        y = y + z * (get(f"{block}ls1.gamma") if f"{block}ls1.gamma" in w else 1.0)
        z = norm(y, f"{block}norm2")
        if f"{block}mlp.w12.weight" in w:
            gate, up = np.split(linear(z, f"{block}mlp.w12"), 2, -1)
            z = linear(gate / (1 + np.exp(-gate)) * up, f"{block}mlp.w3")
        else:
            z = linear(gelu(linear(z, f"{block}mlp.fc1")), f"{block}mlp.fc2")
        y = y + z * (get(f"{block}ls2.gamma") if f"{block}ls2.gamma" in w else 1.0)
    return norm(y, f"{at}norm")[:, 0]


def gelu(x):
    return x * (1 + erf(x / 2 ** 0.5)) / 2
