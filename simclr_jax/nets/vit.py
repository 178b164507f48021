"""Vision transformers: ViT and DeiT, the image towers of CLIP and SigLIP, DINOv2's nets with registers.

Dosovitskiy et al. 2021, arXiv:2010.11929; Touvron et al. 2021, arXiv:2012.12877 (Ti, S); Zhai et al. 2022,
arXiv:2106.04560, table 2 (g); Alabdulmohsin et al. 2023, arXiv:2305.13035 (So400m); Darcet et al. 2024,
arXiv:2309.16588 (registers). Sizes as in decode_variant of google-research/big_vision models/vit.py; g2 is DINOv2's
vit_giant2, with a gated MLP (Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2's vision_transformer.py).
"""
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.errors import UsageError
from simclr_jax.names import near
from simclr_jax.nets import drop, posemb
from simclr_jax.nets.linen import Embedding, compute_dtype, fan_in, net, products, wide
from simclr_jax.nets.pool import MapHead, pooler
from simclr_jax.nets.posemb import RESIZES
from simclr_jax.nets.transformer import Spec, Stack, dense, norm, stds
from simclr_jax.types import Net

# Width, depth, heads, MLP.
SIZES = {"Ti": (192, 12, 3, 768), "S": (384, 12, 6, 1536), "B": (768, 12, 12, 3072), "L": (1024, 24, 16, 4096),
         "So400m": (1152, 27, 16, 4304), "H": (1280, 32, 16, 5120), "g": (1408, 40, 16, 6144),
         "g2": (1536, 40, 24, 4096)}
GATED = ("g2",)  # sizes whose MLP is
POOLS, POSEMBS, INITS = ("cls", "pooler", "mean", "map"), ("learned", "sincos", "sincos_bv"), ("vit", "clip")


