"""Files of torch, by its weights-only loader, mapped into memory where the format allows."""
import re
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from simclr_jax.errors import UsageError
from simclr_jax.export.refused import Refused, line, refusing, shown
from simclr_jax.export.tensors import Tensor

# weights_only=True ran code in files until 2.6.0 (CVE-2025-32434, GHSA-53q9-r3pm-6pq6) and let them overwrite memory
# until 2.10.0 (CVE-2026-24747, GHSA-63cw-57p8-fm3p).
OLDEST = (2, 10)
DO = "nothing of it was run; have it saved again as a plain dict of tensors, best by safetensors.torch.save_file"


def read(path: Path):
    """(what a file holds, value -> Tensor | None): dicts and lists of tensors, and how to take one of those."""
    torch = _torch()
    whole = zipfile.is_zipfile(path)  # the format since torch 1.6; older ones cannot be mapped
    size = path.stat().st_size
    if whole:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > 2 * size:
                raise Refused("it unpacks to more than twice its size", "torch packs nothing: do not use it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(str(path), map_location="cpu", weights_only=True, mmap=whole)
    except (OSError, MemoryError):
        raise
    except Exception as e:  # its unpickler and its archive reader raise all kinds
        name = re.search(r"GLOBAL ([\w.]+)", str(e))
        what = f"it wants {name[1]}" if name else line(e)
        raise Refused(f"torch's weights-only loader refuses it ({what})", DO) from None
    return found, lambda x: _tensor(torch, path, x, size) if isinstance(x, torch.Tensor) else None


def _torch():
    try:
        import torch
    except ImportError:
        raise UsageError("files of torch (.pt, .pth, .bin) are read by torch, which is not installed; pip install "
                         f"'torch>={OLDEST[0]}.{OLDEST[1]}', or give a .safetensors file") from None
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST:
        raise UsageError(f"torch {torch.__version__} runs code or overwrites memory when it loads a hostile file, even "
                         "with weights_only (CVE-2025-32434, CVE-2026-24747); pip install "
                         f"'torch>={OLDEST[0]}.{OLDEST[1]}'")
    return torch


def _tensor(torch, path, x, most):
    # Sparse ones are not checked by the loader; an expanded one of one number may claim any size.
    if x.layout != torch.strided or x.is_quantized or x.is_meta:
        kind = "quantized" if x.is_quantized else shown(x.layout)
        raise Refused(f"it holds a tensor that is {kind}", "have it stored dense")
    if x.numel() * x.element_size() > most:
        raise Refused(f"it holds a tensor of shape {list(x.shape)}, larger than the file")
    x = x.detach()
    bits = {getattr(torch, name): bits for name, bits in (("bfloat16", torch.int16), ("float8_e4m3fn", torch.uint8),
                                                         ("float8_e5m2", torch.uint8))}
    if x.dtype not in bits:
        return Tensor(tuple(x.shape), x[:0].numpy().dtype if x.ndim else x.numpy().dtype, lambda: _copy(path, x))
    kind = np.dtype(getattr(ml_dtypes, str(x.dtype).removeprefix("torch.")))
    return Tensor(tuple(x.shape), kind, lambda: _copy(path, x.contiguous().view(bits[x.dtype])).view(kind))


def _copy(path, x):
    with refusing(path):
        return np.array(x.resolve_conj().resolve_neg().numpy(), order="C")
