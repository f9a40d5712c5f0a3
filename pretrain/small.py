"""The default for your own clips: minutes on two cores, no label, chosen on drawn and on real video (README.md).

A clip is sixteen frames, 64 pixels a side, of a moment: .7 to 1 of the file, or of five seconds where it is longer. It
is the recipe of `cora demo`, and every other recipe of this size here begins with it.

    cora pretrain pretrain/small.py --corpus.path FOLDER_OR_LIST --workdir runs/mine
    cora probe runs/mine LABELLED_LIST --method linear,knn,attentive
"""

from cora.demo import RECIPE as recipe

__all__ = ["recipe"]
