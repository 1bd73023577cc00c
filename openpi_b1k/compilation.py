"""Compiled programs are kept between runs: what this machine has compiled before is read from disk."""

import logging
import pathlib

import jax

from openpi_b1k import paths

logger = logging.getLogger(__name__)


def keep_programs() -> pathlib.Path | None:
    """Has JAX keep programs that take a second or longer to compile, and returns where; None: JAX was told not to.

    They are kept in the cache directory, unless $JAX_COMPILATION_CACHE_DIR names another one, and found again by
    program, devices, versions and flags; `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. Call it before
    anything is compiled. Source: JAX's persistent compilation cache.
    """
    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return None
    directory = pathlib.Path(settings["jax_compilation_cache_dir"] or paths.cache_dir() / "programs")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    logger.info("compiled programs are kept in %s", directory)
    return directory
