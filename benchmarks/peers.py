"""InstanceNorm's forward on the CPU against other runtimes: compiled torch, ONNX Runtime, OpenVINO.

Each peer is called in its fastest way that gives the same result, on the same number of threads.
A result is compared with float64 before its time counts. Peers that are not installed are left out.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .instance_norm import LAYERS, SHAPES
from .timing import interleaved

#: Longer than any of the thread pools spins after a call: torch's OpenMP does for some 10 ms.
PAUSE = 0.02

#: Tolerance of the results against float64, above the error of every peer. It finds wrong results,
#: not lost digits, which the README compares.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps}

#: Row's field: what the peer is called, and the field of ours that it is compared with.
PEERS = {
    "torch": ("torch", "ours"),
    "compiled": ("torch.compile", "ours"),
    "compiled_activation": ("torch.compile, activated", "ours_activation"),
    "onnxruntime": ("ONNX Runtime", "ours_into"),
    "openvino": ("OpenVINO", "ours_into"),
}

NOTES = f"""\
- *ours*, *torch* and *torch.compile* (of torch's layer) allocate their output. *activated* is the
  layer followed by LeakyReLU(0.01): ours does it itself (`activation="leaky_relu"`).
- ONNX Runtime and OpenVINO write into an existing output, bound once; *into* is ours with `out=`.
  ONNX has no channels_last; there the model transposes, normalizes, and transposes back.
- OpenVINO is asked for arithmetic in the input's type: on a processor with bfloat16 it would
  otherwise give up float32. ONNX Runtime takes no bfloat16.
- Each runtime has a thread pool of its own. A pool's threads spin after a call (torch's for some
  milliseconds), and would take a core from the next runtime. So each turn is
  {PAUSE * 1e3:.0f} ms of sleep, a call that is not timed, and calls for as long as the sleep. That
  costs time of its own: compare within a row, not with the first section.
- Weight and bias are random: of ones and zeros a compiler may make nothing.
- Before it was timed, each result was compared with float64, to within
  {TOLERANCE[torch.float32]:.0e} (bfloat16: {TOLERANCE[torch.bfloat16]:.0e}).
  That shows a wrong result; it does not show a lost digit.
- The ratio behind a time is to ours: 2.0x means that ours takes half of it. A dash: not installed,
  or no such input.