def make(*, axis: str | None = None, size: str = "", patch: int = 16, image: int = 224, width: int = 0, depth: int = 0,
         heads: int = 0, mlp: int = 0, mlp_kind: str = "", pool: str = "cls", posemb: str = "learned",
         position_resize: str = "size", class_token: bool = True, registers: int = 0, mask_token: bool = False,
         position_on_class: bool = True, pre_norm: bool = False, patch_bias: bool = True, final_norm: bool = True,
         layer_scale: float = 0.0, drop_path: float = 0.0, gelu: str = "erf", eps: float = 1e-6, out: int = 0,
         out_bias: bool = False, remat: bool = False, scan: bool = False, init: str = "vit",
         dtype: str = "float32") -> Net:
    """float[b,H,W,3] -> {"pooled": f32[b,D], "tokens": f32[b,N,width]}; D is `out`, or the width.

    Tokens are those after the last norm: the class token, the registers, then the patches row by row. H and W are
    multiples of `patch`; where they are not `image`, learned positions are interpolated (`posemb.resize`) and sines
    computed for the grid.

    Parameters: patches/{kernel [patch,patch,3,width], bias}, {class_token,registers,mask_token,positions}/embedding,
    norm_pre, stack/block1.. (see `transformer`), norm, pool (see `MapHead`; {kernel,bias} for "pooler"), projection.

    Args:
      axis: mesh axis of the rows; rows do not meet here, so it changes nothing.
      size: one of `SIZES`, or "" with width, depth and heads given.
      patch, image: sides in pixels.
      width, depth, heads, mlp: 0: the size's, and 4 * width for mlp where there is no size.
      mlp_kind: "gelu", or "swiglu", gated, as in `transformer.SwiGlu`: `mlp` is then the width behind the gate, and
        where there is no size two thirds of 4 * width, rounded up to a multiple of 8. "": the size's; "gelu" without.
      pool: "cls": the class token. "pooler": tanh of a dense layer of it (BERT's; transformers' ViTModel). "mean": over
        patches. "map": a probe's attention over all tokens.
      posemb: "learned", or fixed "sincos" (MoCo v3's form) or "sincos_bv" (big_vision's). Fixed ones are 0 on the class
        token.
      registers: further learned tokens, which have no position.
      mask_token: learn what stands for a hidden patch; `apply` then takes mask bool[b,N], True where it does.
      position_resize: how learned positions are interpolated, as in `posemb.resize`.
      position_on_class: whether the learned table has a row for the class token; False in timm's nets with registers.
      pre_norm, patch_bias: CLIP has a norm before the first block, and then no bias on the patches.
      layer_scale: where LayerScale starts; 0: none.
      drop_path: rate of stochastic depth at the last block, 0 at the first; training then needs `key`.
      gelu: "erf", "tanh" (SigLIP, big_vision) or "quick" (OpenAI's CLIP).
      eps: of the norms; 1e-5 in CLIP.
      out, out_bias: width of a last linear layer on the pooled vector, 0 for none; whether it has a bias.
      remat: recompute each block in the backward pass; memory falls to one block's activations and one vector a token
        and layer.
      scan: compile one block and loop; for deep nets. Parameters are then stacked over layers.
      init: "vit", as big_vision: patches and projection N(0, 1 / fan-in) cut off, class token 0, positions
        N(0, 1 / width), all other kernels Xavier uniform. "clip", as openai/CLIP: class token, positions and projection
        N(0, 1 / width), all other kernels as PyTorch begins them. Biases are 0 in both (big_vision's MLP: N(0, 1e-12);
        PyTorch's MLP: uniform), registers N(0, 1e-12) as in DINOv2.
      dtype: of the products, "float32" or "bfloat16".

    Raises:
      UsageError: a value outside these; when called, an image not of four axes or not a multiple of `patch`, or
        training with drop_path and no key.
    """
    where = "nets/vit"
    if size and size not in SIZES:
        raise UsageError(f"{where}: there is no size {size!r}{near(size, SIZES)}")
    mlp_kind = mlp_kind or ("swiglu" if size in GATED else "gelu")
    of_size = SIZES.get(size, (0, 0, 0, _gated(4 * width) if mlp_kind == "swiglu" else 4 * width))
    width, depth, heads, mlp = (given or usual for given, usual in zip((width, depth, heads, mlp), of_size))
    if not size and not (width > 0 and depth > 0 and heads > 0):
        raise UsageError(f"{where}: width={width} depth={depth} heads={heads} without a size; give all three, or "
                         f"size={' or '.join(SIZES)}")
    for name, value, choices in (("pool", pool, POOLS), ("posemb", posemb, POSEMBS), ("init", init, INITS),
                                 ("position_resize", position_resize, RESIZES)):
        if value not in choices:
            raise UsageError(f"{where}: {name}={value!r}, wanted {', '.join(choices)}")
    if patch < 1 or image < 1 or image % patch:
        raise UsageError(f"{where}: image={image} is no multiple of patch={patch}; change either")
    if pool in ("cls", "pooler") and not class_token:
        raise UsageError(f"{where}: pool={pool!r} needs class_token=True; set it, or pool='mean' or 'map'")
    if registers < 0 or out < 0:
        raise UsageError(f"{where}: registers={registers} out={out}, wanted 0 or more")
    if posemb != "learned" and width % 4:
        raise UsageError(f"{where}: posemb={posemb!r} needs a width that is a multiple of 4, got {width}")
    spec = Spec(width, depth, heads, mlp, gelu, eps, stds({"vit": "xavier", "clip": "torch"}[init], width, mlp, depth),
                compute_dtype(dtype, where), layer_scale=layer_scale, drop_path=drop_path, remat=remat, scan=scan,
                mlp_kind=mlp_kind)
    form = Form(patch, image // patch, pool, posemb, position_resize, class_token, registers, mask_token,
                position_on_class and class_token, pre_norm, patch_bias, final_norm, out, out_bias, init)
    return net(ViT(spec.check(where), form), draw=lambda path: _draw(path, init))


def _gated(mlp):
    """The width of a gated MLP with as many parameters as one of width `mlp`, as DINOv2 rounds it."""
    return (int(mlp * 2 / 3) + 7) // 8 * 8


def _draw(path, init):
    if path[-1] == "embedding":
        return "uniform" if path[-2] == "probe" else "normal"
    if path[0] in ("patches", "projection") and init == "vit":
        return "truncated"
    return "normal" if path[0] == "projection" else "uniform"


