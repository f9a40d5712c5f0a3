"""UTD-MHAD depth (27 actions, 8 people, cross-subject): small clips of the whole action, decoded once.

The recipe of `cora demo` but for how clips are cut: chosen on both corpora. Only the training people's clips are used,
and no label. The corpus is given on the command line:

    cora pretrain pretrain/utd_mhad_depth.py --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/utd
    cora probe runs/utd DATA/utd_mhad_depth/manifest.csv
"""

from dataclasses import replace

from cora import config
from cora.demo import RECIPE

recipe = replace(RECIPE, corpus=config.Corpus(sampling="span", span=(0.7, 1.0), crop_scale=(0.5, 1.0), pack=80))
