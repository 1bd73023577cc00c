"""A stored model of openpi's against ours: outputs and gradients from its parameters, inputs, noise and times.

Tolerances are those of the stored references. In float32, 2e-5 absolute on outputs, 1e-5 relative on the loss, 1e-4
relative on gradient norms. In bfloat16, 2e-2 of a quantity's largest entry: one bit of an entry above 4 is 0.03. With
adapters, 2e-5 of the largest entry for the expert's output and the velocity: merged kernels round otherwise than
factors applied one after the other, and the stored velocity itself is 3e-5 away from the same model in float64.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from openpi_b1k.checkpoints import openpi_lora, openpi_rules, rules
from openpi_b1k.config.model import GemmaConfig, ModelConfig, SiglipConfig
from openpi_b1k.evaluation.parity import Comparison, Reference, Results, largest_error
from openpi_b1k.models import flow_matching
from openpi_b1k.models.pi0 import Model
from openpi_b1k.observation import Batch, Observation
from openpi_b1k.typing import Array, Params

_EXPERTS = {"vlm": "paligemma", "action_expert": "action_expert"}  # the names of `meta`
_BLOCK = "params/PaliGemma/img/Transformer/encoderblock"
# A bias on keys shifts all scores of a query alike and cancels in the softmax: its gradient is zero but for rounding.
_VANISHING = "MultiHeadDotProductAttention_0/key/bias"


def compare(reference: Reference) -> Results:
    """Returns the comparison of every output and of the largest gradient error."""
    meta = json.loads(bytes(reference["meta"]))
    model = Model(model_config(meta, reference))
    leaves = stored_params(meta, reference)
    rules.require_same_keys(leaves, rules.flatten(model.abstract_params()), "the reference")
    params = rules.unflatten(jax.tree.map(jnp.asarray, leaves))
    batch = stored_batch(reference)
    noise, time = jnp.asarray(reference["input/noise"]), jnp.asarray(reference["input/time"])
    with jax.default_matmul_precision("highest" if meta["dtype"] == "float32" else "default"):
        ours, grad_norms = run(model, params, batch, noise, time)
    is_float32 = meta["dtype"] == "float32"
    tolerances = _Tolerances(is_float32, any(meta[expert]["lora_configs"] for expert in _EXPERTS.values()))
    return _compare_outputs(ours, reference, tolerances) + _compare_gradients(grad_norms, reference, is_float32)


def stored_params(meta: dict, reference: Reference) -> dict[str, np.ndarray]:
    """Returns the stored parameters under our names, adapters merged with what openpi makes of them."""
    leaves = {name.removeprefix("params/"): leaf for name, leaf in reference.items() if name.startswith("params/")}
    stored = rules.rename(leaves, (*openpi_rules.FROM_OPENPI, *openpi_lora.FROM_OPENPI))
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}
    merged = {}
    for name in openpi_lora.adapted_kernels(shapes, "the reference"):
        a, b = (stored[factor] for factor in openpi_lora.factors_of(name))
        adapter = meta[_EXPERTS[name.split("/")[0]]]["lora_configs"]["attn"]
        merged[name] = openpi_lora.merge(name, stored[name], a, b, adapter["alpha"] / adapter["rank"])
    return {name: leaf for name, leaf in stored.items() if not openpi_lora.is_factor(name)} | merged


def model_config(meta: dict, reference: Reference) -> ModelConfig:
    """Returns the config of a stored model: experts from its `meta`, the vision tower from its parameters."""
    vlm, action_expert = (
        GemmaConfig(**{name: size for name, size in meta[expert].items() if name != "lora_configs"})
        for expert in _EXPERTS.values()
    )
    depth, width, num_heads, _ = reference[f"{_BLOCK}/MultiHeadDotProductAttention_0/query/kernel"].shape
    mlp_dim = reference[f"{_BLOCK}/MlpBlock_0/Dense_0/kernel"].shape[-1]
    patch_size = reference["params/PaliGemma/img/embedding/kernel"].shape[0]
    image = next(array for name, array in reference.items() if name.startswith("input/image/"))
    return ModelConfig(
        kind="pi05" if meta["pi05"] else "pi0",
        vision=SiglipConfig(width, depth, mlp_dim, num_heads, patch_size),
        vlm=vlm,
        action_expert=action_expert,
        vocab_size=reference["params/PaliGemma/llm/embedder/input_embedding"].shape[0],
        image_size=image.shape[1],
        action_dim=meta["action_dim"],
        action_horizon=meta["action_horizon"],
        max_prompt_tokens=meta["max_token_len"],
        dtype=meta["dtype"],
        remat="none",
    )


def stored_batch(reference: Reference) -> Batch:
    """Returns the stored inputs; every action counts. Cameras keep their names, whose order is openpi's."""

    def named(prefix: str) -> dict[str, Array]:
        return {k.removeprefix(prefix): jnp.asarray(v) for k, v in reference.items() if k.startswith(prefix)}

    observation = Observation(
        images=named("input/image/"),
        image_masks=named("input/image_mask/"),
        state=jnp.asarray(reference["input/state"]),
        prompt_tokens=jnp.asarray(reference["input/tokenized_prompt"]),
        prompt_mask=jnp.asarray(reference["input/tokenized_prompt_mask"]),
    )
    actions = jnp.asarray(reference["input/actions"])
    return Batch(observation, actions, jnp.ones(actions.shape, bool))


