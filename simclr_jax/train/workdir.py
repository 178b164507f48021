"""A run's directory: may it be written, and is it one place for all processes?"""
import json
import secrets
import socket

import jax
from etils import epath

from simclr_jax import life
from simclr_jax.errors import UsageError


def resolve(path: str):
    """epath.Path of a --workdir, absolute, with `~` expanded.

    Raises:
      UsageError: none given.
    """
    if not path:
        raise UsageError("no --workdir given; wanted a directory for checkpoints and logs, as in --workdir=runs/first")
    return epath.Path(path) if "://" in path else epath.Path(path).expanduser().resolve()


def open_workdir(workdir):
    """Makes the directory and proves that it can be written, and that every process sees the same one.

    Args:
      workdir: as `resolve` gives it.

    Raises:
      UsageError: not writable, or several processes with a directory each (their hosts are named).
    """
    token = workdir / ".shared"
    problem, word = "", secrets.token_hex(8)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            token.write_text(word)
        except Exception as e:  # gs:// raises its own kinds
            problem = f"--workdir={workdir} cannot be written ({type(e).__name__}: {' '.join(str(e).split())[:120]})"
    life.barrier("workdir written")
    if jax.process_count() > 1:
        seen = life.gather(_read(token) if not problem else "none", "workdir seen")
        hosts = life.gather(socket.gethostname(), "hosts")
        apart = [f"process {i} on {h}" for i, (s, h) in enumerate(zip(seen, hosts)) if s != seen[0]]
        if seen[0] == "none" and not problem:
            problem = f"--workdir={workdir} cannot be written by process 0 on {hosts[0]}"
        elif apart and not problem:
            problem = (f"--workdir={workdir} is not one place for all processes: {', '.join(apart)} cannot see what process 0 "
                       f"on {hosts[0]} wrote; give a shared file system or a gs:// path")
    elif problem == "":
        token.unlink()
    life.barrier("workdir read")
    if problem:
        raise UsageError(problem + "; choose another directory")
    if jax.process_count() > 1 and jax.process_index() == 0:
        token.unlink(missing_ok=True)


def _read(token):
    try:
        return token.read_text()
    except Exception:  # not there, or a remote store's own kind of refusal
        return "none"


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


def write_tokenizer(workdir, content: bytes) -> None:
    """tokenizer.json, whole or not at all, if there is something to keep and no file yet."""
    path = workdir / "tokenizer.json"
    if jax.process_index() == 0 and content and not path.exists():
        temporary = workdir / "tokenizer.json.tmp"
        temporary.write_bytes(content)
        temporary.replace(path)
