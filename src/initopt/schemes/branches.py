"""The ends of residual branches, found by running a model: tensors that are added to those they were computed from.

While the model runs, every call of a function of torch becomes a node of a graph, with the nodes of its inputs. In a
sum ``x + f(x)`` or ``x - f(x)`` one operand is an ancestor of the other: that one is the stream, the other a branch.
Where the shortcut has a projection, neither is: then both come from the same tensor, one of them through at most one
matrix and the other through more. From the end of a branch, the way leads back through dropout, changes of shape and
constant factors to the first tensor that decides how large it is: the weight of a linear map, that of a norm after it,
or a learned scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from initopt.batches.nested import named_tensors

__all__ = ["HOMOGENEOUS", "THROUGH_ZERO", "Branch", "BranchTrace", "Branches", "End"]

_SHAPES = {
    *(
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "transpose",
        "permute",
        "movedim",
        "swapaxes",
        "unsqueeze",
        "squeeze",
        "t",
    ),
    *("expand", "narrow", "chunk", "split", "unbind", "__getitem__", "roll", "contiguous", "clone", "detach", "__get__"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "view_as", "reshape_as", "expand_as", "select"),
}
"""Functions that change no value."""

_PASSING = _SHAPES | {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "pad", "interpolate", "mean", "neg"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "fold", "unfold", "pixel_shuffle", "index_select"),
    *("boolean_dispatch", "_max_pool2d", "_max_pool1d", "_max_pool3d", "fn"),
}
"""Functions whose result is 0 where their input is, and is scaled as that is."""

HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu"})
"""Nonlinearities whose output is scaled as their input is."""

THROUGH_ZERO = frozenset({"celu", "elu", "gelu", "hardswish", "mish", "selu", "silu", "softsign", "tanh"})
"""Nonlinearities that are 0 at 0 and have a derivative there. ReLU has none: a layer of zeros in front of it stays so."""

_LIKE = {"type_as", "view_as", "reshape_as", "expand_as", "to"}
_JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}
_ADDING = {"add", "__add__", "__radd__", "__iadd__"}
_TAKING = {"sub", "subtract", "__sub__", "__isub__"}
_MULTIPLYING = {"mul", "__mul__", "__rmul__", "__imul__", "multiply"}
_SCALING = _MULTIPLYING | {"div", "__truediv__", "true_divide", "__itruediv__"}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "baddbmm", "einsum", "tensordot", "inner"}
_MATRICES = {
    *("linear", "bilinear", "addmm", "conv1d", "conv2d", "conv3d", "multi_head_attention_forward"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "lstm", "gru", "rnn_tanh", "rnn_relu"),
}


@dataclass(frozen=True, eq=False)
class End:
    """The parameter that decides how large a branch is.

    Attributes:
        weight: of a linear map, of the norm after it, or a learned scale.
        biases: what is added after it.
        is_matrix: whether it is the weight of a linear map.
        up: the weight of the linear map whose outputs, multiplied with those of a gate, are the inputs of the end, as in a
            gated perceptron; ``None`` where there is no gate, or it has the same weight.
    """

    weight: Tensor
    biases: tuple[Tensor, ...]
    is_matrix: bool
    up: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch, at one place where it joins the stream.

    Attributes:
        ends: usually one; several, where outputs of several layers are joined.
        width: of the stream there: its features or channels.
    """

    ends: tuple[End, ...]
    width: int


@dataclass(frozen=True, eq=False)
class Branches:
    """The residual branches that a run has shown.

    Attributes:
        found: the branches, in the order in which they join the stream.
        unknown: why the ends of others were not found.
        last_matrix: the weight of the linear map that ran last.
    """

    found: tuple[Branch, ...]
    unknown: tuple[str, ...]
    last_matrix: Tensor | None


class _UnknownEndError(Exception):
    """The end of a branch is none of what is known here; the message says what is there."""


@dataclass(eq=False)
class _Node:
    """A call of a function, or a tensor that came from outside."""

    name: str
    ancestors: int  # a bit for each node
    inputs: tuple[int, ...] = ()
    weight: Tensor | None = None
    parameters: tuple[Tensor, ...] = ()
    floating: bool = True
    matrix: bool = False
    shape: tuple[int, ...] = ()  # of the first tensor that it made


@dataclass(eq=False)
class _Sum:
    """A sum in which one operand may be a branch."""

    stream: int
    branch: int
    width: int


