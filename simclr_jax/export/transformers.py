"""Hugging Face transformers: models that `from_pretrained(DIR)` opens.

Names and arguments as in transformers 4 and 5 (github.com/huggingface/transformers, Apache-2.0).
"""
from simclr_jax.errors import UsageError
from simclr_jax.export import hf_bert, hf_clap, hf_pair, hf_vit
from simclr_jax.export.found import Found, Package

KINDS = {"vit": hf_vit, "dinov2": hf_vit, "clip": hf_pair, "siglip": hf_pair, "bert": hf_bert, "roberta": hf_bert,
         "clap": hf_clap}


def read(weights, config: dict, where: str) -> Found:
    """The nets of a state dict; `config` is the config.json it came with.

    Raises:
      UsageError: no config.json, or a model that is not read.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise UsageError(f"{where}: config.json has model_type={kind!r}, wanted one of {', '.join(KINDS)}; give the "
                         "directory that from_pretrained opens")
    return KINDS[kind].read(weights, config, config.get("preprocessor", {}), where)


def package(model) -> Package:
    """What `from_pretrained` opens.

    Raises:
      UsageError: nets that transformers has no class for.
    """
    if {"text", "audio"} == set(model.nets):
        return hf_clap.package(model)
    if {"text", "image"} == set(model.nets) and model.nets["text"]["name"] != "bert":
        return hf_pair.package(model)
    return hf_bert.package(model) if "text" in model.nets else hf_vit.package(model)
