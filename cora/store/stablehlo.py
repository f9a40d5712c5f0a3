"""A frozen encoder as one serialised program with its weights inside, for whoever has JAX and no Cora.

    from pathlib import Path
    import jax, numpy as np
    encoder = jax.export.deserialize(bytearray(Path("OUT/encoder.stablehlo").read_bytes()))
    last, levels = encoder.call(np.zeros((2, 16, 64, 64, 3), np.uint8))   # [B, N, D], [L, B, N, D]

The batch may have any size; frames and sides are those it was exported with. JAX serialises by flatbuffers, at both
ends: `pip install 'cora[export]'`. Beware: beyond 2 GB of weights the program is larger than protocol buffers can be.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from cora import config
from cora.nets.hierarchy import build, latents
from cora.schema import ConfigError
from cora.store.weights import Pretrained

FILE = "encoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def program(
    encoder: Pretrained, dtype: Literal["float32", "bfloat16"] | None = None
) -> tuple[Callable[[Array], tuple[Array, Array]], jax.ShapeDtypeStruct]:
    """Returns uint8 clips [B, T, H, W, 3] -> (last level's normed latents, all levels'), and the shape of the clips.

    Attention is written as plain products, which every platform has; products are computed in `dtype`, by default the
    encoder's.
    """
    network = build(replace(encoder.model, attention="einsum", dtype=dtype or encoder.model.dtype))

    def run(clips: Array) -> tuple[Array, Array]:
        levels = latents(network, jax.tree.map(jnp.asarray, encoder.encoder), clips)
        return levels[-1], levels

    (batch,) = export.symbolic_shape("B")
    return run, jax.ShapeDtypeStruct((batch, encoder.model.frames, *encoder.model.sides, 3), np.uint8)


def describe(folder: Path, model: config.Model) -> None:
    """Writes encoder.json: names, types and shapes of what the program takes and gives."""
    shapes = {
        "input": {"name": "clips", "dtype": "uint8", "shape": ["B", model.frames, *model.sides, 3], "range": [0, 255]},
        "outputs": [{"name": "last", "dtype": "float32", "shape": ["B", model.tokens, model.width]},
                    {"name": "levels", "dtype": "float32", "shape": [model.levels, "B", model.tokens, model.width]}],
        "tokens": dict(zip(("time", "rows", "columns"), model.grid, strict=True)), "jax": jax.__version__,
    }
    (folder / "encoder.json").write_text(json.dumps(shapes, indent=2) + "\n")


def write(folder: Path, encoder: Pretrained) -> None:
    """Writes encoder.stablehlo, and encoder.json with its shapes. Raises ConfigError where flatbuffers is missing."""
    run, clips = program(encoder)
    made = export.export(jax.jit(run), platforms=PLATFORMS)(clips)
    try:
        serialised = made.serialize()
    except ImportError as missing:
        raise ConfigError("format = 'stablehlo': JAX serialises by flatbuffers, which is not installed; run "
                          "`pip install 'cora[export]'`") from missing
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(serialised)
    describe(folder, encoder.model)


def read(folder: Path) -> export.Exported:
    """Returns the program that `write` left in the folder."""
    return export.deserialize(bytearray((folder / FILE).read_bytes()))
