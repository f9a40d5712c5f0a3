"""Strict JAX for every test: annotations checked, ranks and dtypes never promoted silently, two CPU devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

from jaxtyping import install_import_hook

# The hook must be in place before the first import of cora.
install_import_hook("cora", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
