"""What no other test sees: imports go down, insides stay inside, what is public is documented."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiopubsub

ROOT = Path(aiopubsub.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A file may import those above it in this table, within a layer too (docs/design.md, "The house").
LAYERS = [
    [
        "checks",
        "stats",
        "errors",
        "keys",
        "slots",
        "position",
        "topic",
        "since",
        "options",
        "frame",
        "message",
        "mailbox",
    ],
    ["dialogue", "trail", "routes", "reads", "deliveries", "router", "append", "line", "outbox", "lookout"],
    ["wire", "memory_streams", "memory"],
    ["session"],
    ["link", "deployment", "sentinel", "nodes", "cluster_router", "cluster_outbox", "cluster"],
    ["client"],
    ["intake", "cursor", "publisher", "subscriber"],
    ["testing", "contrib", "bench", "cli", "__init__", "__main__"],
]
RANK = {name: rank for rank, name in enumerate(name for layer in LAYERS for name in layer)}

# for types only: an error holds a gap, and gaps know nothing of errors
FOR_TYPES_ONLY = {("errors", "message")}

STATE_THAT_IS_MEANT = {("memory", "_servers")}  # one server for all who say `memory://`, see there

each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])


def module_of(path: Path) -> str:
    """The name in the table of layers: a package counts as one."""
    relative = path.relative_to(ROOT)
    return relative.stem if len(relative.parts) == 1 else relative.parts[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def type_checking_blocks(tree: ast.Module) -> set[ast.AST]:
    """Every node under `if TYPE_CHECKING:`."""
    return {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports, absolute and in full, and whether it is for types only."""
    tree = parse(path)
    for_types = type_checking_blocks(tree)
    package = ["aiopubsub", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            yield from ((".".join([*parts, alias.name]), node in for_types) for alias in node.names)


def test_every_file_has_its_layer() -> None:
    """A new file is put into the table, and a file that is gone is taken out."""
    assert {module_of(path) for path in FILES} == set(RANK)


@each_file
def test_imports_go_down(path: Path) -> None:
    """No file imports from its own layer's later files or from layers above it, not even for types."""
    importer = module_of(path)
    for imported, is_for_types in imports_of(path):
        package, _, rest = imported.partition(".")
        if package != "aiopubsub":
            continue
        target = rest.split(".")[0]
        target = target if target in RANK else "__init__"  # `import aiopubsub`, or a name out of it
        if target == importer or (importer, target) in FOR_TYPES_ONLY:
            assert target == importer or is_for_types, f"{importer} imports {target} at run time"
            continue
        if importer in LAYERS[-1] and target == "__init__":
            continue  # faces use the library as users do
        assert RANK[target] < RANK[importer], f"{importer} imports {target}"


@each_file
def test_only_the_wire_knows_foreign_insides(path: Path) -> None:
    """hiredis and redis-py are imported by `wire` alone; the bench measures them, `testing` uses them."""
    both = ("hiredis", "redis")
    allowed = {"wire": both, "bench": both, "testing": ("redis",), "client": ("redis.asyncio",)}.get(
        module_of(path), ()
    )
    for imported, _ in imports_of(path):
        if imported.split(".")[0] in ("hiredis", "redis"):
            assert any((imported + ".").startswith(name + ".") for name in allowed), imported
            if module_of(path) == "client":
                assert imported == "redis.asyncio", "the type of a source is all that a client needs"


@each_file
def test_no_state_in_modules(path: Path) -> None:
    """At the top of a module there is no list, dict or set that is not a constant by its name."""
    makers = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter", "bytearray"}
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for node in parse(path).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [ast.unparse(target) for target in targets]
        value = node.value
        called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
        is_mutable = isinstance(value, displays) or called in makers or called.startswith("Weak")
        for name in names:
            is_constant = name.isupper() or name == "__all__"
            is_meant = (module_of(path), name) in STATE_THAT_IS_MEANT
            assert not is_mutable or is_constant or is_meant, f"{name} is state of the module"


@each_file
def test_no_function_changes_its_module(path: Path) -> None:
    """No file says `global`."""
    assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.Global)]


@each_file
def test_every_file_says_what_it_is_for(path: Path) -> None:
    """A file begins with a docstring, and is no longer than can be read at a stretch."""
    assert ast.get_docstring(parse(path)), "no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def dotted(path: Path) -> str:
    """A file as `import` has it."""
    parts = ["aiopubsub", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def public_names() -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for path in FILES:
        if path.stem == "__main__" or module_of(path) == "cli":
            continue
        module = importlib.import_module(dotted(path))
        for public in getattr(module, "__all__", ()):
            found[f"{module.__name__}.{public}"] = getattr(module, public)
    return sorted(found.items())


PUBLIC = public_names()


def methods_of_protocols() -> set[str]:
    """Methods that a protocol documents, for all who have them; `outbox.Promise` is a future's."""
    return {
        name
        for value in [*(value for _, value in PUBLIC), asyncio.Future]
        if getattr(value, "_is_protocol", False) or value is asyncio.Future
        for name, member in vars(value).items()
        if not name.startswith("_") and getattr(member, "__doc__", None)
    }


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_what_is_public_is_documented(name: str, value: Any) -> None:
    """A public class or function has a docstring, and so has each public method of a class."""
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return  # a constant or the alias of a type
    if value.__module__.split(".")[0] != "aiopubsub":
        return  # another library's, under our name
    assert value.__doc__, f"{name} has no docstring"
    if not inspect.isclass(value):
        return
    fields = set(value.__doc__.split())
    told = methods_of_protocols()
    for attribute, member in vars(value).items():
        if attribute.startswith("_") or f"{attribute}:" in fields or attribute in told:
            continue
        if inspect.isfunction(member) or isinstance(member, (property, staticmethod, classmethod)):
            assert inspect.getdoc(getattr(value, attribute)), f"{name}.{attribute} has no docstring"


@pytest.mark.parametrize(
    "path", [path for path in FILES if module_of(path) not in ("cli", "__main__")], ids=dotted
)
def test_all_is_complete(path: Path) -> None:
    """Each module says what is public, and each name of it is there, once."""
    module = importlib.import_module(dotted(path))
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public
