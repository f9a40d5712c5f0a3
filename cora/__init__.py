"""Video encoders pretrained without labels by hierarchical predictive coding, in JAX.

    encoder = cora.load("demo/encoder")     # a frozen encoder
    latents = encoder(clips)                # uint8 [B, T, S, S, 3] -> [L, B, N, D]

    energy = cora.Energy(hierarchy)         # predictive coding on any hierarchy of levels
    learner, trace = cora.step(energy, learner, cora.Evidence(x, goals), cora.preset("pc", hierarchy), optimiser)

What reads files (`cora.video`, `cora.store`), trains (`cora.train`) and measures (`cora.measure`) is imported by name.
"""

from typing import TYPE_CHECKING, Any

from cora.config import ConfigError as ConfigError
from cora.config import Pretrain as Pretrain
from cora.types import Encoder as Encoder
from cora.types import Evidence as Evidence
from cora.types import Hierarchy as Hierarchy
from cora.types import Hold as Hold
from cora.types import Level as Level
from cora.types import Masks as Masks
from cora.types import Network as Network
from cora.types import Params as Params

if TYPE_CHECKING:
    from cora.pc.energy import Energy as Energy
    from cora.pc.energy import stack as stack
    from cora.pc.energy import unstack as unstack
    from cora.pc.infer import Inference as Inference
    from cora.pc.infer import Start as Start
    from cora.pc.infer import predict as predict
    from cora.pc.infer import settle as settle
    from cora.pc.learn import Learner as Learner
    from cora.pc.learn import Learning as Learning
    from cora.pc.learn import learn as learn
    from cora.pc.learn import step as step
    from cora.pc.presets import preset as preset
    from cora.store.nets import restore as restore
    from cora.store.nets import save as save
    from cora.store.weights import load as load
    from cora.train import fit as fit
    from cora.video.clips import views as views

__version__ = "0.1.0"
_LATER = {
    "load": "cora.store.weights",
    "restore": "cora.store.nets",
    "save": "cora.store.nets",
    "fit": "cora.train",
    "views": "cora.video.clips",
    "Energy": "cora.pc.energy",
    "stack": "cora.pc.energy",
    "unstack": "cora.pc.energy",
    "Inference": "cora.pc.infer",
    "Start": "cora.pc.infer",
    "predict": "cora.pc.infer",
    "settle": "cora.pc.infer",
    "Learner": "cora.pc.learn",
    "Learning": "cora.pc.learn",
    "learn": "cora.pc.learn",
    "step": "cora.pc.learn",
    "preset": "cora.pc.presets",
}
_NOW = ("ConfigError", "Pretrain", "Encoder", "Evidence", "Hierarchy", "Hold", "Level", "Masks", "Network", "Params")


def __dir__() -> list[str]:
    """Returns the public names, those too that are imported only when asked for."""
    return sorted((*_NOW, *_LATER, "__version__"))


def __getattr__(name: str) -> Any:
    """Imports what needs the outside libraries only when it is asked for, so that `import cora` stays light."""
    if name not in _LATER:
        raise AttributeError(f"module 'cora' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
