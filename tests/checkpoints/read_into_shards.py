"""Writes weights, or reads them onto meshes of eight fake devices and says what that took, for test_shares.py."""

import json
import os
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from configs import debug
from openpi_b1k import sharding
from openpi_b1k.checkpoints import openpi_rules
from openpi_b1k.checkpoints.params import load_params
from openpi_b1k.config.model import GemmaConfig, ModelConfig
from openpi_b1k.models.pi0 import Model

LARGE = GemmaConfig(width=1024, depth=8, mlp_dim=1024, num_heads=8, num_kv_heads=1, head_dim=128)
SMALL = GemmaConfig(width=256, depth=8, mlp_dim=512, num_heads=8, num_kv_heads=1, head_dim=128)
CONFIG = ModelConfig(
    vision=debug.CONFIG.model.vision, vlm=LARGE, action_expert=SMALL, vocab_size=16384, image_size=28, dtype="bfloat16"
)


def abstract(fsdp: int):
    """Returns the parameters, the VLM's kernels in bfloat16 as frozen ones are, and their shardings."""
    model = Model(CONFIG)
    params = model.abstract_params()
    params["vlm"] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if leaf.ndim > 2 else leaf.dtype), params["vlm"]
    )
    return params, sharding.param_shardings(sharding.make_mesh(fsdp), params, model.logical_axes())


def write(path: pathlib.Path) -> None:
    """Writes float32 weights as one device does, so that each array is one piece."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract(1)[0])
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, openpi_rules.with_value_leaves(openpi_rules.to_openpi(params)))


def memory_mb(name: str) -> float:
    """Returns a figure of this process's memory in MB: VmRSS, what it has, or VmHWM, the most it had."""
    found = re.search(rf"{name}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6


def read(path: pathlib.Path, fsdp: int, before: float) -> dict[str, float]:
    """Returns MB: per device, of all devices, of the largest array, and of this process beside the devices' memory.

    `before` is what the process had before it read anything: what an earlier reading has not given back counts.
    """
    params, shardings = abstract(fsdp)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    loaded = jax.block_until_ready(load_params(path, params, shardings))
    peak = memory_mb("VmHWM")
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(loaded):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return {
        "fsdp": fsdp,
        "per_device": max(held.values()) / 1e6,
        "all": sum(held.values()) / 1e6,
        "whole": sum(leaf.nbytes for leaf in jax.tree.leaves(loaded)) / 1e6,
        "largest_stored": max(leaf.size for leaf in jax.tree.leaves(loaded)) * 4 / 1e6,
        "beside": peak - before - sum(held.values()) / 1e6,
    }


def main() -> None:
    """Writes to, or reads from, the directory that the first argument names."""
    directory, output = map(pathlib.Path, sys.argv[1:])
    if not directory.exists():
        write(directory)
    else:
        jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))
        before = memory_mb("VmRSS")
        output.write_text(json.dumps([read(directory, fsdp, before) for fsdp in (8, 4, 2, 1)]))
    os._exit(0)  # at once: there is nothing to close


if __name__ == "__main__":
    main()
