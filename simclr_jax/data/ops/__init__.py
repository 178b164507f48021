"""Augmentations, one family a file.

A factory is a function with annotated keyword-only arguments that returns a `Spatial` or a `Pixel` (kinds.py); its
signature is the schema of the op in a config (schema.py). A new op is one more such function, and nothing else.
"""
