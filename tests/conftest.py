"""Strict JAX for every test: annotations checked, ranks and dtypes never promoted silently, two CPU devices.

Networks are so small here that a test is all compiling, so nothing is optimised, and what one worker or program of a
session has compiled is kept for the others until the session ends.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = ("--xla_force_host_platform_device_count=2", "--xla_backend_optimization_level=0",
         "--xla_llvm_disable_expensive_passes=true")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))

from jaxtyping import install_import_hook  # noqa: E402

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and programs inherit it from the first process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cora-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# The hook must be in place before the first import of cora.
install_import_hook("cora", "beartype.beartype")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SLOW = ("train", "rules", "cli", "pcx", "objectives", "learning", "wheel", "mix")
"""Files whose tests take longest, the longest first."""


def pytest_collection_modifyitems(items):
    """Long files begin first, so that no worker is left with one when the others are done."""
    order = {f"test_{name}.py": rank for rank, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def as_users_have_it():
    """Without the checks of annotations that stand before everything here."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
