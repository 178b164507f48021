"""With the TPU compiler, where libtpu is installed."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from runs import ROOT

THERE = importlib.util.find_spec("libtpu") is not None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not THERE, reason="libtpu is not installed")]


def plan(*argv):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-m", "simclr_jax.plan", f"--config={ROOT}/configs/simclr_digits.py",
                           "--nolargest", "--json", *argv], cwd=ROOT, text=True, capture_output=True,
                          env=dict(os.environ, PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pod_that_is_not_there():
    r = plan("--topology=v3:2x2", "--config.nets.backbone.channels=(4,)", "--config.augment.where=host")
    assert r["devices"] == 8 and r["fits"] and r["memory_bytes"]["limit"] == 16 << 30
    assert r["bound_by"] in ("products", "memory", "links") and r["time_bound_s"] == max(r["bounds_s"].values())
    assert r["compiler_time_s"] is None or r["compiler_time_s"] > 0
    assert r["collectives"]["all-reduce"]["bytes"] > 0 and r["images_per_s"] > 0 and r["hours"] > 0


def test_what_does_not_fit_is_an_answer():
    r = plan("--topology=v5e:1x1", "--config.batch=8388608", "--config.augment.where=host")
    assert not r["fits"] and r["memory_bytes"]["total"] > r["memory_bytes"]["limit"]