"""


@dataclass(frozen=True)
class Row:
    """Median seconds for one input; None for a peer that is not installed or takes no such input.

    ``ours_activation`` and ``compiled_activation`` include LeakyReLU. ``ours_into``,
    ``onnxruntime`` and ``openvino`` do not allocate their output.
    """

    shape: str
    dtype: str
    layout: str
    ours: float
    torch: float
    compiled: float
    ours_activation: float
    compiled_activation: float
    ours_into: float
    onnxruntime: float | None
    openvino: float | None

    def ratio(self, peer: str) -> float | None:
        """How many times the peer takes as long as ours."""
        time: float | None = getattr(self, peer)
        ours: float = getattr(self, PEERS[peer][1])
        return None if time is None else time / ours


def rows() -> Iterator[Row]:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            for shape in SHAPES:
                yield measure(shape, dtype, layout)


def measure(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    pause: float = PAUSE,
) -> Row:
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    # Float32 parameters, also for bfloat16, with values that bfloat16 has.
    weight, bias = torch.randn(2, shape[1]).to(dtype).float()
    state = {"weight": weight, "bias": bias}

    layer, torchs = LAYERS[len(shape)]
    ours, theirs = layer(shape[1], affine=True), torchs(shape[1], affine=True)
    fused = layer(shape[1], affine=True, activation="leaky_relu")
    for module in (ours, theirs, fused):
        module.load_state_dict(state)
    target = torch.empty_like(x)
    activated = nn.Sequential(theirs, nn.LeakyReLU(0.01))
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": _on(x, ours),
        "torch": _on(x, theirs),
        "compiled": _on(x, torch.compile(theirs, dynamic=False)),
        "ours_activation": _on(x, fused),
        "compiled_activation": _on(x, torch.compile(activated, dynamic=False)),
        "ours_into": _on(x, functools.partial(ours, out=target)),
    }
    if _installed("onnxruntime") and dtype == torch.float32:
        calls["onnxruntime"] = _onnxruntime(x, weight, bias)
    if _installed("openvino"):
        calls["openvino"] = _openvino(x, weight, bias)

    exact = F.instance_norm(x.double().contiguous(), weight=weight.double(), bias=bias.double())
    for name, call in calls.items():
        _check(name, call(), F.leaky_relu(exact, 0.01) if name.endswith("activation") else exact)
    times: dict[str, Any] = dict.fromkeys(("onnxruntime", "openvino"))
    times.update(interleaved(calls, pause=pause))
    return Row(
        shape="x".join(map(str, shape)),
        dtype=str(dtype).removeprefix("torch."),
        layout=layout,
        **times,
    )


def _check(name: str, y: Tensor, exact: Tensor) -> None:
    tolerance = TOLERANCE[y.dtype]
    torch.testing.assert_close(
        y.double(), exact, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


def _on(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def call() -> Tensor:
        return layer(x)

    return call


def _model(x: Tensor, weight: Tensor, bias: Tensor) -> bytes:
    """One InstanceNormalization as an ONNX model, between two transposes if x is channels_last."""
    onnx: Any = importlib.import_module("onnx")
    helper = onnx.helper
    kind = getattr(onnx.TensorProto, {torch.float32: "FLOAT", torch.bfloat16: "BFLOAT16"}[x.dtype])
    nodes = [
        helper.make_node("InstanceNormalization", ["x", "weight", "bias"], ["y"], epsilon=1e-5)
    ]
    if not x.is_contiguous():
        spatial = range(2, x.ndim)
        first = [0, x.ndim - 1, *(axis - 1 for axis in spatial)]
        nodes[0].input[0], nodes[0].output[0] = "planes", "normalized"
        nodes = [
            helper.make_node("Transpose", ["x"], ["planes"], perm=first),
            *nodes,
            helper.make_node("Transpose", ["normalized"], ["y"], perm=[0, *spatial, 1]),
        ]
    shape = _as_stored(x).shape
    graph = helper.make_graph(
        nodes,
        "instance_norm",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [
            helper.make_tensor(name, kind, value.shape, _bytes(value.to(x.dtype)), raw=True)
            for name, value in (("weight", weight), ("bias", bias))
        ],
    )
    # The first opset with bfloat16, and the IR version that came with it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    return serialized


def _bytes(value: Tensor) -> bytes:
    return value.view(torch.uint8).numpy().tobytes()


def _as_stored(x: Tensor) -> Tensor:
    """The contiguous tensor in the same memory: channels behind, if x is channels_last."""
    return x if x.is_contiguous() else x.movedim(1, -1)


def _onnxruntime(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        _model(x, weight, bias), options, providers=["CPUExecutionProvider"]
    )
    target = torch.empty_like(x)
    binding = session.io_binding()
    kind = _as_stored(x).numpy().dtype
    shape = tuple(_as_stored(x).shape)
    binding.bind_input("x", "cpu", 0, kind, shape, x.data_ptr())
    binding.bind_output("y", "cpu", 0, kind, shape, target.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return target

    return call


def _openvino(x: Tensor, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    openvino: Any = importlib.import_module("openvino")
    kind = {torch.float32: openvino.Type.f32, torch.bfloat16: openvino.Type.bf16}[x.dtype]
    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": kind,
    }
    model = core.compile_model(core.read_model(_model(x, weight, bias)), "CPU", options)
    target = torch.empty_like(x)

    def shared(tensor: Tensor) -> Any:
        stored = _as_stored(tensor)
        # numpy has no bfloat16: OpenVINO is told what the bytes are.
        array = (stored if x.dtype == torch.float32 else stored.view(torch.int16)).numpy()
        return openvino.Tensor(array, list(array.shape), kind)

    request = model.create_infer_request()
    request.set_input_tensor(shared(x))
    request.set_output_tensor(shared(target))

    def call() -> Tensor:
        request.infer(share_outputs=True)  # without it the output is copied once more
        return target

    return call


def versions() -> str:
    return ", ".join(
        f"{name} {version(name) if _installed(name) else 'not installed'}"
        for name in ("onnxruntime", "openvino")
    )


def _installed(runtime: str) -> bool:
    """With ``onnx``, which makes its model."""
    return bool(find_spec("onnx") and find_spec(runtime))


def cells(row: Row) -> str:
    """The row of the table."""

    def cell(field: str) -> str:
        time = getattr(row, field)
        return "-" if time is None else f"{time * 1e6:.0f}"

    def peer(field: str) -> str:
        ratio = row.ratio(field)
        return cell(field) + ("" if ratio is None else f" ({ratio:.1f}x)")

    return (
        f"| {row.shape} | {cell('ours')} | {peer('torch')} | {peer('compiled')} | "
        f"{cell('ours_activation')} | {peer('compiled_activation')} | "
        f"{cell('ours_into')} | {peer('onnxruntime')} | {peer('openvino')} |"
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| input | ours (us) | torch | torch.compile | ours, activated | "
        "torch.compile, activated | ours, into | ONNX Runtime | OpenVINO |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *map(cells, rows),
    ]
    means, slower = [], []
    for peer, (name, _) in PEERS.items():
        ratios = {row.shape: ratio for row in rows if (ratio := row.ratio(peer)) is not None}
        if ratios:
            means.append(f"{name} {geometric_mean(ratios.values()):.1f}x")
        slower += [f"{shape} than {name} ({r:.2f}x)" for shape, r in ratios.items() if r < 1]
    lines.append(f"\nGeometric mean of the ratios: {', '.join(means)}.")
    lines.append(f"Ours is slower: {', '.join(slower) or 'nowhere'}.\n")
    return "\n".join(lines)
