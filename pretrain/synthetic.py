"""The embedded corpus: 12 motions of many shapes, minutes on two cores. The recipe of `cora demo`.

    cora pretrain pretrain/synthetic.py --workdir runs/synthetic
"""

from cora.demo import RECIPE as recipe

__all__ = ["recipe"]
