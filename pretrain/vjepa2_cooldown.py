"""V-JEPA 2's cooldown, scaled down: from the weights of pretrain/vjepa2.py, the learning rate falls in a line.

    cora pretrain pretrain/vjepa2_cooldown.py --run.start runs/vjepa2 --workdir runs/vjepa2_cooldown

                      published (ViT-L)            here
    clips             64 frames                    16 (--model.frames 64 where the films are long enough)
    batch             3072                         16
    steps             12,000                       240
    learning rate     5.25e-4 to 1e-6, a line      3.8e-5 to 7.2e-8
    momentum          .99925                       .963
    weight decay      .04                          .04

Meta's public configuration stretches this line by 1.25, so that its rate ends at 1.06e-4; the paper's ends at 1e-6, as
here. All else is as in pretrain/vjepa2.py. Without `run.start` this starts from random weights.
Source: arXiv 2506.09985.
"""

from dataclasses import replace
from pathlib import Path

from cora.cli import load_recipe

pretraining = load_recipe(Path(__file__).with_name("vjepa2.py"))
lr = pretraining.optim.lr

recipe = replace(
    pretraining,
    optim=replace(pretraining.optim, schedule="cooldown", lr_start=0.0, lr_end=lr / 525, warmup=0.1),
    run=replace(pretraining.run, steps=240, save_every=120),
)
