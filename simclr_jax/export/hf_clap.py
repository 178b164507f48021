"""transformers' BertModel, RobertaModel and ClapModel."""
import json

from simclr_jax.errors import UsageError
from simclr_jax.export import hf, rows, timm
from simclr_jax.export.found import Found, Package, refuse
from simclr_jax.export.layout import Layout, row

AUDIO, TEXT = "audio_model.audio_encoder.", "text_model."
# A classifier on the audio, the other halves' buffers, and what only the fusion of long clips uses.
BESIDE = (r"(.*\.)?position_ids", r"(.*\.)?token_type_ids", r".*relative_position_index", r"cls\..*", r"lm_head\..*",
          r"pooler\..*", r".*num_batches_tracked", r"logit_scale_[at]")
BLOCK = dict(qkv=tuple(f"attention.self.{x}" for x in ("query", "key", "value")), out="attention.output.dense",
             mlp=("intermediate.dense", "output.dense"))


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The nets of a state dict."""
    if config["model_type"] != "clap":
        at = next((p for p in ("bert.", "roberta.") if any(n.startswith(p) for n in weights)), "")
        net = _text(weights, config, config["model_type"], at) | dict(pool="cls")
        return Found({"text": net}, Layout(tuple(_bert_rows("text", net, at)), BESIDE + (at.replace(".", r"\.") + r"pooler\..*",)))
    audio = config["audio_config"]
    if audio.get("enable_fusion"):
        raise UsageError(f"{where}: audio_config has enable_fusion=true; only CLAP without the fusion of long clips is read")
    text = {**config["text_config"]}
    out = config.get("projection_dim", 512)
    nets = {"text": _text(weights, text, "roberta", TEXT) | dict(pool="pooler", out=out, out_mlp=True),
            "audio": dict(name="htsat", mels=audio.get("num_mel_bins", 64), side=audio.get("spec_size", 256),
                          patch=audio.get("patch_size", 4), width=audio.get("patch_embeds_hidden_size", 96),
                          depths=tuple(audio.get("depths", (2, 2, 6, 2))), heads=tuple(audio.get("num_attention_heads", (4, 8, 16, 32))),
                          window=audio.get("window_size", 8), mlp_ratio=int(audio.get("mlp_ratio", 4)), out=out,
                          eps=audio.get("layer_norm_eps", 1e-5))}
    return Found(nets, layout(nets))


def _text(weights, config, kind, at):
    of = lambda name: weights[f"{at}embeddings.{name}_embeddings.weight"].shape
    (vocab, width), pad = of("word"), config.get("pad_token_id", 0 if kind == "bert" else 1)
    roberta = kind == "roberta"
    return dict(name="bert", vocab=vocab, length=of("position")[0] - (pad + 1) * roberta, pad=pad, types=of("token_type")[0],
                positions="roberta" if roberta else "bert", width=width, depth=rows.count(
                    [n.removeprefix(at) for n in weights if n.startswith(at)], r"encoder\.layer\.(\d+)\."),
                heads=config.get("num_attention_heads", 12), mlp=weights[f"{at}encoder.layer.0.intermediate.dense.weight"].shape[0],
                gelu=hf.gelu(config), eps=config.get("layer_norm_eps", 1e-12))


def _bert_rows(role, net, at):
    tables = {"tokens": "word", "types": "token_type", "positions": "position"}
    table = [row(f"{role}/{ours}/embedding", "as is", f"{at}embeddings.{theirs}_embeddings.weight") for ours, theirs in tables.items()]
    table += rows.norm(f"{role}/norm_pre", at + "embeddings.LayerNorm")
    table += rows.blocks(role, timm.sizes(net)[1], at + "encoder.layer.{}.", norms=("attention.output.LayerNorm", "output.LayerNorm"), **BLOCK)
    return table + (rows.dense(f"{role}/pool", at + "pooler.dense") if net["pool"] == "pooler" else [])


def layout(nets: dict) -> Layout:
    """Rows of both towers in the names of ClapModel."""
    table = _bert_rows("text", nets["text"], TEXT)
    for role in ("text", "audio"):
        for k in (1, 2):
            table += rows.dense(f"{role}/projection/fc{k}", f"{role}_projection.linear{k}")
    table += [*rows.batch_norm("audio", "bn", AUDIO + "batch_norm"), *rows.norm("audio/norm_pre", AUDIO + "patch_embed.norm"),
              *rows.norm("audio/norm", AUDIO + "norm"), *rows.conv("audio/patches", AUDIO + "patch_embed.proj", bias=True)]
    for i, blocks in enumerate(nets["audio"]["depths"]):
        stage = f"{AUDIO}layers.{i}."
        if i + 1 < len(nets["audio"]["depths"]):
            table += rows.norm(f"audio/stage{i + 1}/merge/norm", stage + "downsample.norm")
            table.append(row(f"audio/stage{i + 1}/merge/reduction/kernel", "linear", stage + "downsample.reduction.weight"))
        table += rows.blocks("audio", blocks, stage + "blocks.{}.", norms=("layernorm_before", "layernorm_after"),
                             stack=f"stage{i + 1}", **BLOCK)
        table += [row(f"audio/stage{i + 1}/block{j + 1}/positions/embedding", "as is",
                      f"{stage}blocks.{j}.attention.self.relative_position_bias_table") for j in range(blocks)]
    return Layout(tuple(table), BESIDE)


def package(model) -> Package:
    """What `from_pretrained` opens: BertModel or RobertaModel of a single text tower.

    Raises:
      UsageError: a net that transformers has no class for, or audio, which is read only.
    """
    if set(model.nets) == {"text", "audio"}:
        return _clap(model)
    net = next(iter(model.nets.values()))
    if len(model.nets) > 1 or net["name"] != "bert":
        raise UsageError("--to=transformers writes a single tower bert, or bert with htsat; this has "
                         + ", ".join(f"{r}={n['name']}" for r, n in model.nets.items()))
    refuse("transformers", net, pool=("cls", "pooler"), out=0)
    role, (width, depth, heads, mlp) = next(iter(model.nets)), timm.sizes(net)
    kind, made = ("roberta", "RobertaModel") if net["positions"] == "roberta" else ("bert", "BertModel")
    pooled = net["pool"] == "pooler" or "pooler.dense.weight" in model.beside
    config = dict(model_type=kind, architectures=[made], **_text_config(net))
    call = 'out = {{"text": model(input_ids=tokens, attention_mask=tokens != ' + str(net["pad"]) + ").last_hidden_state[:, 0]}}"
    return Package(Layout(tuple(_bert_rows(role, net, "")), BESIDE), "model.safetensors", {"config.json": json.dumps(config, indent=2)},
                   (f"from transformers import {made}", f'model = {made}.from_pretrained("{{dir}}", add_pooling_layer={pooled}).eval()'),
                   (call.replace("last_hidden_state[:, 0]", "pooler_output") if net["pool"] == "pooler" else call,),
                   tuple((role, f"stack/block{i + 1}", f"encoder.layer.{i}") for i in range(depth)))


def _text_config(net):
    width, depth, heads, mlp = timm.sizes(net)
    roberta = net["positions"] == "roberta"
    return dict(vocab_size=net["vocab"], hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp,
                hidden_act=hf.GELUS[net["gelu"]], max_position_embeddings=net["length"] + (net["pad"] + 1) * roberta,
                type_vocab_size=net["types"], layer_norm_eps=net["eps"], pad_token_id=net["pad"])


def _clap(model):
    text, audio = model.nets["text"], model.nets["audio"]
    refuse("transformers", text, pool="pooler", out_mlp=True)
    config = dict(model_type="clap", architectures=["ClapModel"], projection_dim=text["out"],
                  text_config=dict(**_text_config(text), projection_dim=text["out"]),
                  audio_config=dict(num_mel_bins=audio["mels"], spec_size=audio["side"], patch_size=audio["patch"],
                                    patch_stride=[audio["patch"]] * 2, patch_embeds_hidden_size=audio["width"],
                                    depths=list(audio["depths"]), num_attention_heads=list(audio["heads"]), window_size=audio["window"],
                                    mlp_ratio=float(audio["mlp_ratio"]), layer_norm_eps=audio["eps"], projection_dim=audio["out"],
                                    hidden_size=audio["width"] * 2 ** (len(audio["depths"]) - 1), enable_fusion=False))
    call = ('tensor = lambda x: getattr(x, "pooler_output", x)',
            'out = {{"text": tensor(model.get_text_features(input_ids=tokens, attention_mask=tokens != ' + str(text["pad"]) + "))}}")
    return Package(layout(model.nets), "model.safetensors", {"config.json": json.dumps(config, indent=2)},
                   ("from transformers import ClapModel", 'model = ClapModel.from_pretrained("{dir}").eval()'), call,
                   tuple(("text", f"stack/block{i + 1}", f"text_model.encoder.layer.{i}") for i in range(timm.sizes(text)[1])))
