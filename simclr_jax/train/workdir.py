"""A run's directory: may it be written, and is it one place for all processes?"""
import json
import secrets
import socket

import jax
from etils import epath

from simclr_jax import dist
from simclr_jax.errors import UsageError


def open_workdir(path: str):
    """Makes the directory and proves that it can be written, and that every process sees the same one.

    Returns:
      epath.Path, absolute.

    Raises:
      UsageError: no path, not writable, or several processes with a directory each (their hosts are named).
    """
    if not path:
        raise UsageError("no --workdir given; wanted a directory for checkpoints and logs, as in --workdir=runs/first")
    workdir = epath.Path(path)
    workdir = workdir if "://" in path else workdir.expanduser().resolve()
    token = workdir / ".shared"
    problem, word = "", secrets.token_hex(8)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            token.write_text(word)
        except Exception as e:  # gs:// raises its own kinds
            problem = f"--workdir={path} cannot be written ({type(e).__name__}: {' '.join(str(e).split())[:120]})"
    dist.barrier("workdir written")
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        import numpy as np

        def gather(text):
            row = np.frombuffer(text.encode()[:64].ljust(64), np.uint8)
            return [bytes(r).decode().strip() for r in np.asarray(multihost_utils.process_allgather(row))]
        seen = gather(token.read_text() if not problem and token.exists() else "none")
        hosts = gather(socket.gethostname())
        apart = [f"process {i} on {h}" for i, (s, h) in enumerate(zip(seen, hosts)) if s != seen[0]]
        if seen[0] == "none" and not problem:
            problem = f"--workdir={path} cannot be written by process 0 on {hosts[0]}"
        elif apart and not problem:
            problem = (f"--workdir={path} is not one place for all processes: {', '.join(apart)} cannot see what process 0 "
                       f"on {hosts[0]} wrote; give a shared file system or a gs:// path")
    elif problem == "":
        token.unlink()
    dist.barrier("workdir read")
    if problem:
        raise UsageError(problem + "; choose another directory")
    if jax.process_count() > 1 and jax.process_index() == 0:
        token.unlink(missing_ok=True)
    return workdir


def write_config(workdir, text: str) -> None:
    """config.json, whole or not at all."""
    if jax.process_index() == 0:
        temporary = workdir / "config.json.tmp"
        temporary.write_text(text)
        temporary.replace(workdir / "config.json")


def read_config(workdir) -> dict | None:
    """The config of the run in a directory, as plain dicts and lists; None if there is none."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise UsageError(f"{path} is no JSON ({e}); restore it, or start in another --workdir") from e
