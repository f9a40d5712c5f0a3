"""UTD-MHAD depth (27 actions, 8 people, cross-subject): small clips of the whole action, decoded once.

Only the training people's clips are used, and no label. The corpus is given on the command line:

    cora pretrain pretrain/utd_mhad_depth.py --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/utd
    cora probe runs/utd DATA/utd_mhad_depth/manifest.csv
"""

from cora import config

recipe = config.Pretrain(
    mask=config.Mask(kinds=("random",), random=(0.75, 0.25)),
    target=config.Target(kind="hog3d", of="change", error="squared"),
    learn=config.Learn(seen=1.0),
    optim=config.Optim(method="muon", lr=1e-2),
    corpus=config.Corpus(sampling="span", span=(0.7, 1.0), crop_scale=(0.5, 1.0), pack=80),
    run=config.Run(steps=400, batch=16, save_every=200),
)