class BranchTrace(TorchFunctionMode):
    """A block in which a model runs, and is watched for residual branches.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._own = {id(parameter): parameter for parameter in model.parameters()}
        self._nodes: list[_Node] = []
        self._sums: list[_Sum] = []
        self._streams: dict[int, int] = {}
        # With the tensors themselves, so that no other gets their id.
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._derived: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._matrices = self._passing = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [tensor for _, tensor in named_tensors([list(args), kwargs])]
        result = func(*args, **kwargs)
        made = [tensor for _, tensor in named_tensors(result)] if isinstance(result, (Tensor, tuple, list)) else []
        if made and given:
            self._note(getattr(func, "__name__", ""), func, args, kwargs, given, made)
        return result

    def _note(self, name: str, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]) -> None:
        name = name if name.startswith("__") else name.removesuffix("_")
        parameters = [t for t in given if id(t) in self._own or id(t) in self._derived]
        inputs = [t for t in given if id(t) not in self._own and id(t) not in self._derived]
        if name in _NORMS or name in _LIKE:
            inputs = inputs[:1]  # the others are running statistics, and tensors whose shape or type is meant
        if not inputs:
            root = self._root(parameters[0]) if len(parameters) == 1 and name in _SHAPES else None
            self._derived |= {id(t): (t, root) for t in made}
            return
        nodes = tuple(self._node_of(t) for t in inputs)
        ancestors = 0
        for node in nodes:
            ancestors |= self._nodes[node].ancestors | 1 << node
        new = _Node(name, ancestors, nodes, parameters=tuple(parameters), floating=made[0].is_floating_point())
        new.shape = tuple(made[0].shape)
        new.matrix = bool(parameters) and (name in _MATRICES or name in _PRODUCTS)
        if new.matrix:
            new.weight = self._root(_weight(name, func, args, kwargs, parameters))
        elif name in _NORMS:
            scales = [kwargs.get("weight"), *args[(3 if name in ("batch_norm", "instance_norm") else 2) :]]
            new.weight = next((self._root(t) for t in scales if isinstance(t, Tensor)), None)
        elif name in _SCALING and len(parameters) == 1:
            new.weight = self._root(parameters[0])
        number = len(self._nodes)
        self._nodes.append(new)
        self._matrices |= new.matrix << number
        self._passing |= (new.matrix or name in _PASSING | _JOINING | _NORMS | HOMOGENEOUS) << number
        if name in _ADDING | _TAKING and len(inputs) == 2 and made[0].ndim > 1 and inputs[0].shape == inputs[1].shape:
            self._look_at_sum(number, *nodes)
        self._known |= {id(t): (t, number) for t in made}

    def _root(self, tensor: Tensor) -> Tensor | None:
        """The parameter that a tensor is, but for its shape; ``None`` if it was computed from some."""
        return self._own.get(id(tensor)) if id(tensor) in self._own else self._derived[id(tensor)][1]

    def _node_of(self, tensor: Tensor) -> int:
        if id(tensor) not in self._known:
            self._nodes.append(_Node("", 0, floating=tensor.is_floating_point()))
            self._known[id(tensor)] = (tensor, len(self._nodes) - 1)
        return self._known[id(tensor)][1]

    def _look_at_sum(self, result: int, left: int, right: int) -> None:
        ways = [self._nodes[each].ancestors | 1 << each for each in (left, right)]
        own = [ways[0] & ~ways[1], ways[1] & ~ways[0]]
        through = [(each & self._matrices).bit_count() for each in own]
        common = ways[0] & ways[1]
        if left == right or not common or not self._nodes[common.bit_length() - 1].floating:
            return
        difference = self._nodes[result].name in _TAKING
        orders = ((left, right, 0), (right, left, 1))[: 1 if difference else 2]  # in f(x) - x, the stream turns around
        for stream, branch, i in orders:
            if not own[i]:  # the stream itself is an ancestor of the branch
                if through[1 - i]:
                    self._join(result, stream, branch)
                return
        for sum_, branch, i in orders:
            stream = self._streams.get(sum_, -1)  # x + f(x) + g(x), where g does not see f(x)
            if stream >= 0 and ways[1 - i] >> stream & 1 and through[1 - i]:
                self._join(result, stream, branch)
                return
        for stream, branch, i in () if difference else orders:  # two outputs that are compared are not a shortcut
            if through[i] <= 1 and through[1 - i] > through[i] and not own[i] & ~self._passing:
                self._join(result, stream, branch)
                return

    def _join(self, result: int, stream: int, branch: int) -> None:
        self._sums.append(_Sum(stream, branch, self._width(result, branch)))
        self._streams[result] = stream

    def _width(self, result: int, branch: int) -> int:
        """How many features or channels a sum has.

        Which dimension they are along is told by the last matrix of the branch: the last one, or, of a convolution, the one
        before those of places. Its number of outputs may have gone to another dimension since, as in ConvNeXt.
        """
        last = self._nodes[((self._nodes[branch].ancestors | 1 << branch) & self._matrices).bit_length() - 1]
        along = -1 - int(last.name[-2]) if last.name.startswith("conv") else -1
        shape = self._nodes[result].shape
        outputs = last.shape[along] if last.shape else 0
        return outputs if outputs in shape[1:] else shape[along if -along <= len(shape) else -1]

    def branches(self, through: Collection[str] = HOMOGENEOUS | THROUGH_ZERO) -> Branches:
        """The branches that were found.

        Args:
            through: nonlinearities that may stand behind the end of a branch.
        """
        found: list[Branch] = []
        unknown: list[str] = []
        for each in self._sums:
            stop = self._nodes[each.stream].ancestors | 1 << each.stream
            for node, biases in self._summands(each.branch, ()):
                try:
                    found.append(Branch(tuple(self._ends(node, biases, stop, through)), each.width))
                except _UnknownEndError as error:
                    unknown.append(str(error))
        matrices = [node.weight for node in self._nodes if node.matrix and node.weight is not None]
        return Branches(tuple(found), tuple(unknown), matrices[-1] if matrices else None)

    def _summands(self, number: int, biases: tuple[Tensor, ...]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """The terms of a branch that is itself a sum of outputs, as where attention and perceptron are parallel."""
        node = self._nodes[number]
        if node.name in _ADDING and len(node.inputs) == 2:
            for each in node.inputs:
                yield from self._summands(each, biases)
        else:
            yield number, biases

    def _ends(self, number: int, biases: tuple[Tensor, ...], stop: int, through: Collection[str]) -> Iterator[End]:
        while True:
            node = self._nodes[number]
            if stop >> number & 1:
                raise _UnknownEndError("it has a part that goes around all its layers")
            if node.matrix or node.name in _NORMS or (node.name in _SCALING and node.parameters):
                yield self._end(node, biases)
                return
            if node.name in _ADDING and len(node.inputs) == 1:
                biases += tuple(t for p in node.parameters if (t := self._root(p)) is not None)
            elif (node.name in _ADDING or node.name in _JOINING) and len(node.inputs) > 1:
                for each in node.inputs:
                    yield from self._ends(each, biases, stop, through)
                return
            elif node.name in _SCALING and len(node.inputs) == 2:  # by a gate that is computed from what it is to scale
                number = self._gated(*node.inputs)
                continue
            elif not (node.name in _PASSING | _JOINING | _SCALING or node.name in through) or len(node.inputs) != 1:
                raise _UnknownEndError(f"it ends in {node.name or 'a tensor from outside'!r}")
            number = node.inputs[0]

    def _gated(self, left: int, right: int) -> int:
        if self._nodes[right].ancestors >> left & 1:
            return left
        if self._nodes[left].ancestors >> right & 1:
            return right
        raise _UnknownEndError("it ends in 'mul' of two layers")

    def _end(self, node: _Node, biases: tuple[Tensor, ...]) -> End:
        if node.weight is None or node.name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            has = "a weight that is computed from parameters" if node.parameters else "no weight"
            raise _UnknownEndError(f"it ends in {node.name!r} with {has}")
        vectors = [t for p in node.parameters if (t := self._root(p)) is not None and t.ndim == 1 and t is not node.weight]
        if node.name == "multi_head_attention_forward":  # the others are of the projections before
            vectors = [t for t in vectors if t.shape == node.weight.shape[:1]][-1:]
        return End(node.weight, (*vectors, *biases), node.matrix, self._up(node) if node.matrix else None)

    def _up(self, end: _Node) -> Tensor | None:
        product = self._nodes[self._layer_behind(end.inputs[0])[0]]
        if product.name not in _MULTIPLYING or len(product.inputs) != 2:
            return None
        sides = [self._layer_behind(each, HOMOGENEOUS | THROUGH_ZERO | {"sigmoid"}) for each in product.inputs]
        ups = [self._nodes[layer].weight for layer, bent in sides if self._nodes[layer].matrix and not bent]
        gates = [self._nodes[layer].weight for layer, bent in sides if self._nodes[layer].matrix and bent]
        return ups[0] if ups and gates and ups[0] is not gates[0] else None

    def _layer_behind(self, number: int, through: Collection[str] = ()) -> tuple[int, bool]:
        """What a tensor comes from, before changes of shape and such functions, and whether there was one of these."""
        bent = False
        while len((node := self._nodes[number]).inputs) == 1 and (node.name in _PASSING or node.name in through):
            bent |= node.name in through
            number = node.inputs[0]
        return number, bent


def _weight(name: str, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Tensor:
    """The parameter of a linear map that decides how large its output is."""
    if func is F.multi_head_attention_forward:
        weight: Tensor = inspect.signature(func).bind(*args, **kwargs).arguments["out_proj_weight"]
        return weight
    large = [parameter for parameter in parameters if parameter.ndim > 1]
    return (large or parameters)[-1]