def run(
    model: Model, params: Params, batch: Batch, noise: Array, time: Array
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns ours of every `output/` quantity, and the L2 norm of the loss's gradient per openpi parameter name."""

    def forward(params: Params, batch: Batch) -> tuple[Array, dict[str, Array]]:
        network = model.network(params)
        prefix = network.embed_prefix(batch.observation)
        path, target = flow_matching.flow_path(batch.actions[:, None], noise[:, None], time[:, None])
        keys_values, mask = network.read_prefix(batch.observation)
        suffix_out = network.expert_output(keys_values, mask, batch.observation.state, path, time[:, None])
        velocity = network.suffix.velocity(suffix_out)
        loss, _ = flow_matching.masked_mean_loss(velocity, target, batch.action_mask)
        return loss, {
            "prefix_tokens_mean": jnp.mean(prefix.tokens.astype(jnp.float32), axis=(0, 1)),
            "suffix_out": suffix_out[:, 0].astype(jnp.float32),
            "velocity": velocity[:, 0],
            "loss_per_step": jnp.mean(jnp.square(velocity - target), axis=-1)[:, 0],
            "loss": loss,
        }

    gradient, ours = jax.jit(jax.grad(forward, has_aux=True))(params, batch)
    sample = jax.jit(model.sample_actions, static_argnames="num_flow_steps")
    for steps in (10, 3):
        ours[f"actions_{steps}_steps"] = sample(params, batch.observation, noise, num_flow_steps=steps)
    leaves = rules.flatten(openpi_rules.to_openpi(gradient))
    grad_norms = {name: float(np.linalg.norm(np.asarray(leaf, np.float64))) for name, leaf in leaves.items()}
    return jax.tree.map(np.asarray, ours), grad_norms


@dataclasses.dataclass(frozen=True)
class _Tolerances:
    is_float32: bool
    has_adapters: bool


def _compare_outputs(ours: dict[str, np.ndarray], reference: Reference, tolerances: _Tolerances) -> Results:
    results: Results = []
    for name, value in ours.items():
        theirs = reference[f"output/{name}"]
        error, largest = largest_error(value, theirs), float(np.max(np.abs(theirs)))
        if not tolerances.is_float32:
            results.append(Comparison(name, error / largest, 2e-2, "of the largest entry"))
        elif name.startswith("loss"):
            results.append(Comparison(name, error / largest, 1e-5, "relative"))
        elif tolerances.has_adapters and name in ("suffix_out", "velocity"):
            results.append(Comparison(name, error / largest, 2e-5, "of the largest entry"))
        else:
            results.append(Comparison(name, error, 2e-5))
    return results


def _compare_gradients(ours: dict[str, float], reference: Reference, is_float32: bool) -> Results:
    tolerance = 1e-4 if is_float32 else 2e-2
    # Of a model with adapters only those norms are stored that its owners train, and ours has no adapters any more.
    theirs = {name: float(reference[f"grad_norm/{name}"]) for name in ours if f"grad_norm/{name}" in reference}
    overall = float(np.linalg.norm(list(theirs.values())))
    vanishing = [name for name in theirs if name.endswith(_VANISHING)]
    results: Results = [
        Comparison("gradient of the key bias", max(ours[name] for name in vanishing) / overall, tolerance, "of all")
    ]
    errors = {
        name: abs(ours[name] - norm) / norm if norm else abs(ours[name])
        for name, norm in theirs.items()
        if name not in vanishing
    }
    results.append(Comparison("gradient norms", max(errors.values()), tolerance, "relative, the worst"))
    return results
