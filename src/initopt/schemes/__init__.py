"""New weights for a whole model: the schemes of :mod:`torch.nn.init`, and those for transformers and residual networks."""

from initopt.schemes.apply import Applied, apply_
from initopt.schemes.base import Drawn, Scheme, Subject
from initopt.schemes.convolutions import Dirac, Whitened
from initopt.schemes.draws import (
    Default,
    KaimingNormal,
    KaimingUniform,
    Normal,
    Orthogonal,
    TruncNormal,
    XavierNormal,
    XavierUniform,
)
from initopt.schemes.language_models import GPT2, LlamaDepth, SmallInit
from initopt.schemes.materialize import materialize_
from initopt.schemes.mimetic import Mimetic
from initopt.schemes.registry import NAMES, SCHEMES, check_scheme, create_scheme
from initopt.schemes.residual import ScaledBranches, ZeroBranches

__all__ = [
    "GPT2",
    "NAMES",
    "SCHEMES",
    "Applied",
    "Default",
    "Dirac",
    "Drawn",
    "KaimingNormal",
    "KaimingUniform",
    "LlamaDepth",
    "Mimetic",
    "Normal",
    "Orthogonal",
    "ScaledBranches",
    "Scheme",
    "SmallInit",
    "Subject",
    "TruncNormal",
    "Whitened",
    "XavierNormal",
    "XavierUniform",
    "ZeroBranches",
    "apply_",
    "check_scheme",
    "create_scheme",
    "materialize_",
]
