"""transformers' BertModel and RobertaModel."""
import json
import re

from simclr_jax.errors import UsageError
from simclr_jax.export import hf, rows, timm
from simclr_jax.export.found import Found, Package, refuse
from simclr_jax.export.layout import Layout, Row, row

TABLES = {"tokens": "word", "types": "token_type", "positions": "position"}
BESIDE = (r"(.*\.)?position_ids", r"(.*\.)?token_type_ids", r"cls\..*", r"lm_head\..*", r"pooler\..*")
# Of a block; CLAP's audio tower has the same.
BLOCK = dict(qkv=tuple(f"attention.self.{x}" for x in ("query", "key", "value")), out="attention.output.dense",
             mlp=("intermediate.dense", "output.dense"))
NORMS = "attention.output.LayerNorm", "output.LayerNorm"


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The net of a state dict, of the net's own or of a model for masked words; the pooler is kept beside."""
    at = next((p for p in ("bert.", "roberta.") if any(n.startswith(p) for n in weights)), "")
    net = describe(rows.without(at, weights), config, config["model_type"]) | dict(pool="cls")
    return Found({"text": net}, Layout(tuple(table("text", net, at)), (*BESIDE, re.escape(at) + r"pooler\..*")))


def describe(weights, config: dict, kind: str) -> dict:
    """nets/bert of a state dict and its config; kind: "bert" or "roberta", whose positions begin behind `pad`."""
    vocab, width = weights["embeddings.word_embeddings.weight"].shape
    positions, types = (weights[f"embeddings.{name}_embeddings.weight"].shape[0] for name in ("position", "token_type"))
    pad = config.get("pad_token_id", 1 if kind == "roberta" else 0)
    return dict(name="bert", vocab=vocab, length=positions - (pad + 1) * (kind == "roberta"), pad=pad, types=types,
                positions=kind, width=width, depth=rows.count(weights, r"encoder\.layer\.(\d+)\."),
                heads=config.get("num_attention_heads", 12),
                mlp=weights["encoder.layer.0.intermediate.dense.weight"].shape[0], gelu=hf.gelu(config),
                eps=config.get("layer_norm_eps", 1e-12))


def table(role: str, net: dict, at: str = "") -> list[Row]:
    """Rows of nets/bert; `at` stands before each name."""
    found = [row(f"{role}/{ours}/embedding", "as is", f"embeddings.{theirs}_embeddings.weight")
             for ours, theirs in TABLES.items()]
    found += rows.norm(f"{role}/norm_pre", "embeddings.LayerNorm")
    found += rows.blocks(role, timm.sizes(net)[1], "encoder.layer.{}.", norms=NORMS, **BLOCK)
    found += rows.dense(f"{role}/pool", "pooler.dense") if net["pool"] == "pooler" else []
    return rows.below(at, found)


def settings(net: dict) -> dict:
    """The fields of a config of the net's form."""
    width, depth, heads, mlp = timm.sizes(net)
    positions = net["length"] + (net["pad"] + 1) * (net["positions"] == "roberta")
    return dict(vocab_size=net["vocab"], hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                intermediate_size=mlp, hidden_act=hf.GELUS[net["gelu"]], max_position_embeddings=positions,
                type_vocab_size=net["types"], layer_norm_eps=net["eps"], pad_token_id=net["pad"])


def package(model) -> Package:
    """What `from_pretrained` opens: a single text tower.

    Raises:
      UsageError: other nets.
    """
    (role, net), *others = model.nets.items()
    if others or net["name"] != "bert":
        raise UsageError("--to=transformers writes a single tower bert, or bert with htsat; this has "
                         + ", ".join(f"{r}={n['name']}" for r, n in model.nets.items()))
    refuse("transformers", net, pool=("cls", "pooler"), out=0)
    kind = net["positions"]
    made = {"bert": "BertModel", "roberta": "RobertaModel"}[kind]
    pooled = net["pool"] == "pooler" or "pooler.dense.weight" in model.beside
    config = dict(model_type=kind, architectures=[made], **settings(net))
    lines = (f"from transformers import {made}",
             f'model = {made}.from_pretrained("{{dir}}", add_pooling_layer={pooled}).eval()')
    taken = "pooler_output" if net["pool"] == "pooler" else "last_hidden_state[:, 0]"
    call = f'out = {{"text": model(input_ids=tokens, attention_mask=tokens != {net["pad"]}).{taken}}}'
    layers = tuple((role, f"stack/block{i + 1}", f"encoder.layer.{i}") for i in range(timm.sizes(net)[1]))
    return Package(Layout(tuple(table(role, net)), BESIDE), "model.safetensors",
                   {"config.json": json.dumps(config, indent=2)}, lines, (call,), layers)
