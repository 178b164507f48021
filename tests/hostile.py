"""What tests of hostile files share: how a refusal has to be, and a payload."""
import os

import pytest

from simclr_jax.errors import UsageError
from simclr_jax.export import files


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Reads all of a file, and holds the refusal to one line that names it; no canary, no other file has been made."""
    monkeypatch.chdir(tmp_path)

    def check(path, match, then=lambda tensors: [t.read() for t in tensors.values()]):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match=match) as refused:
            then(files.read(path))
        said = str(refused.value)
        assert os.path.basename(path).split(":")[0] in said, said
        assert "\n" not in said and said.isprintable() and len(said) < 700, said
        assert sorted(tmp_path.rglob("*")) == before and not (tmp_path / "canary").exists()
    return check


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def system():
    return Call(os.system, "touch canary")
