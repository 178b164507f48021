"""A net as StableHLO: for anything that has JAX, or runs StableHLO, and not this project."""
import json

import jax
from jax import export as jax_export

from simclr_jax.export import model as models, write as writing

PLATFORMS = "cpu", "cuda", "tpu"


def write(out, model, card: str) -> None:
    """DIR/model.safetensors and, for each modality, DIR/<modality>.stablehlo, a serialised `jax.export.Exported`.

    It is a function ({name: f32 array}, input) -> f32[b,D] of any batch b, for CPU, CUDA and TPU; the names are those
    of the safetensors file, so `Exported.call(safetensors.flax.load_file(...), x)` runs it. Pixels are in [0, 1].
    """
    embed = models.embedding(model)
    with writing.directory(out) as folder:
        used = {n: t for n, t in model.weights.items() if n not in models.SCALARS}
        writing.safetensors(folder / "model.safetensors", used, {"format": "flax"})
        flat = {n: jax.ShapeDtypeStruct(t.shape, "float32") for n, t in used.items()}
        modalities = {models.MODALITIES.get(role, role): role for role in model.nets}
        for modality, role in modalities.items():
            like = models.example(model, role)
            x = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("b"), *like.shape[1:]), like.dtype)

            def run(flat, x, role=role, modality=modality):
                return embed({role: models.nested(flat, role)}, **{modality: x})[modality]
            exported = jax_export.export(jax.jit(run), platforms=PLATFORMS)(flat, x)
            (folder / f"{modality}.stablehlo").write_bytes(exported.serialize())
        config = {"modalities": list(modalities), "platforms": PLATFORMS, "image": model.image, "text": model.text,
                  "nets": model.nets}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / "README.md").write_text(card)
        if model.tokenizer:
            (folder / "tokenizer.json").write_bytes(model.tokenizer)
