"""The small recipe on drawn films without end: every film is another one, and none is stored or decoded.

    cora pretrain stream --workdir runs/stream
    cora pretrain stream --workdir runs/below --target.kind below --target.momentum .98 .98

The films (`cora/video/stream.py`) have the model's own shape, so nothing is cut from them. On two cores drawing a film
costs half as much as learning from it.
"""

from dataclasses import replace

from cora import config
from cora.demo import RECIPE

recipe = replace(RECIPE, corpus=config.Corpus(path=config.STREAM),
                 run=replace(RECIPE.run, steps=3000, log_every=50, save_every=500))
