"""The layers of the package, its file sizes and what may be imported where: the architecture is what this test says."""

import ast
import dataclasses
import functools
import graphlib
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = "openpi_b1k"

# Room -> rooms it may import. A room is a folder of the package, or a module directly in it.
PLAIN = {
    "downloads": set(),
    "paths": {"downloads"},
    "metrics": set(),
    "lerobot_format": set(),
    "config": set(),
    "robots": {"config"},
    "transforms": {"config", "robots", "paths"},
    "sample": {"config", "robots", "paths", "lerobot_format"},
    "rollouts": {"config", "robots", "paths", "metrics"},
}
ARRAYS = {
    "typing": set(),
    "compilation": {"paths"},
    "observation": {"typing"},
    "sharding": {"typing"},
}
SHARED = {"config", "robots", "paths", "metrics", *ARRAYS}
ROOMS = {
    **PLAIN,
    **ARRAYS,
    "data": {*SHARED, "transforms"},
    "models": SHARED,
    "checkpoints": {*SHARED, "transforms"},
    "training": {*SHARED, "data", "models", "checkpoints"},
    "serving": {*SHARED, "transforms", "models", "checkpoints"},
    "pytorch": {*SHARED, "transforms", "checkpoints", "serving"},
    "conversion": {*SHARED, "transforms", "models", "checkpoints", "serving", "pytorch"},
    "evaluation": {*SHARED, "transforms", "sample", "data", "models", "checkpoints", "serving", "rollouts"},
    "curation": {*SHARED, "lerobot_format", "transforms", "data", "rollouts"},
    "benchmarks": {
        *SHARED,
        "lerobot_format",
        "transforms",
        "sample",
        "data",
        "curation",
        "models",
        "checkpoints",
        "training",
        "serving",
    },
}
ONLY = {("checkpoints", "transforms"): {"transforms.normalize"}}  # of a room, just these modules

JAX = {"jax", "jaxlib", "jaxtyping", "flax", "optax", "orbax", "grain"}
TORCH = {"torch", "torchvision", "safetensors", "transformers"}
NOWHERE = {"omnigibson", "lerobot", "openpi", "flax.linen"}  # lerobot serves tests, and export at the edge
EXPORT = {"curation.rollouts.write_lerobot": {"lerobot"}}  # its own writer, so that its own reader opens what we export

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_SCRIPT_LINES = 59


@dataclasses.dataclass(frozen=True)
class Module:
    path: pathlib.Path
    name: str
    """Dotted, as in an import."""

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    @property
    def room(self) -> str:
        return room_of(self.name)

    @property
    def imports(self) -> set[str]:
        """Dotted names of what is imported anywhere in the file, functions included."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.path}:{node.lineno}: relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return names

    @property
    def ours(self) -> set[str]:
        return {name.removeprefix(f"{PACKAGE}.") for name in self.imports if name.startswith(f"{PACKAGE}.")}

    @property
    def foreign(self) -> set[str]:
        """Top-level names, and those of subpackages, of everything that is not ours."""
        foreign = {name for name in self.imports if name.split(".")[0] != PACKAGE}
        return {".".join(name.split(".")[:depth]) for name in foreign for depth in (1, 2)}


def room_of(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.").split(".")[0]


def modules_in(folder: str) -> list[Module]:
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    return [
        Module(path, ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"))
        for path in paths
    ]


LIBRARY = [module for module in modules_in(PACKAGE) if module.name != PACKAGE]
SCRIPTS = modules_in("scripts")
CONFIGS = modules_in("configs")
every_module = pytest.mark.parametrize("module", LIBRARY, ids=lambda module: module.name.removeprefix(f"{PACKAGE}."))
every_file = pytest.mark.parametrize("module", [*LIBRARY, *SCRIPTS, *CONFIGS], ids=lambda module: module.name)


def test_there_is_something_to_check():
    assert {"config", "models", "training", "serving"} <= {module.room for module in LIBRARY}
    assert any("jax" in module.foreign for module in LIBRARY)
    assert any("models.pi0.Model" in module.ours for module in LIBRARY)
    assert SCRIPTS
    assert CONFIGS


def test_the_layers_have_an_order():
    graphlib.TopologicalSorter(ROOMS).prepare()  # raises on a cycle
    assert not ROOMS["data"] & {"models"}
    assert not ROOMS["models"] & {"data"}
    assert not ROOMS["serving"] & {"training", "data"}
    for room in PLAIN:
        assert ROOMS[room] <= PLAIN.keys()


@every_module
def test_a_room_imports_only_rooms_below(module):
    assert module.room in ROOMS, f"{module.path} is in no known room: give it a place in ROOMS and docs/architecture.md"
    for name in module.ours:
        other = room_of(name)
        if other == module.room:
            continue
        allowed = sorted(ROOMS[module.room])
        assert other in allowed, f"{module.name} imports {name}; {module.room} may import {allowed}"
        only = ONLY.get((module.room, other))
        assert only is None or any(name.startswith(f"{one}.") or name == one for one in only), (
            f"{module.name} imports {name}; of {other}, {module.room} may import {only}"
        )


@every_module
def test_who_may_import_jax_and_torch(module):
    if module.room in PLAIN:
        assert not module.foreign & JAX
    if module.room == "pytorch":
        assert not module.foreign & JAX
    elif module.room == "conversion":  # where both models meet
        assert module.foreign & TORCH <= {"torch"}
    else:
        assert not module.foreign & TORCH
    assert not module.foreign & (NOWHERE - EXPORT.get(module.name.removeprefix(f"{PACKAGE}."), set()))


@every_module
def test_the_library_knows_neither_recipes_nor_scripts_nor_tests(module):
    assert not module.foreign & {"configs", "scripts", "tests"}


@every_module
def test_no_module_uses_what_another_hides(module):
    private = {name for name in module.ours if any(part.startswith("_") for part in name.split("."))}
    assert not private


@every_module
def test_the_library_logs_and_does_not_print(module):
    lines = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not lines


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.name)
def test_recipes_import_configs_only(module):
    assert all(name.startswith("config.") for name in module.ours)
    assert {name.split(".")[0] for name in module.foreign} <= {"configs", "dataclasses"}


@every_file
def test_files_are_short(module):
    limit = MAX_SCRIPT_LINES if module in SCRIPTS else MAX_FILE_LINES
    assert len(module.path.read_text().splitlines()) <= limit


@every_file
def test_functions_are_short(module):
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}


def loaded_after(names):
    """Returns the top-level modules that a fresh interpreter has loaded after importing `names`."""
    code = f"import sys, importlib; [importlib.import_module(name) for name in {list(names)}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_recipes_and_transforms_load_no_jax():
    loaded = loaded_after(["configs", "configs.debug", f"{PACKAGE}.config.cli", f"{PACKAGE}.transforms.pipeline"])
    assert {PACKAGE, "numpy"} <= loaded
    assert not loaded & (JAX | TORCH)


def test_the_plain_rooms_load_no_jax():
    loaded = loaded_after([module.name for module in LIBRARY if module.room in PLAIN])
    assert {PACKAGE, "av", "pyarrow"} <= loaded
    assert not loaded & (JAX | TORCH)


def test_what_torch_serves_with_loads_no_jax():
    pytest.importorskip("torch")
    loaded = loaded_after([module.name for module in LIBRARY if module.room == "pytorch"])
    assert {PACKAGE, "torch"} <= loaded
    assert not loaded & JAX
