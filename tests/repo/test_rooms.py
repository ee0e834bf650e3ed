"""The order of the rooms, and that each uses only what is below it."""

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import initopt
from tests.forks import python

SRC = Path(initopt.__file__).parent

ROOMS = (
    "_version",
    "_support",
    "gram",
    "batches",
    "model",
    "training",
    "zoo",
    "data",
    "engines.base",
    "engines.autograd",
    "engines.stacked",
    "engines",
    "schemes",
    "methods",
    "diagnosis",
    "runs",
    "_api",
    "diagnosis.remedies",
    "diagnosis.checking",
    "_gallery",
    "testing",
    "recipes",
    "comparison.storage",
    "comparison.spec",
    "comparison.analysis",
    "comparison.running",
    "comparison.report",
    "comparison",
    "choice",
    "integrations",
    "cli",
    "__main__",
)
"""From the ground floor up. A file is in the room with the longest name that its own name begins with."""

FOR_TESTS = ("_gallery", "testing")
"""The rooms that no other one uses, and that ``import initopt`` does not enter."""

LONGEST = 450
"""Lines of a file."""

MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.rglob("*.py"))
    if path != SRC / "__init__.py"
}


def room_of(module: str) -> str:
    rooms = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    assert rooms, f"{module} is in none of the rooms"
    return max(rooms, key=len)


@functools.cache
def imports(module: str) -> tuple[str, ...]:
    """The modules of the package that a module imports, also within its functions, but for those of types alone."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "initopt":
            above = (node.module or "").partition(".")[2]
            for alias in node.names:
                full = f"{above}.{alias.name}".lstrip(".")
                yield full if full in MODULES else above
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("initopt.") for alias in node.names if alias.name.startswith("initopt."))


def in_package(module: str) -> bool:
    """Whether a module is the ``__init__`` of a room, which gathers what the room offers."""
    return MODULES[module].name == "__init__.py"


def from_above(module: str) -> set[str]:
    """What a module imports from rooms above its own."""
    own = ROOMS.index(room_of(module))
    above = {name for name in imports(module) if name and ROOMS.index(room_of(name)) > own}
    if in_package(module):
        above = {name for name in above if not name.startswith(f"{module}.")}
    return above


# Over all files in one test each: a test takes more time to begin and end than it takes to look at a file.
def test_a_room_uses_only_the_rooms_below_it() -> None:
    assert {module: above for module in MODULES if (above := from_above(module))} == {}


def test_what_is_for_tests_is_not_for_the_package() -> None:
    package = [module for module in MODULES if room_of(module) not in FOR_TESTS]
    used = {module: [name for name in imports(module) if name and room_of(name) in FOR_TESTS] for module in package}
    assert {module: names for module, names in used.items() if names} == {}


def test_there_is_no_circle_of_imports() -> None:
    graph = {name: {used for used in imports(name) if used != name} for name in MODULES if not in_package(name)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_a_file_is_short_enough_to_be_read() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


def test_the_entrance_hall_is_empty() -> None:
    allowed = {"__init__.py", "__main__.py", "_version.py", "_api.py", "testing.py", "py.typed"}
    assert {path.name for path in SRC.iterdir() if path.is_file()} <= allowed


@pytest.mark.processes
def test_no_module_hides_behind_a_public_function() -> None:
    functions = {name for name in initopt.__all__ if callable(getattr(initopt, name))}
    assert not functions & set(MODULES)
    code = "import sys, initopt; assert all(f'initopt.{n}' not in sys.modules for n in %r)" % sorted(functions)  # noqa: UP031
    python(code).check_returncode()


@pytest.mark.processes
def test_the_package_does_not_import_what_is_for_tests() -> None:
    code = "import sys, initopt; assert not {f'initopt.{n}' for n in %r} & set(sys.modules)" % (FOR_TESTS,)  # noqa: UP031
    python(code).check_returncode()


def test_no_test_module_imports_another_one() -> None:
    tests = sorted(Path(__file__).parents[1].rglob("test_*.py"))
    assert len(tests) > 100
    importing = re.compile(r"^\s*(?:from|import) (?:tests\.)?(?:\w+\.)*test_\w+", re.MULTILINE)
    assert [str(path) for path in tests if importing.search(path.read_text(encoding="utf-8"))] == []
