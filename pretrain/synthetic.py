"""The embedded corpus, 12 motions of many shapes: small.py, whose corpus this is where none is named.

    cora pretrain pretrain/synthetic.py --workdir runs/synthetic
"""

from cora.demo import RECIPE as recipe

__all__ = ["recipe"]
