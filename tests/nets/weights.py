"""State dicts of original models as our trees: for each layout a table {our leaf: (how, their names)}.

The tables are linear (transposed, reshaped, put side by side), so they take gradients to our trees as well.
"""
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

HOW = {
    "linear": lambda *w: np.concatenate([a.T for a in w], axis=1),  # torch keeps [out, in]
    "conv": lambda w: w.transpose(2, 3, 1, 0),  # OIHW -> HWIO
    "as is": lambda *w: np.concatenate(w),
    "rows": lambda *w: np.concatenate([a.reshape(-1, a.shape[-1]) for a in w]),  # without leading axes of 1
}


def convert(state, table):
    """Our nested tree of the entries of `state` that `table` names; leaves whose originals are all there."""
    out = {}
    for ours, (how, *theirs) in table.items():
        if not all(name in state for name in theirs):
            continue
        *path, last = ours.split("/")
        node = out
        for p in path:
            node = node.setdefault(p, {})
        node[last] = HOW[how](*(np.asarray(state[name]) for name in theirs))
    return out


def unused(state, *tables):
    """Names in `state` that no table mentions."""
    return set(state) - {name for table in tables for _, *theirs in table.values() for name in theirs}


def init(net, x):
    """The parameters that a net begins with."""
    return jax.jit(lambda key: net.init(key, x)[0])(jax.random.key(0))


def flat(nested):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def stacked(params):
    """The tree of a net with `scan` from that of one without."""
    stack = params["stack"]
    blocks = [stack[f"block{i + 1}"] for i in range(len(stack))]
    return {**params, "stack": {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}}


def _norm(ours, theirs):
    return {f"{ours}/scale": ("as is", f"{theirs}.weight"), f"{ours}/bias": ("as is", f"{theirs}.bias")}


def _dense(ours, *theirs):
    return {f"{ours}/kernel": ("linear", *(f"{t}.weight" for t in theirs)),
            f"{ours}/bias": ("as is", *(f"{t}.bias" for t in theirs))}


def _blocks(depth, at, norms, qkv, out, mlp, scales=(), stack="stack"):
    table = {}
    for i in range(depth):
        ours, theirs = f"{stack}/block{i + 1}", at.format(i)
        for k in (1, 2):
            table |= _norm(f"{ours}/norm{k}", theirs + norms[k - 1])
            parts = (mlp[k - 1],) if isinstance(mlp[k - 1], str) else mlp[k - 1]
            table |= _dense(f"{ours}/mlp/fc{k}", *(theirs + part for part in parts))
            if scales:
                table[f"{ours}/scale{k}/layer_scale"] = ("as is", theirs + scales[k - 1])
        table |= _dense(f"{ours}/attention/qkv", *(theirs + name for name in qkv))
        table |= _dense(f"{ours}/attention/out", theirs + out)
    return table


def _patches(theirs):
    return {"patches/kernel": ("conv", f"{theirs}.weight"), "patches/bias": ("as is", f"{theirs}.bias")}


def timm_vit(depth):
    """Net of timm's VisionTransformer; q, k and v are one matrix there too."""
    return {**_patches("patch_embed.proj"), **_norm("norm", "norm"),
            "class_token/embedding": ("rows", "cls_token"), "registers/embedding": ("rows", "reg_token"),
            "positions/embedding": ("rows", "pos_embed"),
            **_blocks(depth, "blocks.{}.", ("norm1", "norm2"), ("attn.qkv",), "attn.proj", ("mlp.fc1", "mlp.fc2"),
                      ("ls1.gamma", "ls2.gamma"))}


def hf_dinov2(depth, mlp=("mlp.fc1", "mlp.fc2")):
    """Net of transformers' Dinov2Model. embeddings.mask_token takes the place of hidden patches and has none here."""
    return {**_patches("embeddings.patch_embeddings.projection"), **_norm("norm", "layernorm"),
            "class_token/embedding": ("rows", "embeddings.cls_token"),
            "positions/embedding": ("rows", "embeddings.position_embeddings"),
            **_blocks(depth, "encoder.layer.{}.", ("norm1", "norm2"),
                      tuple(f"attention.{x}_proj" for x in "qkv"), "attention.o_proj", mlp,
                      ("layer_scale1.lambda1", "layer_scale2.lambda1"))}


