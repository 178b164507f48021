"""Reads tests/data/*.npz: inputs and outputs of original implementations (sources in tests/data/README.md)."""
import json
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


def cases(name):
    """[(parameters, {array name: array})] of tests/data/<name>.npz."""
    z = np.load(DATA / f"{name}.npz")
    parameters = json.loads(str(z["meta"]))["cases"]
    return [(p, {k.split("/", 1)[1]: z[k] for k in z.files if k.startswith(f"c{i}/")}) for i, p in enumerate(parameters)]
