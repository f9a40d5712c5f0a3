"""UTD-MHAD depth, by predictors that come to see what is hidden: about five times the operations of
utd_mhad_depth.py.

In the 400 steps of utd_mhad_depth.py hidden tokens stay unpredicted, and features come from what is read off seen ones.
Here predictors are as wide as the encoder, two blocks deep and begin by looking at what is near, and have 800 steps:
then .65 of the hidden targets' variance is left (a linear map from the six true neighbours leaves .51; both measured
with target.contrast = 0.07).

    cora pretrain pretrain/utd_mhad_depth_long.py --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/long
"""

from cora import config

recipe = config.Pretrain(
    model=config.Model(predictor_width=128, predictor_heads=4, predictor_depth=2, predictor_near=2.0),
    mask=config.Mask(kinds=("random",), random=(0.75, 0.25)),
    target=config.Target(kind="hog3d", of="change", error="squared"),
    learn=config.Learn(seen=1.0),
    optim=config.Optim(method="muon", lr=1e-2),
    corpus=config.Corpus(sampling="span", longest=5.0, pack=80),
    run=config.Run(steps=800, batch=16, save_every=200),
)