def hf_dinov2_swiglu(depth):
    """The same with gated MLPs."""
    return hf_dinov2(depth, (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"))


def hf_vit(depth):
    """Net of transformers' ViTModel."""
    return {**_patches("embeddings.patch_embeddings.projection"), **_norm("norm", "layernorm"),
            "class_token/embedding": ("rows", "embeddings.cls_token"),
            "positions/embedding": ("rows", "embeddings.position_embeddings"), **_dense("pool", "pooler.dense"),
            **_blocks(depth, "layers.{}.", ("layernorm_before", "layernorm_after"),
                      tuple(f"attention.{x}_proj" for x in "qkv"), "attention.o_proj", ("mlp.fc1", "mlp.fc2"))}


_BERT = dict(qkv=("attention.self.query", "attention.self.key", "attention.self.value"), out="attention.output.dense",
             mlp=("intermediate.dense", "output.dense"))


def hf_bert(depth, at=""):
    """Net of transformers' BertModel, RobertaModel, and at "text_model." ClapTextModel."""
    tables = {"tokens": "word", "types": "token_type", "positions": "position"}
    return {**{f"{ours}/embedding": ("as is", f"{at}embeddings.{theirs}_embeddings.weight")
               for ours, theirs in tables.items()},
            **_norm("norm_pre", at + "embeddings.LayerNorm"), **_dense("pool", at + "pooler.dense"),
            **_blocks(depth, at + "encoder.layer.{}.", ("attention.output.LayerNorm", "output.LayerNorm"), **_BERT)}


def _projection(theirs):
    return _dense("projection/fc1", f"{theirs}.linear1") | _dense("projection/fc2", f"{theirs}.linear2")


def hf_clap(depths, depth):
    """(audio, its statistics, text) of transformers' ClapModel."""
    at = "audio_model.audio_encoder."
    audio = {**_norm("bn", at + "batch_norm"), **_norm("norm_pre", at + "patch_embed.norm"),
             **_norm("norm", at + "norm"), "patches/kernel": ("conv", at + "patch_embed.proj.weight"),
             "patches/bias": ("as is", at + "patch_embed.proj.bias"), **_projection("audio_projection")}
    for i, blocks in enumerate(depths):
        stage = f"{at}layers.{i}."
        audio |= _norm(f"stage{i + 1}/merge/norm", stage + "downsample.norm")
        audio[f"stage{i + 1}/merge/reduction/kernel"] = ("linear", stage + "downsample.reduction.weight")
        audio |= _blocks(blocks, stage + "blocks.{}.", ("layernorm_before", "layernorm_after"), **_BERT,
                         stack=f"stage{i + 1}")
        audio |= {f"stage{i + 1}/block{j + 1}/positions/embedding":
                  ("as is", f"{stage}blocks.{j}.attention.self.relative_position_bias_table") for j in range(blocks)}
    stats = {f"bn/{k}": ("as is", f"{at}batch_norm.running_{k}") for k in ("mean", "var")}
    return audio, stats, {**hf_bert(depth, "text_model."), **_projection("text_projection")}


def _hf_blocks(depth, tower):
    return _blocks(depth, tower + "encoder.layers.{}.", ("layer_norm1", "layer_norm2"),
                   tuple(f"self_attn.{x}_proj" for x in "qkv"), "self_attn.out_proj", ("mlp.fc1", "mlp.fc2"))


def _hf_text(depth):
    return {"tokens/embedding": ("as is", "text_model.embeddings.token_embedding.weight"),
            "positions/embedding": ("as is", "text_model.embeddings.position_embedding.weight"),
            **_norm("norm", "text_model.final_layer_norm"), **_hf_blocks(depth, "text_model.")}


def _hf_image(depth):
    return {**_patches("vision_model.embeddings.patch_embedding"),
            "positions/embedding": ("as is", "vision_model.embeddings.position_embedding.weight"),
            **_norm("norm", "vision_model.post_layernorm"), **_hf_blocks(depth, "vision_model.")}


def hf_clip(depth):
    """(image, text) of transformers' CLIPModel."""
    image = {**_hf_image(depth), **_norm("norm_pre", "vision_model.pre_layrnorm"),
             "class_token/embedding": ("rows", "vision_model.embeddings.class_embedding"),
             "projection/kernel": ("linear", "visual_projection.weight")}
    return image, {**_hf_text(depth), "projection/kernel": ("linear", "text_projection.weight")}


def hf_siglip(depth):
    """(image, text) of transformers' SiglipModel. Its head's in_proj is cut up by `siglip_head`."""
    head = "vision_model.head."
    image = {**_hf_image(depth), "pool/probe/embedding": ("rows", head + "probe"),
             **_dense("pool/q", head + "q"), **_dense("pool/kv", head + "kv"),
             **_dense("pool/out", head + "attention.out_proj"), **_norm("pool/norm", head + "layernorm"),
             **_dense("pool/mlp/fc1", head + "mlp.fc1"), **_dense("pool/mlp/fc2", head + "mlp.fc2")}
    return image, {**_hf_text(depth), **_dense("projection", "text_model.head")}


def siglip_head(state):
    """A SigLIP state dict with the head's in_proj cut into q and kv."""
    out = dict(state)
    for kind in ("weight", "bias"):
        whole = out.pop(f"vision_model.head.attention.in_proj_{kind}")
        d = len(whole) // 3
        out |= {f"vision_model.head.q.{kind}": whole[:d], f"vision_model.head.kv.{kind}": whole[d:]}
    return out


def openai_text(depth):
    """Text tower in the layout of openai/CLIP and open_clip."""
    return {"tokens/embedding": ("as is", "token_embedding.weight"),
            "positions/embedding": ("as is", "positional_embedding"), **_norm("norm", "ln_final"),
            **_openai_blocks(depth, ""), "projection/kernel": ("as is", "text_projection")}


def openai_vit(depth):
    """Image tower in the layout of openai/CLIP and open_clip."""
    return {"patches/kernel": ("conv", "visual.conv1.weight"),
            "class_token/embedding": ("rows", "visual.class_embedding"),
            "positions/embedding": ("as is", "visual.positional_embedding"),
            **_norm("norm_pre", "visual.ln_pre"), **_norm("norm", "visual.ln_post"),
            **_openai_blocks(depth, "visual."), "projection/kernel": ("as is", "visual.proj")}


def _openai_blocks(depth, tower):
    table = _blocks(depth, tower + "transformer.resblocks.{}.", ("ln_1", "ln_2"), ("attn.in_proj",), "attn.out_proj",
                    ("mlp.c_fc", "mlp.c_proj"))
    fused = lambda name: name.replace("in_proj.", "in_proj_")
    return {ours: (how, *map(fused, theirs)) for ours, (how, *theirs) in table.items()}


def torch_resnet(layers, convs):
    """(parameters, statistics) of timm's and torchvision's ResNet, `convs` a block."""
    units = [("stem/conv", "stem/bn", "conv1", "bn1")]
    for stage, blocks in enumerate(layers, 1):
        for j in range(blocks):
            ours, theirs = f"stage{stage}/block{j + 1}", f"layer{stage}.{j}"
            units += [(f"{ours}/conv{i}", f"{ours}/bn{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
                      for i in range(1, convs + 1)]
            if j == 0:  # whether a shortcut is the identity, the state dict says
                units.append((f"{ours}/downsample/conv", f"{ours}/downsample/bn", f"{theirs}.downsample.0",
                              f"{theirs}.downsample.1"))
    params, stats = {}, {}
    for conv, bn, their_conv, their_bn in units:
        params |= {f"{conv}/kernel": ("conv", f"{their_conv}.weight")} | _norm(bn, their_bn)
        stats |= {f"{bn}/{k}": ("as is", f"{their_bn}.running_{k}") for k in ("mean", "var")}
    return params, stats


def openai_resnet(layers):
    """(parameters, statistics) of ModifiedResNet in the layout of openai/CLIP and open_clip."""
    units = [(f"stem/{{}}{i}", f"visual.conv{i}", f"visual.bn{i}") for i in (1, 2, 3)]
    for stage, blocks in enumerate(layers, 1):
        for j in range(blocks):
            ours, theirs = f"stage{stage}/block{j + 1}", f"visual.layer{stage}.{j}"
            units += [(f"{ours}/{{}}{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}") for i in (1, 2, 3)]
            if j == 0:
                units.append((f"{ours}/downsample/{{}}1", f"{theirs}.downsample.0", f"{theirs}.downsample.1"))
    params, stats = {}, {}
    for ours, conv, bn in units:
        params[ours.format("conv") + "/kernel"] = ("conv", f"{conv}.weight")
        params |= _norm(ours.format("bn"), bn)
        stats |= {f"{ours.format('bn')}/{k}": ("as is", f"{bn}.running_{k}") for k in ("mean", "var")}
    pool = "visual.attnpool."
    params["pool/positions/embedding"] = ("as is", pool + "positional_embedding")
    params |= _dense("pool/q", pool + "q_proj") | _dense("pool/kv", pool + "k_proj", pool + "v_proj")
    return params | _dense("pool/out", pool + "c_proj"), stats


def drawn(shapes, seed):
    """{name: f32 array}: an original's weights in its run. numpy has promised RandomState's numbers for good."""
    random, out = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        a = random.standard_normal(shapes[name])
        if name.endswith("running_var"):
            a = 0.5 + np.abs(a)
        elif name.endswith("embedding"):
            a = 0.3 * a
        elif a.ndim == 1:
            a = (1.0 if name.endswith("weight") else 0.0) + 0.1 * a
        else:
            a = a / np.sqrt(a[0].size)
        out[name] = a.astype(np.float32)
    return out


class Oracle:
    """tests/data/model_<name>.npz: weights, inputs, outputs in f64, and of each gradient every n-th entry in f32.

    Arrays by name: w/<name in the state dict>, in/<input>, out/<output>, the last two perhaps below a case. Numbers in
    f32 are stored as byte planes, which compress better.
    """

    def __init__(self, name):
        with np.load(pathlib.Path(__file__).parents[1] / "data" / f"model_{name}.npz") as z:
            arrays = {k: z[k] for k in z.files}
        numbers, at = np.ascontiguousarray(arrays.pop("planes").T).view("<f4").ravel(), 0
        for key, shape in json.loads(str(arrays.pop("packed"))):
            n = int(np.prod(shape))
            arrays[key], at = numbers[at:at + n].reshape(shape), at + n
        meta = json.loads(str(arrays.pop("meta")))
        self.arrays = arrays
        self.weights = {k[2:]: v for k, v in arrays.items() if k.startswith("w/")}
        self.weights = self.weights or drawn(meta["shapes"], meta["seed"])

    def images(self, key):
        """f32 NHWC, from torch's NCHW; int8 is in steps of 1/32."""
        x = self.arrays[key].transpose(0, 2, 3, 1)
        return x / np.float32(32) if x.dtype == np.int8 else x

    def gradients(self, table, case="", change=lambda state: state):
        """{our leaf: (gradient, NaN where it was not kept; the largest absolute value of the original's tensors)}."""
        whole, largest = {}, {}
        for name, weight in self.weights.items():
            if f"grad/{case}/{name}" in self.arrays:
                samples = self.arrays[f"grad/{case}/{name}"]
                whole[name] = np.full(weight.shape, np.nan)
                whole[name].ravel()[::-(-weight.size // 128)] = samples
                largest[name] = np.full(weight.shape, self.arrays[f"max/{case}/{name}"])
        kept, most = (flat(convert(change(state), table)) for state in (whole, largest))
        return {name: (kept[name], np.max(most[name])) for name in kept}


def same_gradients(ours, kept, tolerance):
    """Holds each of our gradients to what was kept of the original's, relative to its largest absolute value."""
    assert ours.keys() == kept.keys()
    for name, (theirs, largest) in kept.items():
        error = np.nanmax(np.abs(ours[name] - theirs)) / largest
        assert ours[name].shape == theirs.shape and error <= tolerance, f"{name}: {error:.1e} of the largest value"
