"""UTD-MHAD depth (27 actions, 8 people, cross-subject), as the tables of README.md were made: hidden tokens at random
places alone, predictors that begin nowhere, 400 steps of 16 clips.

Its predictors leave all of what is hidden unexplained: features come from what is read off the seen tokens. small.py,
which came later, predicts. Only the training people's clips are used, and no label. The corpus is given on the command
line:

    cora pretrain utd_mhad_depth --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/utd
    cora probe runs/utd DATA/utd_mhad_depth/manifest.csv
"""

from cora import config

recipe = config.Pretrain(
    mask=config.Mask(kinds=("random",), random=(0.75, 0.25)),
    target=config.Target(kind="hog3d", of="change", error="squared"),
    learn=config.Learn(seen=1.0),
    optim=config.Optim(method="muon", lr=1e-2),
    corpus=config.Corpus(sampling="span", longest=5.0, pack=80),
    run=config.Run(steps=400, batch=16, save_every=200),
)
