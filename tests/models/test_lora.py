"""Adapters of a tiny model, against NumPy and against the same model without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pi05_b1k_lora
from openpi_b1k import sharding
from openpi_b1k.checkpoints.rules import flatten, unflatten
from openpi_b1k.config.model import ADAPTED_PARTS, AdapterConfig, LoraConfig
from openpi_b1k.models import lora
from openpi_b1k.models.pi0 import Model
from tests import sample_cases
from tests.models.conftest import CONFIG

LORA = LoraConfig(vision=AdapterConfig(2, 6.0), language=AdapterConfig(3, 4.5), action_expert=AdapterConfig(5, 2.0))
PART = {role: part for part, role in ADAPTED_PARTS.items()}
ALL = dataclasses.replace(CONFIG, lora=LORA)
NOISE = jnp.asarray(np.random.default_rng(5).standard_normal((4, 2, 4, 6), np.float32))
TIME = jnp.linspace(0.1, 0.9, 8).reshape(4, 2)

# Shapes of the two factors in one layer of the tiny model; of kernels that are fused each has its own.
LANGUAGE = {
    "attn/q": ((32, 3), (3, 4, 16)),
    "attn/kv": ((2, 32, 3), (2, 3, 2, 16)),
    "attn/out": ((4, 16, 3), (3, 32)),
    "mlp/gate_up": ((2, 32, 3), (2, 3, 64)),
    "mlp/down": ((64, 3), (3, 32)),
}
VISION = {
    "attn/q": ((32, 2), (2, 2, 16)),
    "attn/k": ((32, 2), (2, 2, 16)),
    "attn/v": ((32, 2), (2, 2, 16)),
    "attn/out": ((2, 16, 2), (2, 32)),
    "mlp/up": ((32, 2), (2, 64)),
    "mlp/down": ((64, 2), (2, 32)),
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


def is_adapter(path):
    return path.endswith(("/lora_a", "/lora_b"))


def adapters_of(params):
    return {path: leaf for path, leaf in flatten(params).items() if is_adapter(path)}


def with_adapters(base, adapters):
    return unflatten(flatten(base) | adapters)


def some_adapters(config):
    """Returns adapters neither of whose factors is zero, as after training."""
    rng = np.random.default_rng(1)
    abstract = adapters_of(Model(config).abstract_params())
    return {path: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for path, leaf in abstract.items()}


@functools.cache
def fresh_adapters(config):
    """Returns the adapters of fresh parameters; compiled, so that nothing else is drawn."""
    return jax.jit(lambda key: adapters_of(Model(config).init_params(key)))(jax.random.key(3))


def only(role, dtype="float32"):
    """Returns the tiny model with adapters of one role, or of all."""
    lora = LORA if role == "all" else LoraConfig(**{role: getattr(LORA, role)})
    return dataclasses.replace(CONFIG, lora=lora, dtype=dtype)


def of_part(path):
    """Returns part, name of the kernel's module, and alpha / rank of an adapter's path."""
    part, name = path.split("/")[0], path.split("/")[-2]
    adapter = getattr(LORA, ADAPTED_PARTS[part])
    return part, name, adapter.alpha / adapter.rank


@functools.cache
def compiled(config):
    return jax.jit(Model(config).velocity)


def velocity(config, params, batch):
    return np.asarray(compiled(config)(params, batch.observation, NOISE, TIME))


def test_adapters_lie_beside_the_kernels_of_attention_and_mlps_and_nowhere_else():
    found = {path: leaf.shape for path, leaf in adapters_of(Model(ALL).abstract_params()).items()}
    expected = {}
    for part, depth, shapes in (("vision", 1, VISION), ("vlm", 2, LANGUAGE)):
        for name, factors in shapes.items():
            for factor, shape in zip(("lora_a", "lora_b"), factors, strict=True):
                expected[f"{part}/layers/{name}/{factor}"] = (depth, *shape)
    assert {path: shape for path, shape in found.items() if not path.startswith("action_expert/")} == expected
    expert = {path.removeprefix("action_expert/") for path in found if path.startswith("action_expert/")}
    assert expert == {path.removeprefix("vlm/") for path in expected if path.startswith("vlm/")}
    dense = {path: leaf for path, leaf in flatten(Model(ALL).abstract_params()).items() if not is_adapter(path)}
    assert dense == flatten(Model(CONFIG).abstract_params())


def test_counts_of_the_recipe():
    """By hand: rank * (inputs + outputs) of each kernel, those that are fused counted one by one."""
    counts = {"vlm": 0, "action_expert": 0}
    for path, leaf in adapters_of(Model(pi05_b1k_lora.CONFIG.model).abstract_params()).items():
        counts[path.split("/")[0]] += int(np.prod(leaf.shape))
    depth, heads, head = 18, 8 * 256, 256
    for part, rank, width, mlp in (("vlm", 16, 2048, 16384), ("action_expert", 32, 1024, 4096)):
        assert counts[part] == depth * rank * (2 * (width + heads) + 2 * (width + head) + 3 * (width + mlp))


@pytest.mark.parametrize(("role", "dtype"), [*((role, "float32") for role in PART), ("all", "bfloat16")])
def test_fresh_adapters_change_no_bit(role, dtype, params, batch):
    config = only(role, dtype)
    wanted = adapters_of(Model(config).abstract_params())
    fresh = {path: leaf for path, leaf in fresh_adapters(ALL).items() if path in wanted}
    assert {path.split("/")[0] for path in fresh} == (set(ADAPTED_PARTS) if role == "all" else {PART[role]})
    for path, leaf in fresh.items():
        assert np.any(np.asarray(leaf)) == path.endswith("/lora_a")
    base = velocity(dataclasses.replace(CONFIG, dtype=dtype), params, batch)
    np.testing.assert_array_equal(velocity(config, with_adapters(params, fresh), batch), base)
    moved = {path: leaf + 0.1 for path, leaf in fresh.items()}
    assert not np.array_equal(velocity(config, with_adapters(params, moved), batch), base)


def test_the_other_parameters_are_drawn_as_without_adapters():
    def drawn_by(config):
        params = jax.jit(Model(config).init_params)(jax.random.key(3))
        return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(params).items()}

    drawn = drawn_by(ALL)
    for path, leaf in drawn_by(CONFIG).items():
        assert drawn[path] == leaf, path


def test_a_is_uniform_within_the_inverse_root_of_what_is_summed_over():
    gemma = dataclasses.replace(CONFIG.vlm, width=256, num_heads=8, num_kv_heads=1, head_dim=64, mlp_dim=1024)
    config = dataclasses.replace(ALL, vlm=gemma, action_expert=dataclasses.replace(gemma, width=16))
    fresh = fresh_adapters(config)
    fans = {"attn/q": 256, "attn/kv": 256, "attn/out": 8 * 64, "mlp/gate_up": 256, "mlp/down": 1024}
    for name, fan_in in fans.items():
        a = np.asarray(fresh[f"vlm/layers/{name}/lora_a"])
        bound = fan_in**-0.5
        assert 0.98 * bound < np.abs(a).max() <= bound
        assert abs(a.mean()) < 4 * bound / np.sqrt(3 * a.size)
        assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
        assert not np.array_equal(a[0], a[1])  # layers
        if name in ("attn/kv", "mlp/gate_up"):
            assert not np.array_equal(a[:, 0], a[:, 1])
    drawn = [a.tobytes() for path, a in fresh.items() if path.endswith("/lora_a")]
    assert len(set(drawn)) == len(drawn)


def inputs_first(kernel, name, part):
    """Returns one layer's kernel as a matrix from inputs to outputs, or two of them if they are fused."""
    if name in ("kv", "gate_up"):
        whole = kernel.swapaxes(1, 2) if name == "kv" else kernel
        return whole.reshape(*whole.shape[:2], -1)
    if name == "q" and part != "vision":  # Gemma's heads come first
        kernel = kernel.swapaxes(0, 1)
    num_inputs = 2 if name == "out" else 1
    return kernel.reshape(int(np.prod(kernel.shape[:num_inputs])), -1)


