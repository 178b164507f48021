"""Names of topologies, and what is refused, before jax is imported."""
import importlib.util
import os
import subprocess
import sys

import pytest

from runs import ROOT
from simclr_jax.errors import UsageError
from simclr_jax.plan import chips, environment


@pytest.mark.parametrize("name, found", [("v2:4x4", ("v2", 16)), ("v3:8x8", ("v3", 64)), ("v4:2x2x4", ("v4", 16)),
                                         ("v5e:16x16", ("v5e", 256)), ("v5p:2x2x1", ("v5p", 4)),
                                         ("v6e:1x1", ("v6e", 1)),
                                         ("cpu:8", ("cpu", 8)), ("cpu", ("cpu", 1)), ("gpu", ("gpu", 0)),
                                         ("gpu:2", ("gpu", 2)), ("local", ("local", 0))])
def test_names(name, found):
    assert environment.split(name) == found


@pytest.mark.parametrize("name, why", [("v3", "2 dimensions"), ("v4:8x8", "3 dimensions of chips, as in v4:4x4x4"),
                                       ("v5e:8x8x1", "2 dimensions"), ("v3:0x8", "2 dimensions"), ("v9:8x8", "cpu:N"),
                                       ("cpu:0", "cpu:N"), ("cpu:x", "cpu:N"), ("local:2", "cpu:N"), ("", "cpu:N")])
def test_what_is_no_topology_is_refused(name, why):
    with pytest.raises(UsageError, match=why):
        environment.split(name)


def test_without_the_compiler_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"libtpu.*pip install -e '\.\[tpu\]'"):
        environment.prepare("v3:8x8")


def test_a_refusal_is_one_line_and_exit_code_2():
    done = subprocess.run([sys.executable, "-m", "simclr_jax.plan", "--topology=v3:8"], cwd=ROOT, text=True,
                          capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --topology='v3:8': ") and done.stderr.count("\n") == 1


def test_a_core_has_its_share_of_a_chip_but_all_links():
    core, chip = chips.of_device("TPU v3"), chips.CHIPS["TPU v3"]
    assert (core.flops, core.hbm, core.hbm_rate) == (61.5e12, 16 << 30, 450e9) and core.link_rate == chip.link_rate
    assert chips.of_device("TPU v4") == chips.CHIPS["TPU v4"] and chips.of_device("abacus") is None
    assert all(c.source and c.hbm < c.hbm_rate < c.flops for c in chips.CHIPS.values())
