"""UTD-MHAD depth, by predictors that come to see what is hidden: about five times the operations of small.py.

In the 400 steps of small.py hidden tokens stay unpredicted, and features come from what is read off seen ones.
Here predictors are as wide as the encoder, two blocks deep and begin by looking at what is near, and have 800 steps:
then .65 of the hidden targets' variance is left (a linear map from the six true neighbours leaves .51; both measured
with target.contrast = 0.07).

    cora pretrain pretrain/utd_mhad_depth_long.py --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/long
"""

from dataclasses import replace

from cora import config
from cora.demo import RECIPE

recipe = replace(
    RECIPE,
    model=config.Model(predictor_width=128, predictor_heads=4, predictor_depth=2, predictor_near=2.0),
    run=replace(RECIPE.run, steps=800),
)
