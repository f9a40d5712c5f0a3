"""Video encoders pretrained without labels by hierarchical predictive coding, in JAX.

    encoder = cora.load("demo/encoder")     # a frozen encoder
    latents = encoder(clips)                # uint8 [B, T, S, S, 3] -> [L, B, N, D]

What reads files (`cora.video`, `cora.store`), trains (`cora.train`) and measures (`cora.measure`) is imported by name.
"""

from typing import TYPE_CHECKING, Any

from cora.config import ConfigError as ConfigError
from cora.config import Pretrain as Pretrain
from cora.types import Encoder as Encoder
from cora.types import Evidence as Evidence
from cora.types import Hierarchy as Hierarchy
from cora.types import Level as Level
from cora.types import Masks as Masks
from cora.types import Network as Network
from cora.types import Params as Params

if TYPE_CHECKING:
    from cora.store.weights import load as load
    from cora.train import fit as fit
    from cora.video.clips import views as views

__version__ = "0.1.0"
_LATER = {"load": "cora.store.weights", "fit": "cora.train", "views": "cora.video.clips"}


def __getattr__(name: str) -> Any:
    """Imports what needs the outside libraries only when it is asked for, so that `import cora` stays light."""
    if name not in _LATER:
        raise AttributeError(f"module 'cora' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
