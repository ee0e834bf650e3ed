"""Part (a): whether what is right on a CPU is right on a device."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gallery_check import check_gallery, verdict
from tables import markdown
from tasks import Plan, Result, Task, Tell
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

import initopt
from initopt.data import Splits, digits_splits
from initopt.data.augmentation import augmentation
from initopt.data.images import Pixels
from initopt.testing import ENTRIES
from initopt.zoo import cifar_resnet, small_vit

__all__ = ["CHECKS", "correctness_plan", "correctness_table", "run_check"]

Batch = tuple[Tensor, Tensor]
Found = tuple[bool | None, str]
"""Whether it is as it should be, ``None`` if that cannot be told here, and what was seen."""

_CHUNKS = 12


def correctness_plan(device: str, dry: bool) -> Plan:
    """The checks, and the gallery in parts."""
    names = list(ENTRIES)[:: 15 if dry else 1]
    chunks = [names[number :: 2 if dry else _CHUNKS] for number in range(2 if dry else _CHUNKS)]

    def plan(results: Mapping[str, Result]) -> list[Task]:
        parts = [
            Task(f"gallery {number}", check_gallery, {"names": chunk, "device": device}, alone=25.0)
            for number, chunk in enumerate(chunks, 1)
        ]
        checks = [Task(name, run_check, {"name": name, "device": device}, alone=20.0) for name in CHECKS]
        return parts + checks

    return plan


def run_check(name: str, device: str, tell: Tell) -> Result:
    """One of :data:`CHECKS`, with deterministic kernels."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            right, seen = CHECKS[name](torch.device(device))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"right": right, "seen": seen}


def correctness_table(results: Mapping[str, Result]) -> str:
    """What was checked, and what came out."""
    found = verdict([result for name, result in results.items() if name.startswith("gallery")])
    worst = "; ".join(f"{precision}: {error:.0e} ({where})" for precision, (error, where) in found["worst"].items())
    counted = ", ".join(f"{count} in {precision}" for precision, count in found["checked"].items())
    absent = f"; not there: {'; '.join(found['not_there'])}" if found["not_there"] else ""
    rows = [["gallery", "no" if found["wrong"] else "yes", f"{counted}; worst of the exact engines {worst}{absent}"]]
    rows += [["", "no", wrong] for wrong in found["wrong"][:20]]
    for name in CHECKS:
        result = results.get(name, {})
        if "failed" in result:
            rows.append([name, "no", result["failed"].splitlines()[0]])
        elif result:
            rows.append([name, {True: "yes", False: "no", None: "-"}[result["right"]], result["seen"]])
    return markdown(["check", "right", "seen"], rows)


# Networks and batches: small, made on the CPU, so that they are the same everywhere.


def _images(count: int, size: int = 32, side: int = 16, classes: int = 10, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, side, side, generator=generator), torch.randint(classes, (size,), generator=generator))
        for _ in range(count)
    ]


def _sequences(count: int, size: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(size, 7, 8, generator=generator), torch.randint(3, (size,), generator=generator)) for _ in range(count)
    ]


def _double(batches: list[Batch]) -> list[Batch]:
    return [(inputs.double(), targets) for inputs, targets in batches]


def _made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def _smooth() -> nn.Module:
    """Convolutions without kinks, so that derivatives of all kinds agree."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, stride=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrence = kind(8, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrence(x)[0].mean(1))


class _Attention(nn.Module):
    """Attention by whatever kernel, or by one that has no second derivative."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self._fused = fused
        self.query, self.key, self.value = (nn.Linear(8, 32) for _ in range(3))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        if self._fused:
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
                mixed = F.scaled_dot_product_attention(*parts)
        else:
            mixed = F.scaled_dot_product_attention(*parts)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def _nio(model: nn.Module, batches: Any, **options: Any) -> initopt.Result:
    return initopt.nio(
        model, batches, **{"steps": 6, "measure_batches": 2, "lr": 0.05, "seed": 0, "progress": False, **options}
    )


def _far(found: initopt.Result, expected: initopt.Result) -> float:
    """The largest relative difference of two scales of a tensor."""
    assert list(found.scales) == list(expected.scales)
    return max(abs(found.scales[name] / scale - 1) for name, scale in expected.scales.items())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What initopt warns of."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught if str(warning.message).startswith("initopt")]


