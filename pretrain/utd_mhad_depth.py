"""UTD-MHAD depth (27 actions, 8 people, cross-subject): small.py, under the name of the corpus it is measured on.

Only the training people's clips are used, and no label. The corpus is given on the command line:

    cora pretrain pretrain/utd_mhad_depth.py --corpus.path DATA/utd_mhad_depth/manifest.csv --workdir runs/utd
    cora probe runs/utd DATA/utd_mhad_depth/manifest.csv
"""

from cora.demo import RECIPE as recipe

__all__ = ["recipe"]
