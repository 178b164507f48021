"""Weights out and in: other libraries' layouts, and nets with weights as directories of ours."""


def load(directory):
    """(embed, params) of a directory that `python -m simclr_jax.export` made by --from or --to=flax.

    `embed(params, image=f32[b,H,W,3] in [0,1], text=i32[b,L]) -> {modality: f32[b,D]}` for the modalities given; it is
    compiled for each shape, and normalises pixels itself. The side H = W that the model was made for is in config.json;
    vision transformers take others, too.

    Raises:
      UsageError: no such directory, or damage.
    """
    from simclr_jax.export import model
    return model.embedder(model.read(directory))
