"""Programs are kept between processes; each case is a process of its own, as JAX looks at its settings once."""

import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from openpi_b1k import compilation
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print("kept in", compilation.keep_programs())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print("hits", events.count("/jax/compilation_cache/cache_hits"))
print("misses", events.count("/jax/compilation_cache/cache_misses"))
"""


def run(environment: dict[str, str]) -> dict[str, str]:
    """Returns {word: what follows it} of what a process printed."""
    given = {"PATH": "", "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, check=True)
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def test_the_next_process_finds_what_this_one_has_compiled(tmp_path: pathlib.Path):
    environment = {"OPENPI_B1K_CACHE": str(tmp_path)}
    first, second = run(environment), run(environment)
    directory = str(tmp_path / "programs")
    assert first["kept in"] == second["kept in"] == first["compiled programs are kept in"] == directory
    assert (int(first["misses"]) > 0, first["hits"]) == (True, "0")
    assert (second["misses"], second["hits"]) == ("0", first["misses"])


@pytest.mark.parametrize("kept_in", ["elsewhere", "None"])
def test_jaxs_own_settings_go_first(tmp_path: pathlib.Path, kept_in: str):
    elsewhere = str(tmp_path / "elsewhere")
    settings = {
        "elsewhere": {"JAX_COMPILATION_CACHE_DIR": elsewhere},
        "None": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    }
    told = run({"OPENPI_B1K_CACHE": str(tmp_path)} | settings[kept_in])
    assert told["kept in"] == (elsewhere if kept_in == "elsewhere" else "None")
    assert not (tmp_path / "programs").exists()
