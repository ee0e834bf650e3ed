"""Give a whole model new weights by a scheme."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from initopt._support.checks import check_integer
from initopt._support.words import counted, first_few
from initopt.model.losses import LossFunction, as_loss
from initopt.model.parameters import ParameterFilter, select, trainable_parameters
from initopt.model.preserve import Kept, preserving, put_values
from initopt.model.sharded import is_sharded
from initopt.model.wrappers import bare
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.registry import SCHEMES, create_scheme

__all__ = ["Applied", "apply_"]


@dataclass(frozen=True)
class Applied:
    """The tensors that a scheme has set.

    Attributes:
        gains: the gain of every tensor that was drawn, by name; empty for the schemes that have none.
        nonlinearities: the nonlinearity that follows each, where one was looked for and found.
        set: the names of all tensors that have new values, biases included.
        left: the names of the trainable tensors that keep their old values.
        roles: the role in which a scheme has taken each tensor, by name, such as ``"branch end"`` or
            ``"query, key, value"``; empty for the schemes that draw all matrices alike.
        scheme: the name of the scheme.
    """

    gains: dict[str, float]
    nonlinearities: dict[str, str]
    set: tuple[str, ...]
    left: tuple[str, ...]
    roles: dict[str, str] = field(default_factory=dict)
    scheme: str = ""

    def __str__(self) -> str:
        lines = [f"{self.scheme}: {counted(len(self.set), 'tensor')} set, {len(self.left)} left as they were"]
        for role in dict.fromkeys(self.roles.values()):
            names = [name for name, other in self.roles.items() if other == role]
            lines.append(f"  {role}: {first_few(names)}")
        if not self.set:
            return "\n".join([*lines, "Nothing in this model is for this scheme: the weights are your own."])
        look = "Look whether these are what they are taken for, then train" if self.roles else "Train from these weights"
        return "\n".join([*lines, f"{look}, or improve them first: initopt.nio(model, batches)."])


def apply_(
    model: nn.Module,
    scheme: str | Scheme,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    params: ParameterFilter | None = None,
    seed: int | None = None,
    **options: Any,
) -> Applied:
    r"""Give a model new weights by a scheme, in place.

    The first schemes are those of :mod:`torch.nn.init`. They draw the weights of linear maps: of linear and bilinear
    layers, convolutions (transposed ones with their fans the right way round), attention (query, key and value each) and
    recurrent layers (gate by gate). The biases of these modules become 0. Everything else keeps its values: embeddings, and
    weights that are tied to one; norms; parametrized weights, since what can be drawn there is not the weight; parameters
    of modules of other types; what is frozen; buffers.

    =====================  =====================================================================================
    scheme                 weights, with fans in and out and the gain :math:`\gamma`
    =====================  =====================================================================================
    ``"default"``          what ``reset_parameters()`` of each module draws, biases, embeddings and norms included
    ``"kaiming_normal"``   normal with standard deviation :math:`\gamma / \sqrt{\text{fan}}`, and ``mode`` says which fan
    ``"kaiming_uniform"``  uniform with the same deviation
    ``"xavier_normal"``    normal with standard deviation :math:`\gamma \sqrt{2 / (\text{in} + \text{out})}`
    ``"xavier_uniform"``   uniform with the same deviation
    ``"orthogonal"``       :math:`\gamma` times a matrix with orthonormal rows or columns
    ``"normal"``           normal with standard deviation ``std``
    ``"trunc_normal"``     the same, cut off at two of them
    =====================  =====================================================================================

    The others know transformers, residual networks and images. They set what the table says, and leave the rest:

    =====================  =====================================================================================
    scheme                 weights, for residual branches that start at N places, and a stream of width d
    =====================  =====================================================================================
    ``"mimetic"``          self-attention: products of query and key near the identity, of value and output near the
                           negative identity (:class:`initopt.schemes.Mimetic`)
    ``"zero_branches"``    ends of residual branches become 0: a weight, or that of the norm after it
    ``"scaled_branches"``  ends of residual branches times :math:`1 / \sqrt N`
    ``"gpt2"``             all: normal, 0.02; branch ends :math:`0.02 / \sqrt N`; positions 0.01
    ``"llama_depth"``      all: normal, 0.02, cut off at three of them; ends in layer l (from 0), and matrices beside a
                           gate, :math:`0.02 / \sqrt{2 (l + 1)}`; embeddings 1; the last matrix :math:`1 / \sqrt d`
    ``"small_init"``       all: normal, :math:`\sqrt{2 / (5 d)}`; branch ends :math:`4 / (N \sqrt d)`
    ``"dirac"``            convolutions, and linear layers that keep the width, outside of attention: the identity
    ``"whitened"``         the first convolution: makes the channels of its output on the batch uncorrelated
    =====================  =====================================================================================

    Schemes with branch ends, and ``"whitened"``, need a batch: branches are found by running the model. A branch is a
    tensor that is added to the one that it was computed from. ``"mimetic"`` tries on a batch how layers that hold queries,
    keys and values are ordered.

    Args:
        model: the model; only its parameter values change. After an exception they are as before.
        scheme: one of :data:`initopt.schemes.NAMES`, or a :class:`initopt.schemes.Scheme` with its options, such as
            ``initopt.schemes.Mimetic(positions="sinusoidal")``.
        batch: a batch on which the model can run. It shows the schemes that have a gain which nonlinearity follows each
            layer. A layer that none follows (the last one, those before attention) has the gain 1.
        loss_fn: as for :func:`initopt.measure`; runs the model on the batch.
        params: which parameters may change: a function of (qualified name, parameter, owning module), or names of kinds
            (:data:`initopt.model.parameters.KINDS`), such as ``["convolutions", "biases"]``; all that train, by default.
        seed: of a separate generator, which gives the same weights on every device (``"default"`` draws on the model's
            own). Without a seed, the draws follow from torch's random state and advance it.
        **options: the options of a scheme that is given by its name: ``gain`` (a number, or ``"auto"``) and
            ``nonlinearity`` of Kaiming's, Xavier's and ``"orthogonal"``, ``mode`` of Kaiming's, ``std`` of the normal ones.

    Returns:
        What was set, with which gain or as what, and what was left.

    Raises:
        ValueError, TypeError: for arguments that cannot work, before any work; the message says what is allowed. Also for a
            model that has nothing for the scheme to set.

    Warns:
        InitoptWarning: for attention or branches that a scheme cannot make out, if there are others that it can.

    >>> import torch, initopt
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 3))
    >>> batch = torch.randn(16, 8), torch.randint(3, (16,))
    >>> applied = initopt.schemes.apply_(model, "xavier_normal", batch, seed=0)
    >>> applied.nonlinearities, round(applied.gains["0.weight"], 3), applied.gains["2.weight"]
    ({'0.weight': 'gelu'}, 1.534, 1.0)
    >>> vit = initopt.zoo.small_vit(16, 4, depth=2, width=32, heads=2)
    >>> images = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    >>> initopt.schemes.apply_(vit, "zero_branches", images).set[:2]
    ('blocks.0.attention_output.weight', 'blocks.0.attention_output.bias')
    """
    chosen_scheme = create_scheme(scheme, options)
    if chosen_scheme.needs_batch and batch is None:
        name = chosen_scheme.name
        raise ValueError(f"scheme {name!r} has to see the model run: give it a batch, apply_(model, {name!r}, batch)")
    model = bare(model)
    parameters = trainable_parameters(model)
    chosen = select(parameters, params, "params")
    if any(is_sharded(parameter.value) for parameter in chosen):
        _refuse_on_parts(chosen_scheme, batch)
    loss = as_loss(loss_fn)
    loss.look_at(batch)
    number = int(torch.randint(2**31, ())) if seed is None else check_integer("seed", seed, 0)

    def work(kept: Kept) -> Drawn:
        drawn = chosen_scheme.draw(Subject(model, chosen, loss, batch, number, kept.state))
        put_values(drawn.values)
        return drawn

    drawn = preserving(model, work, loss_fn)
    names = {p.value: p.name for p in parameters}
    return Applied(
        gains={names[p]: gain for p, gain in drawn.gains.items()},
        nonlinearities={names[p]: name for p, name in drawn.nonlinearities.items()},
        set=tuple(p.name for p in parameters if p.value in drawn.values),
        left=tuple(p.name for p in parameters if p.value not in drawn.values),
        roles={names[p]: role for p, role in drawn.roles.items()},
        scheme=chosen_scheme.name,
    )


def _refuse_on_parts(scheme: Scheme, batch: Any) -> None:
    """Refuse what takes more than the shapes of the parameters of a sharded model.

    Raises:
        TypeError: saying what works.
    """
    if not scheme.one_by_one:
        able = ", ".join(repr(name) for name, kind in SCHEMES.items() if kind.one_by_one)
        raise TypeError(
            f"the model is sharded over devices, and {scheme.name!r} looks at whole weights; apply it before the model is "
            f"sharded, or use one of {able}"
        )
    if batch is not None:
        raise TypeError(
            "the model is sharded over devices, and does not show what follows its layers; leave the batch out, and say "
            "nonlinearity= or gain="
        )