def as_matrix(factor, which, name):
    """Returns one layer's A as [inputs, rank] or B as [rank, outputs], or two of them if they are fused."""
    count = factor.shape[:1] if name in ("kv", "gate_up") else ()
    rest = factor.shape[len(count) :]
    return factor.reshape(*count, *((-1, rest[-1]) if which == "a" else (rest[0], -1)))


def test_merged_kernels_are_those_of_numpy_and_nothing_else_changes(params):
    adapters = some_adapters(ALL)
    merged, base = flatten(lora.merge(with_adapters(params, adapters), ALL)), flatten(params)
    assert merged.keys() == base.keys()
    for path, leaf in merged.items():
        owner = path.rpartition("/")[0]
        if f"{owner}/lora_a" not in adapters or not path.endswith("/kernel"):
            assert leaf is base[path]
            continue
        part, name, scale = of_part(path)
        assert leaf.dtype == jnp.float32
        for layer, kernel in enumerate(np.asarray(leaf)):
            before = np.asarray(base[path][layer], np.float64)
            a, b = (as_matrix(np.asarray(adapters[f"{owner}/lora_{x}"][layer], np.float64), x, name) for x in "ab")
            expected = inputs_first(before, name, part) + scale * a @ b
            np.testing.assert_allclose(inputs_first(kernel, name, part), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("role", [*PART, "all"])
def test_the_merged_model_computes_what_the_adapted_one_does(role, params, batch):
    config = only(role)
    adapted = with_adapters(params, some_adapters(config))
    unmerged = velocity(config, adapted, batch)
    merged = velocity(CONFIG, lora.merge(adapted, config), batch)
    assert np.abs(unmerged - velocity(CONFIG, params, batch)).max() > 1e-2
    assert np.abs(merged - unmerged).max() <= 1e-6 * np.abs(unmerged).max()


def test_gradients_of_b_are_those_of_the_kernel_through_a(params, batch):
    """Where B is zero, d loss / d B = alpha / rank * A^T (d loss / d W), and A has no gradient."""

    def gradients(config, params):
        loss = lambda params: Model(config).loss_at(params, batch, NOISE, TIME)[0]  # noqa: E731 - differentiated
        return flatten(jax.jit(jax.grad(loss))(params))

    fresh = fresh_adapters(ALL)
    of_adapters, of_kernels = gradients(ALL, with_adapters(params, fresh)), gradients(CONFIG, params)
    last = CONFIG.vlm.depth - 1  # of the VLM's last layer only keys and values are used
    for path in fresh:
        owner, which = path[:-1], path[-1]
        part, name, scale = of_part(path)
        if which == "a":
            assert not np.any(of_adapters[path])
            continue
        for layer, found in enumerate(np.asarray(of_adapters[path])):
            kernel = np.asarray(of_kernels[f"{path.rpartition('/')[0]}/kernel"][layer], np.float64)
            a = as_matrix(np.asarray(fresh[f"{owner}a"][layer], np.float64), "a", name)
            expected = (scale * a.swapaxes(-1, -2) @ inputs_first(kernel, name, part)).reshape(found.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            assert np.any(expected) != (part == "vlm" and name != "kv" and layer == last)


def products(jaxpr):
    """Yields every matrix product of a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                body = getattr(inner, "jaxpr", inner)
                if hasattr(body, "eqns"):
                    yield from products(body)


def test_the_product_of_the_factors_is_never_made(batch):
    """Every product over the rank has tokens on one side and a factor on the other."""
    rank = 7  # no other axis has it
    config = dataclasses.replace(CONFIG, lora=LoraConfig(*[AdapterConfig(rank)] * 3))
    model = Model(config)
    traced = jax.make_jaxpr(model.velocity)(model.abstract_params(), batch.observation, NOISE, TIME)
    factors = {leaf.shape[1:] for leaf in adapters_of(model.abstract_params()).values()}
    factors |= {shape[1:] for shape in factors if shape[0] == 2}
    num_products = 0
    for equation in products(traced.jaxpr):
        (summed, _), _ = equation.params["dimension_numbers"]
        shapes = [value.aval.shape for value in equation.invars]
        if rank in [shapes[0][axis] for axis in summed]:
            num_products += 1
            assert sum(shape in factors for shape in shapes) == 1
    unused = 5  # of the last VLM layer only keys and values are used
    assert num_products == 6 * (CONFIG.vision.depth + 2 * CONFIG.vlm.depth) - unused


def test_merging_works_on_shards_under_jit_and_on_parts_of_the_tree(params):
    model, mesh = Model(ALL), sharding.make_mesh(4)
    stored = flatten(with_adapters(params, some_adapters(ALL)))
    stored |= {path: leaf.astype(jnp.bfloat16) for path, leaf in stored.items() if path.endswith("/kernel")}
    places = flatten(sharding.param_shardings(mesh, model.abstract_params(), model.logical_axes()))
    split = unflatten({path: jax.device_put(leaf, places[path]) for path, leaf in stored.items()})
    merge = jax.jit(lambda params: lora.merge(params, ALL))
    whole, merged = flatten(merge(unflatten(stored))), flatten(merge(split))
    assert merged.keys() == whole.keys()
    for path, leaf in merged.items():
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(whole[path]), rtol=1e-6, atol=1e-6)
        if path.replace("/kernel", "/lora_a") in stored and path.endswith("/kernel"):
            assert leaf.dtype == jnp.float32
            assert leaf.sharding.is_equivalent_to(places[path], leaf.ndim)
    part = {"vlm": {"layers": {"attn": {"q": split["vlm"]["layers"]["attn"]["q"]}}}}
    kernel = lora.merge(part, ALL)["vlm"]["layers"]["attn"]["q"]["kernel"]
    np.testing.assert_allclose(kernel, whole["vlm/layers/attn/q/kernel"], rtol=1e-6, atol=1e-6)


def test_factors_are_split_where_their_kernels_width_is():
    model, mesh = Model(ALL), sharding.make_mesh(4)
    places = flatten(sharding.param_shardings(mesh, model.abstract_params(), model.logical_axes()))
    spec = {path: tuple(place.spec) for path, place in places.items() if is_adapter(path)}
    fsdp = sharding.FSDP
    assert spec["vlm/layers/attn/q/lora_a"] == (None, fsdp, None)
    assert spec["vlm/layers/attn/out/lora_b"] == (None, None, fsdp)
    assert spec["action_expert/layers/mlp/gate_up/lora_a"] == (None, None, fsdp, None)
    assert spec["vision/layers/mlp/up/lora_a"] == (None, fsdp, None)


def test_on_a_mesh_it_computes_the_same(params, batch):
    adapted = with_adapters(params, some_adapters(ALL))
    model = Model(ALL, sharding.make_mesh(2))
    places = sharding.param_shardings(model.mesh, model.abstract_params(), model.logical_axes())
    split = jax.device_put(adapted, places)
    found, expected = jax.jit(model.velocity)(split, batch.observation, NOISE, TIME), velocity(ALL, adapted, batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
