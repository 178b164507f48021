"""Tokenizers, a file each: `make(*, ..., length) -> simclr_jax.data.tokenizer.Tokenizer`."""
