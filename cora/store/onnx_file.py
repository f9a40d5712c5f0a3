"""A frozen encoder as an ONNX graph with its weights inside, by jax2onnx; for whoever has neither JAX nor Cora.

    import numpy as np, onnxruntime
    encoder = onnxruntime.InferenceSession("OUT/encoder.onnx")
    last, levels = encoder.run(None, {"clips": np.zeros((2, 16, 64, 64, 3), np.uint8)})   # [B, N, D], [L, B, N, D]

Both libraries are optional: `pip install 'cora[onnx]'`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cora.schema import ConfigError
from cora.store import stablehlo
from cora.store.weights import Pretrained

FILE = "encoder.onnx"


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter logs a warning for every value whose shape it infers late."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write(folder: Path, encoder: Pretrained) -> None:
    """Writes encoder.onnx, and encoder.json with its shapes. Raises ConfigError where jax2onnx is not installed."""
    try:
        import jax2onnx
    except ModuleNotFoundError as missing:
        raise ConfigError(f"format = 'onnx': {missing.name} is not installed; run `pip install 'cora[onnx]'`, or "
                          "choose 'stablehlo'") from missing
    folder.mkdir(parents=True, exist_ok=True)
    program, clips = stablehlo.program(encoder, "float32")  # onnxruntime has no bfloat16 for a CPU
    with _quiet():
        jax2onnx.to_onnx(program, [clips], model_name="cora", input_names=["clips"], output_names=["last", "levels"],
                         return_mode="file", output_path=folder / FILE)
    stablehlo.describe(folder, encoder.model)


def read(folder: Path) -> Callable[[UInt8[np.ndarray, "B T H W 3"]], list[np.ndarray]]:
    """Returns what `write` left in the folder as a function of clips, computed by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each constant that the graph has no use for
    session = onnxruntime.InferenceSession(folder / FILE, options)
    return lambda clips: session.run(None, {"clips": clips})