def _as_on_the_cpu(
    device: torch.device, build: Callable[[], nn.Module], batches: list[Batch], double: bool = True, **options: Any
) -> Found:
    """A run there, in float64 or float32, and one on the CPU in float64."""
    expected = _nio(_made(build).double(), _double(batches), **options)
    with _warnings() as warned:
        if double:
            found = _nio(_made(build).double().to(device), _double(batches), **options)
        else:
            found = _nio(_made(build).to(device), batches, **options)
    far = _far(found, expected)
    seen = f"{found.engine}; scales off by {far:.0e}" + "".join(f"; warned: {message}" for message in warned)
    return far < (1e-6 if double else 1e-2) and found.engine == expected.engine and not warned, seen


# The checks.


def convolutions(device: torch.device) -> Found:
    """Batch norm and ReLU, whose kernels sum in another order."""
    return _as_on_the_cpu(device, partial(cifar_resnet, 8), _images(9), steps=4)


def batch_norm_of_the_batch(device: torch.device) -> Found:
    return _as_on_the_cpu(device, partial(cifar_resnet, 8), _images(9), steps=4, batch_norm="batch")


def vision_transformer(device: torch.device) -> Found:
    build = partial(small_vit, 16, 4, depth=2, width=48)
    return _as_on_the_cpu(device, build, _images(9))


def recurrence(device: torch.device) -> Found:
    """Those of cuDNN have no second derivative."""
    found = {}
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        found[kind.__name__] = _as_on_the_cpu(device, partial(_Recurrent, kind), _sequences(9))
    return all(right for right, _ in found.values()), "; ".join(f"{name}: {seen}" for name, (_, seen) in found.items())


def attention(device: torch.device) -> Found:
    """The fused kernels, which are chosen by default for float32, have no second derivative."""
    return _as_on_the_cpu(device, partial(_Attention, False), _sequences(9), double=False)


def attention_that_insists(device: torch.device) -> Found:
    """Of a model that lets no other kernel in: replaced by plain operations, and exact."""
    with _warnings() as warned:
        found = _nio(_made(partial(_Attention, True)).to(device), _sequences(9))
    expected = _nio(_made(partial(_Attention, False)).double(), _double(_sequences(9)))
    far = _far(found, expected)
    right = found.engine != "differences" and not warned and far < 0.05
    return right, f"{found.engine}; scales off by {far:.0e}; warned: {'; '.join(warned)}"


