"""The projections of self-attention in a model: those of query, key, value and output.

They are known by the structure of a module: its type, or the names and shapes of the linear layers inside. Nothing is
guessed from the order of layers: attention that cannot be made out is named, with the reason. Names do not tell the order
of the outputs of one layer for queries, keys and values; ``initopt.schemes.layouts`` finds that out by running it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from initopt._support.words import first_few
from initopt.schemes.matrices import is_transposed_linear

__all__ = ["Attention", "Projection", "attention_layers", "find_attention", "looked_for"]

FUSED = (
    *("qkv", "to_qkv", "qkv_proj", "in_proj_qkv", "attn_qkv", "Wqkv", "wqkv", "w_qkv", "in_proj", "c_attn"),
    *("queries_keys_values", "qkv_linear"),
)
"""Names of one linear layer for queries, keys and values, which follow one another, each head by head."""

SEPARATE = (
    *(("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v")),
    *(("wq", "wk", "wv"), ("w_q", "w_k", "w_v"), ("q_lin", "k_lin", "v_lin"), ("q_linear", "k_linear", "v_linear")),
    *(("queries", "keys", "values"), ("query_proj", "key_proj", "value_proj"), ("linear_q", "linear_k", "linear_v")),
)
"""Names of three."""

OUTPUT = (
    *(
        "proj",
        "out_proj",
        "o_proj",
        "c_proj",
        "to_out",
        "wo",
        "Wo",
        "w_o",
        "o",
        "out_lin",
        "dense",
        "attention_output",
        "out",
    ),
    *("output", "fc_out", "proj_out", "out_linear", "linear_out", "output_proj", "w_out", "resid_proj"),
)
"""Names of the linear layer after attention."""

HEADS_FIRST = ("query_key_value",)
"""Names of a fused layer that holds query, key and value of the first head, then those of the second."""

HEADS = (
    "num_heads",
    "n_heads",
    "n_head",
    "heads",
    "num_attention_heads",
    "nhead",
    "num_q_heads",
    "_heads",
    "n_local_heads",
)
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
HEAD_SIZE = ("head_dim", "attention_head_size", "dim_head", "head_size", "dim_per_head")


class _UnknownLayoutError(Exception):
    """What looks like attention and is none that is known here; the message says why."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Some outputs of a linear layer.

    Attributes:
        weight: the parameter that holds the matrix.
        bias: the parameter that holds the biases, or ``None``.
        start: the first of the outputs.
        stop: the one after the last.
        transposed: whether the weight has the inputs along its first dimension.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    start: int
    stop: int
    transposed: bool = False

    @property
    def inputs(self) -> int:
        """The number of inputs of the layer."""
        return self.weight.shape[0 if self.transposed else 1]

    @property
    def outputs(self) -> int:
        """The number of outputs of the projection."""
        return self.stop - self.start

    def rows(self, like: Tensor) -> Tensor:
        """The matrix, outputs by inputs, in a tensor of the weight's shape: a view."""
        return (like.T if self.transposed else like)[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class Attention:
    """The projections of one self-attention.

    Attributes:
        name: of the module.
        query: from the stream to the queries, head by head.
        key: to the keys, of which several heads may share one (grouped queries).
        value: to the values, likewise.
        output: back to the stream.
        heads: number of heads of the queries.
        key_heads: number of heads of keys and values.
    """

    name: str
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int
    key_heads: int

    @property
    def width(self) -> int:
        """The width of the stream."""
        return self.query.inputs

    @property
    def is_fused(self) -> bool:
        """Whether one parameter holds queries, keys and values."""
        return self.query.weight is self.key.weight


def find_attention(model: nn.Module) -> tuple[list[Attention], dict[str, str]]:
    """Every self-attention of a model, and why others could not be made out, by the name of the module.

    Attention between two sequences is not among them: that of ``nn.TransformerDecoderLayer`` to the memory, and what has
    ``cross`` or ``encoder_attn`` in its name.

    >>> [found.heads for found in find_attention(nn.TransformerEncoderLayer(8, 2))[0]]
    [2]
    """
    modules = dict(model.named_modules())
    found, refused = [], {}
    for name, module in modules.items():
        parent = modules.get(name.rpartition(".")[0]) if name else None
        if _is_between_sequences(name, module, parent):
            continue
        try:
            one = _made_out(name, module, parent)
        except _UnknownLayoutError as error:
            refused[name or type(module).__name__] = str(error)
        else:
            found += [] if one is None else [one]
    return found, refused


def attention_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that look like projections of attention, also of such as :func:`find_attention` leaves out or refuses.

    >>> [layer.out_features for layer in attention_layers(nn.TransformerEncoderLayer(8, 2))]
    [8]
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            yield module.out_proj
            continue
        children = dict(module.named_children())
        signs = [each for each in (*FUSED, *HEADS_FIRST) if each in children]
        signs += [each for names in SEPARATE if all(each in children for each in names) for each in names]
        if not signs or (signs == ["in_proj"] and _attribute(module, HEADS) is None):
            continue
        yield from (children[each] for each in signs)
        output = _output(module, modules.get(name.rpartition(".")[0]) if name else None, children)
        yield from () if output is None else (output,)


def looked_for() -> str:
    """The signs by which attention is known, for a message."""
    return (
        "nn.MultiheadAttention, and modules that have one linear layer for query, key and value "
        f"({first_few(FUSED)}) or three ({first_few(['/'.join(names) for names in SEPARATE], 2)}), one for the output "
        f"({first_few(OUTPUT)}), and the number of heads ({first_few(HEADS)})"
    )


def _is_between_sequences(name: str, module: nn.Module, parent: nn.Module | None) -> bool:
    own = name.rpartition(".")[2].lower()
    if isinstance(parent, nn.TransformerDecoderLayer) and module is parent.multihead_attn:
        return True
    return any(word in own for word in ("cross", "encoder_attn", "encdec")) or hasattr(module, "q_attn")


def _made_out(name: str, module: nn.Module, parent: nn.Module | None) -> Attention | None:
    if isinstance(module, nn.MultiheadAttention):
        return _multihead(name, module)
    inner = dict(_linear_layers(module))
    for child, layer in module.named_children():
        if child in FUSED and child not in inner and any(True for _ in layer.parameters()):
            raise _UnknownLayoutError(f"{child!r} is no linear layer, but of the type {type(layer).__name__}")
    fused = next((inner[each] for each in FUSED if each in inner), None)
    separate = next((names for names in SEPARATE if all(each in inner for each in names)), None)
    if any(each in inner for each in HEADS_FIRST):
        raise _UnknownLayoutError(f"{HEADS_FIRST[0]} has the three of each head together in most libraries")
    if fused is None and separate is None:
        return None
    if fused is inner.get("in_proj") is not None and _attribute(module, HEADS) is None:
        return None  # a name that other layers have, too: that of Mamba, for one
    output = _output(module, parent, inner)
    if output is None:
        raise _UnknownLayoutError(f"it has no linear layer named like an output ({first_few(OUTPUT, 5)})")
    return _with_heads(name, module, fused, [inner[each] for each in separate or ()], output)


def _linear_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers in a module, by the name that they have in it; one in an ``nn.Sequential`` by that of this."""
    for name, child in module.named_children():
        if _is_linear(child):
            yield name, child
        elif isinstance(child, (nn.Sequential, nn.ModuleList)):
            inside = [each for each in child if _is_linear(each)]
            if len(inside) == 1:
                yield name, inside[0]


def _is_linear(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return (isinstance(module, nn.Linear) or is_transposed_linear(module)) and "weight" in own


def _output(module: nn.Module, parent: nn.Module | None, inner: dict[str, nn.Module]) -> nn.Module | None:
    """The layer after attention: in the module itself; or, as in BERT, in the one beside it."""
    for name in OUTPUT:
        if name in inner:
            return inner[name]
    beside = dict(parent.named_children()) if parent is not None else {}
    for name in ("output", "out", "proj", "o_proj", "dense"):
        other = beside.get(name)
        if other is not None and other is not module:
            return other if _is_linear(other) else dict(_linear_layers(other)).get("dense")
    return None


def _with_heads(name: str, module: nn.Module, fused: Any, separate: list[nn.Module], output: nn.Module) -> Attention:
    out = _projection(output)
    if fused is None:
        query, key, value = (_projection(each) for each in separate)
        total = query.outputs + key.outputs + value.outputs
    else:
        whole = _projection(fused)
        total = whole.outputs
    heads, size = _attribute(module, HEADS), _attribute(module, HEAD_SIZE)
    if heads is None:
        raise _UnknownLayoutError(f"it does not say how many heads it has ({first_few(HEADS, 4)})")
    size = size or out.inputs // heads
    if heads * size != out.inputs:
        raise _UnknownLayoutError(f"{heads} heads of {size} do not make the {out.inputs} inputs of its output layer")
    stated = _stated_key_heads(module)
    key_heads = (total // size - heads) // 2
    if fused is not None:
        if (otherwise := _other_order(module)) is not None:
            raise _UnknownLayoutError(f"its fused projection is not ordered as queries, keys, values: {otherwise}")
        key_heads = heads if stated is None else key_heads  # values of another size would look like fewer heads of keys
    if key_heads < 1 or (heads + 2 * key_heads) * size != total or heads % key_heads:
        beside = "" if fused is None or stated else f", and it states no other number for keys ({first_few(KEY_HEADS, 2)})"
        raise _UnknownLayoutError(f"{heads} heads of {size} do not make its {total} queries, keys and values{beside}")
    if stated is not None and stated != key_heads:
        raise _UnknownLayoutError(f"it has {stated} heads of keys by its own account, and {key_heads} by its shapes")
    if fused is not None:
        ends = [0, heads * size, (heads + key_heads) * size, total]
        query, key, value = (_projection(fused, *bounds) for bounds in pairwise(ends))
    if (query.outputs, key.outputs, value.outputs) != (heads * size, key_heads * size, key_heads * size):
        raise _UnknownLayoutError(f"query, key and value have {query.outputs}, {key.outputs} and {value.outputs} outputs")
    widths = {query.inputs, key.inputs, value.inputs, out.outputs}
    if len(widths) > 1:
        raise _UnknownLayoutError(f"it goes from width {query.inputs}, {key.inputs}, {value.inputs} to {out.outputs}")
    return Attention(name, query, key, value, out, heads, key_heads)


def _attribute(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first attribute of these that is a number, of the module or of its configuration."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _stated_key_heads(module: nn.Module) -> int | None:
    stated = _attribute(module, KEY_HEADS)
    return 1 if stated is None and getattr(module, "multi_query", None) is True else stated


def _other_order(module: nn.Module) -> str | None:
    """How the outputs of a fused layer are ordered instead, where a module of transformers has a sign of it."""
    if hasattr(module, "mp_num") or type(module).__name__.startswith("CodeGen"):  # older ones have no attribute
        return "CodeGen has queries, values and keys in several blocks"
    if getattr(module, "multi_query", None) is False:
        return "without multi_query, GPTBigCode has the three of each head together"
    if hasattr(module, "pos_att_type"):
        return "DeBERTa has the three of each head together"
    if hasattr(module, "slope_rate"):
        return "lightning attention has the three of each head together"
    return None


def _projection(module: Any, start: int = 0, stop: int | None = None) -> Projection:
    transposed = is_transposed_linear(module)
    outputs = module.weight.shape[1 if transposed else 0]
    return Projection(module.weight, module.bias, start, outputs if stop is None else stop, transposed)


def _multihead(name: str, module: nn.MultiheadAttention) -> Attention:
    own = dict(module.named_parameters(recurse=False))
    width, out = module.embed_dim, module.out_proj
    if "weight" not in dict(out.named_parameters(recurse=False)):
        raise _UnknownLayoutError("its output projection is parametrized")
    biases = module.in_proj_bias
    if "in_proj_weight" in own:
        bounds = [(i * width, (i + 1) * width) for i in range(3)]
        query, key, value = (Projection(own["in_proj_weight"], biases, *each) for each in bounds)
    elif "q_proj_weight" in own:
        raise _UnknownLayoutError(f"its keys and values have widths {module.kdim} and {module.vdim}, its queries {width}")
    else:
        raise _UnknownLayoutError("its projection is parametrized")
    return Attention(name, query, key, value, _projection(out), module.num_heads, module.num_heads)