class Form(NamedTuple):
    """What a net has around its blocks."""

    patch: int
    side: int  # of the grid that learned positions are for
    pool: str
    posemb: str
    resize: str
    class_token: bool
    registers: int
    mask_token: bool
    position_on_class: bool
    pre_norm: bool
    patch_bias: bool
    final_norm: bool
    out: int
    out_bias: bool
    init: str


class ViT(nn.Module):
    spec: Spec
    form: Form

    @nn.compact
    def __call__(self, x, train: bool, key=None, mask=None):
        s, f = self.spec, self.form
        if x.ndim != 4:
            raise UsageError(f"nets/vit wants images [rows, height, width, channels] and got shape {x.shape}")
        if x.shape[1] % f.patch or x.shape[2] % f.patch:
            raise UsageError(f"nets/vit: images of {x.shape[1]}x{x.shape[2]} do not divide into patches of {f.patch}; "
                             "make the views a multiple of it")
        key = drop.keys(key, s.drop_path, x.shape[0], train=train, where="nets/vit: drop_path")
        dtype, grid = products(s.dtype, x), (x.shape[1] // f.patch, x.shape[2] // f.patch)
        x = Patches(s.width, f.patch, f.patch_bias, 1.0 if f.init == "vit" else 1 / 3, dtype, name="patches")(x)
        if f.mask_token:
            token = Embedding((1, s.width), 0.0, name="mask_token")()
            x = x if mask is None else jnp.where(mask[:, :, None], token.astype(x.dtype), x)
        elif mask is not None:
            raise UsageError("nets/vit: patches are to be hidden; set mask_token=True")
        x = self._prefixed(x.astype(wide(x)), grid)
        if f.pre_norm:
            x = norm(s.eps, x, "norm_pre")(x)
        x = Stack(s, name="stack")(x, key)
        if f.final_norm:
            x = norm(s.eps, x, "norm")(x)
        if f.pool == "map":
            pooled = MapHead(s, dtype, name="pool")(x)
        else:
            pooled = jnp.mean(x[:, f.class_token + f.registers:], axis=1) if f.pool == "mean" else x[:, 0]
        if f.pool == "pooler":
            pooled = pooler(pooled, s.width ** -0.5, dtype)
        if f.out:
            std = s.width ** -0.5
            pooled = dense(f.out, std, dtype, "projection", f.out_bias)(pooled).astype(wide(x))
        return {"pooled": pooled, "tokens": x}

    @nn.nowrap
    def _prefixed(self, x, grid):
        """Patches with positions added, behind class token and registers."""
        s, f = self.spec, self.form
        std, on_class = s.width ** -0.5, 0.0
        if f.posemb == "learned":
            prefix = int(f.position_on_class)
            table = Embedding((prefix + f.side ** 2, s.width), std, name="positions")()
            table = posemb.resize(table, prefix, (f.side, f.side), grid, f.resize)
            x, on_class = x + table[prefix:], table[:prefix] if prefix else 0.0
        else:
            x = x + jnp.asarray(posemb.sincos(*grid, s.width, kind=f.posemb), x.dtype)
        rows = lambda t: jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], *t.shape))
        before = []
        if f.class_token:
            token = Embedding((1, s.width), 0.0 if f.init == "vit" else std, name="class_token")()
            before.append(rows(token + on_class))
        if f.registers:
            before.append(rows(Embedding((f.registers, s.width), 1e-6, name="registers")()))
        return jnp.concatenate([*before, x], axis=1)


class Patches(nn.Module):
    """A convolution whose stride is its kernel, as one product: float[b,H,W,C] -> dtype[b,N,width], row by row."""

    width: int
    patch: int
    bias: bool
    scale: float  # of the kernel's initial variance, over the fan-in
    dtype: Any

    @nn.compact
    def __call__(self, x):
        (b, h, w, c), p = x.shape, self.patch
        kernel = self.param("kernel", fan_in(self.scale), (p, p, c, self.width), jnp.float32)
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype).reshape(-1, self.width)
        if self.bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32).astype(self.dtype)
        return x