def autocast(device: torch.device) -> Found:
    """bfloat16 by autocast, inside the loss."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    seen, right = [], True
    for build, batches in ((_smooth, _images(9)), (partial(small_vit, 16, 4, depth=2, width=48), _images(9))):
        expected = _nio(_made(build), batches, measure_batches=0)
        found = _nio(_made(build).to(device), batches, loss_fn=loss, measure_batches=0)
        far = _far(found, expected)
        right = right and far < 0.05 and all(value.dtype == torch.float32 for value in found.weights.values())
        seen.append(f"{found.engine}; scales off by {far:.0e}")
    return right, "; ".join(seen)


def half_precision_weights(device: torch.device) -> Found:
    """Weights in bfloat16."""
    batches = [(inputs.bfloat16(), targets) for inputs, targets in _images(9)]
    expected = _nio(_made(_smooth), _images(9), measure_batches=0)
    found = _nio(_made(_smooth).bfloat16().to(device), batches, measure_batches=0)
    far = _far(found, expected)
    kinds = {value.dtype for value in found.weights.values()}
    return far < 0.1 and kinds == {torch.bfloat16}, f"{found.engine}; scales off by {far:.0e}"


def channels_last(device: torch.device) -> Found:
    expected = _nio(_made(_smooth).double(), _double(_images(9)))
    model = _made(_smooth).double().to(device, memory_format=torch.channels_last)
    batches = [(inputs.to(device, memory_format=torch.channels_last), targets) for inputs, targets in _double(_images(9))]
    far = _far(_nio(model, batches), expected)
    kept = model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr]
    return far < 1e-6 and kept, f"scales off by {far:.0e}; weights stay as they lie: {kept}"


def small_budget(device: torch.device) -> Found:
    """Less memory than the graphs of all sub-batches take, and less than one."""
    build = partial(small_vit, 16, 4, depth=4, width=48)
    batches = _images(5, size=64)
    expected = _nio(_made(build).to(device), batches, steps=3, measure_batches=0, engine="recompute")
    peaks, seen, right = {}, [], True
    for budget in (1e12, 2e7, 8e6):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = _nio(_made(build).to(device), batches, steps=3, measure_batches=0, memory_budget=budget)
        peaks[budget] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        far = _far(found, expected)
        right = right and far < 1e-2 and (found.engine == "recompute") == (budget < 1e12)
        seen.append(
            f"{budget:.0e}: {found.engine}, {found.engine_reason}, peak {peaks[budget] / 1e6:.0f} MB, off {far:.0e}"
        )
    falls = device.type != "cuda" or peaks[1e12] > peaks[2e7] > peaks[8e6]
    return right and falls, "; ".join(seen)


def out_of_memory(device: torch.device) -> Found:
    """A device that really runs out, although the budget said that it would not."""
    if device.type != "cuda":
        return None, "cannot be had on a CPU"
    build = partial(small_vit, 32, 4, depth=6, width=192)
    batches = _images(4, size=64, side=32)
    model = _made(build).to(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected = _nio(model, batches, steps=2, measure_batches=0, engine="recompute")
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _nio(_made(build).to(device), batches, steps=2, measure_batches=0, engine="groups")
    most = torch.cuda.max_memory_allocated()
    model = _made(build).to(device)
    torch.cuda.empty_cache()
    allowed = (needed + most) / 2
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(device).total_memory)
    try:
        with _warnings() as warned:
            found = _nio(model, batches, steps=2, measure_batches=0, memory_budget=1e12)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    far = _far(found, expected)
    right = found.engine == "recompute" and any("did not fit into memory" in message for message in warned) and far < 1e-2
    sizes = f"recompute {needed / 1e6:.0f} MB, groups {most / 1e6:.0f} MB, allowed {allowed / 1e6:.0f} MB"
    return right, f"{sizes}; {found.engine}; scales off by {far:.0e}; warned: {'; '.join(warned)}"


class _Killed(Exception):  # noqa: N818 - no error
    pass


def resume(device: torch.device) -> Found:
    """A run that is broken off goes on from its checkpoint, and ends in the same scales to the last bit."""

    def build() -> nn.Module:
        return nn.Sequential(*_smooth(), nn.Dropout(0.3))  # type: ignore[arg-type]

    options: dict[str, Any] = {"steps": 9, "train_mode": True, "measure_batches": 0, "checkpoint_every": 2}
    unbroken, again = (_nio(_made(build).to(device), _images(9), **options) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "run.ckpt"

        def kill(record: Any) -> None:
            if record.step == 5:
                raise _Killed

        with suppress(_Killed):
            _nio(_made(build).to(device), _images(9), checkpoint=checkpoint, callbacks=kill, **options)
        resumed = _nio(_made(build).to(device), _images(9), checkpoint=checkpoint, **options)
    same = resumed.scales == unbroken.scales
    seen = (
        f"two unbroken runs are the same to the last bit: {unbroken.scales == again.scales}; resumed and unbroken: {same}"
    )
    return same, f"{seen}, off by {_far(resumed, unbroken):.0e}"


def other_methods(device: torch.device) -> Found:
    """LSUV, GradInit and MetaInit in float64 there and on the CPU."""
    found = {}
    for method in ("lsuv", "gradinit", "metainit"):
        steps = {} if method == "lsuv" else {"steps": 3}

        def run(place: torch.device | str, method: str = method, steps: Mapping[str, int] = steps) -> initopt.Result:
            model = _made(_smooth).double().to(place)
            batches = _double(_images(9))
            options: dict[str, Any] = {"measure_batches": 1, "seed": 0, "progress": False, **steps}
            return initopt.optimize(model, batches, method=method, **options)

        expected, there = run("cpu"), run(device)
        found[method] = max(
            float((value.cpu() - expected.weights[name]).norm() / expected.weights[name].norm().clamp_min(1e-12))
            for name, value in there.weights.items()
        )
    return max(found.values()) < 1e-6, "; ".join(f"{name}: weights off by {far:.0e}" for name, far in found.items())


def state_of_others(device: torch.device) -> Found:
    """The generators, modes, buffers and gradients that are the user's."""
    model = _made(partial(cifar_resnet, 8)).to(device)
    before = {name: value.clone() for name, value in model.named_buffers()}
    draw = partial(torch.rand, 3, device=device)
    torch.manual_seed(5)
    expected = draw()
    torch.manual_seed(5)
    initopt.measure(model, _images(2), progress=False)
    _nio(model, _images(4), steps=2, measure_batches=1)
    kept = {
        "generator": torch.equal(draw(), expected),
        "buffers": all(torch.equal(value, before[name]) for name, value in model.named_buffers()),
        "no gradients": all(parameter.grad is None for parameter in model.parameters()),
        "training mode": all(module.training for module in model.modules()),
        "device": {parameter.device.type for parameter in model.parameters()} == {device.type},
    }
    return all(kept.values()), ", ".join(f"{name}: {value}" for name, value in kept.items())


