"""Eight simulated CPU devices for every test; a test that cannot have them fails rather than passing on one."""
import atexit
import importlib.metadata
import os
import shutil
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile more than they compute: with less effort of the code generator they take two thirds of the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# `make test` leaves out the slower of this version's two code generators, which `make test-all` and users have; newer
# versions know no such flag.
if "not slow" in sys.argv and importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # many tests and their processes run the same program: compile it once
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="simclr_jax_tests_")
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

import scorecard  # noqa: E402
from simclr_jax import dist  # noqa: E402


def pytest_addoption(parser):
    scorecard.addoption(parser)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    scorecard.mark(item, report)
    return report


def pytest_runtest_logreport(report):
    scorecard.note(report)


def pytest_sessionfinish(session):
    path = session.config.getoption("--scorecard")
    if path and not hasattr(session.config, "workerinput"):  # pytest-xdist's workers have one
        import platform
        scorecard.write(path, f"Python {platform.python_version()}, jax {jax.__version__}, {os.cpu_count()} CPU cores")


def pytest_configure(config):
    if jax.device_count() != 8:
        raise pytest.UsageError(f"the tests need 8 simulated CPU devices and found {jax.device_count()}")


@pytest.fixture
def mesh():
    """`mesh(n)`: a data mesh over n of the 8 devices."""
    return lambda n: dist.make_mesh({"data": n}, jax.devices()[:n])
