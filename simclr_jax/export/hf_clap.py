"""transformers' ClapModel: RoBERTa on texts, HTS-AT on spectrograms."""
import json

from simclr_jax.errors import UsageError
from simclr_jax.export import hf, hf_bert, rows, timm
from simclr_jax.export.found import Found, Package, refuse
from simclr_jax.export.layout import Layout, row

AUDIO, TEXT = "audio_model.audio_encoder.", "text_model."
# Buffers, and the scales, one a direction.
BESIDE = (r"(.*\.)?position_ids", r"(.*\.)?token_type_ids", r".*relative_position_index", r".*num_batches_tracked",
          r"logit_scale_[at]")
# Our arguments of nets/htsat, theirs, and the defaults of ClapAudioConfig.
SETTINGS = {"mels": ("num_mel_bins", 64), "side": ("spec_size", 256), "patch": ("patch_size", 4),
            "width": ("patch_embeds_hidden_size", 96), "depths": ("depths", (2, 2, 6, 2)),
            "heads": ("num_attention_heads", (4, 8, 16, 32)), "window": ("window_size", 8),
            "mlp_ratio": ("mlp_ratio", 4), "eps": ("layer_norm_eps", 1e-5)}


def read(weights, config: dict, pixels: dict, where: str) -> Found:
    """The nets of a state dict.

    Raises:
      UsageError: a net with fusion, or with another activation.
    """
    audio, out = config["audio_config"], config.get("projection_dim", 512)
    if audio.get("enable_fusion"):
        raise UsageError(f"{where}: audio_config has enable_fusion=true; only CLAP without the fusion of long clips "
                         "is read")
    if hf.gelu(audio) != "erf":
        raise UsageError(f"{where}: audio_config has hidden_act={audio['hidden_act']!r}, wanted gelu")
    text = hf_bert.describe(rows.without(TEXT, weights), config["text_config"], "roberta")
    heard = {ours: audio.get(theirs, usual) for ours, (theirs, usual) in SETTINGS.items()}
    heard |= dict(depths=tuple(heard["depths"]), heads=tuple(heard["heads"]), mlp_ratio=int(heard["mlp_ratio"]))
    nets = {"text": text | dict(pool="pooler", out=out, out_mlp=True), "audio": dict(name="htsat", **heard, out=out)}
    return Found(nets, layout(nets))


def layout(nets: dict) -> Layout:
    """Rows of both towers in the names of ClapModel."""
    table = hf_bert.table("text", nets["text"], TEXT)
    for role in ("text", "audio"):
        for k in (1, 2):
            table += rows.dense(f"{role}/projection/fc{k}", f"{role}_projection.linear{k}")
    table += rows.batch_norm("audio", "bn", AUDIO + "batch_norm")
    table += rows.norm("audio/norm_pre", AUDIO + "patch_embed.norm") + rows.norm("audio/norm", AUDIO + "norm")
    table += rows.conv("audio/patches", AUDIO + "patch_embed.proj", bias=True)
    for i, blocks in enumerate(nets["audio"]["depths"], 1):
        table += _stage(f"stage{i}", f"{AUDIO}layers.{i - 1}.", blocks, last=i == len(nets["audio"]["depths"]))
    return Layout(tuple(table), BESIDE)


def _stage(ours, theirs, blocks, last):
    table = rows.blocks("audio", blocks, theirs + "blocks.{}.", norms=("layernorm_before", "layernorm_after"),
                        stack=ours, **hf_bert.BLOCK)
    table += [row(f"audio/{ours}/block{j + 1}/positions/embedding", "as is",
                  f"{theirs}blocks.{j}.attention.self.relative_position_bias_table") for j in range(blocks)]
    if not last:
        table += rows.norm(f"audio/{ours}/merge/norm", theirs + "downsample.norm")
        table += rows.dense(f"audio/{ours}/merge/reduction", theirs + "downsample.reduction", bias=False)
    return table


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: towers that ClapModel does not have.
    """
    text, audio = model.nets["text"], model.nets["audio"]
    refuse("transformers", text, name="bert", positions="roberta", pool="pooler", out_mlp=True, out=audio["out"])
    refuse("transformers", audio, name="htsat")
    heard = {theirs: audio[ours] for ours, (theirs, _) in SETTINGS.items()}
    heard |= dict(mlp_ratio=float(audio["mlp_ratio"]), patch_stride=[audio["patch"]] * 2, enable_fusion=False,
                  hidden_size=audio["width"] * 2 ** (len(audio["depths"]) - 1), projection_dim=audio["out"])
    config = dict(model_type="clap", architectures=["ClapModel"], projection_dim=text["out"], audio_config=heard,
                  text_config=dict(**hf_bert.settings(text), projection_dim=text["out"]))
    features = f"model.get_text_features(input_ids=tokens, attention_mask=tokens != {text['pad']})"
    call = 'tensor = lambda x: getattr(x, "pooler_output", x)', f'out = {{"text": tensor({features})}}'
    layers = tuple(("text", f"stack/block{i + 1}", f"text_model.encoder.layer.{i}") for i in range(timm.sizes(text)[1]))
    return Package(layout(model.nets), "model.safetensors", {"config.json": json.dumps(config, indent=2)},
                   ("from transformers import ClapModel", 'model = ClapModel.from_pretrained("{dir}").eval()'), call,
                   layers)