def data_on_the_device(device: torch.device) -> Found:
    """Batches made there are those made on the CPU, to the last bit, whatever else draws there."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (512, 3, 32, 32), dtype=torch.uint8, generator=generator)
    change = augmentation(("crop", "flip", "cutout"), 32)
    colours = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    here = Splits(Pixels(pixels, torch.arange(512) % 10, *colours, change), None, TensorDataset(pixels))
    there = here.to(device)
    beside = torch.randn(512, 512, device=device)
    same = True
    for (images, labels), (moved, moved_labels) in zip(here.batches(64, seed=3), there.batches(64, seed=3), strict=True):
        torch.rand(3, device=device)
        beside = beside @ beside / 512
        same = same and moved.device.type == device.type and torch.equal(moved.cpu(), images)
        same = same and torch.equal(moved_labels.cpu(), labels)
    return same, f"{math.ceil(512 / 64)} batches the same to the last bit: {same}"


def comparison(device: torch.device) -> Found:
    """A small comparison in bfloat16, two runs at a time."""
    accelerator = "cuda" if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        found = initopt.compare(
            {"MLP": partial(initopt.zoo.plain_mlp, depth=4)},
            digits_splits,
            ["default", "nio"],
            recipe={"epochs": 3, "batch_size": 64, "lr": 0.05, "precision": "bf16-mixed"},
            seeds=2,
            accelerator=accelerator,
            workers=2,
            out=Path(folder) / "comparison",
            report=False,
            progress=False,
        )
    ended = [run.status for run in found.runs]
    learned = [max(point.accuracy or 0.0 for point in run.curve if point.subset == "test") for run in found.runs]
    return ended == ["done"] * 4, f"{', '.join(ended)}; test accuracies {', '.join(f'{value:.2f}' for value in learned)}"


def command_line(device: torch.device) -> Found:
    """``initopt measure`` and ``initopt run``."""
    common = ["--model", "plain_mlp", "--data", "digits", "--device", device.type]
    with tempfile.TemporaryDirectory() as folder:
        measure = ["measure", *common, "--json", f"{folder}/measured.json"]
        run = ["run", *common, "--steps", "3", "--out", f"{folder}/result"]
        seen, right = [], True
        for arguments in (measure, run):
            command = [sys.executable, "-m", "initopt", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            right = right and not done.returncode
            seen.append(f"{arguments[0]}: status {done.returncode}{done.stderr.strip()[-200:] if done.returncode else ''}")
        return right and len(initopt.Result.load(f"{folder}/result").history) == 3, "; ".join(seen)


CHECKS: dict[str, Callable[[torch.device], Found]] = {
    check.__name__.replace("_", " "): check
    for check in (
        convolutions,
        batch_norm_of_the_batch,
        vision_transformer,
        autocast,
        half_precision_weights,
        channels_last,
        recurrence,
        attention,
        attention_that_insists,
        small_budget,
        out_of_memory,
        resume,
        data_on_the_device,
        state_of_others,
        other_methods,
        comparison,
        command_line,
    )
}
"""By name, in the order of the table."""
