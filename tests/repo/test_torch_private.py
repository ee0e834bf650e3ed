"""Private names of PyTorch are used in two files, and its error messages are known in another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import initopt

SRC = Path(initopt.__file__).parent
WRAPPED = [SRC / "_support" / name for name in ("_torch_private.py", "_torch_fsdp.py")]
GALLERY = SRC / "_gallery"
"""Its models use what odd models do use, and its truth shares nothing with the engines."""

FILES = [path for path in sorted(SRC.rglob("*.py")) if path not in WRAPPED and GALLERY not in path.parents]

TORCH = {"torch", "nn", "F", "overrides", "Tensor"}
"""What modules and classes of PyTorch are called in our files."""

OF_OBJECTS = {
    "_buffers", "_parameters", "_modules", "_non_persistent_buffers_set", "_version", "_backward_hooks", "_forward_hooks",
    "_flat_weights", "_flat_weights_names", "_orig_mod", "_compiled_call_impl", "_execution_engine", "_grad_fn", "_base",
    "_saved_self", "_post_accumulate_grad_hooks", "_typed_storage", "_reset_parameters", "_schema_private",
}  # fmt: skip
"""Private attributes of tensors and modules."""


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private names of PyTorch in a file: those under its modules, imported ones, and attributes of tensors and modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if is_private(node.attr) and (root(node) in TORCH or (node.attr in OF_OBJECTS and not own)):
                yield node.attr
            if node.attr == "aten":
                yield "aten"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names if alias.name.startswith("torch") for part in alias.name.split(".")]
            yield from filter(is_private, names)
        elif isinstance(node, ast.Constant) and node.value in OF_OBJECTS:
            yield str(node.value)


@pytest.mark.heavy
def test_private_names_of_torch_are_wrapped() -> None:
    assert len(FILES) > 100
    names = {path: sorted(set(private_names(ast.parse(path.read_text(encoding="utf-8"))))) for path in FILES}
    found = {str(path): used for path, used in names.items() if used}
    assert not found, f"{found}: wrap it in {WRAPPED[0].relative_to(SRC)}, with the reason and a probe"


@pytest.mark.parametrize(
    "code",
    [
        "torch._C._functorch.maybe_current_level()",
        "from torch.nn.modules.conv import _ConvNd",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "module._buffers['x']",
        "F._verify_batch_size(x)",
        "torch.ops.aten.convolution(x)",
        "hasattr(module, '_orig_mod')",
    ],
)
def test_such_a_name_would_be_found(code: str) -> None:
    assert list(private_names(ast.parse(code)))


def test_everything_that_is_wrapped_is_used() -> None:
    from initopt._support import _torch_fsdp, _torch_private

    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert [name for name in (*_torch_private.__all__, *_torch_fsdp.__all__) if name not in text] == []
