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

from cora import config
from cora.pc.schedules import rescaled

BATCH, STEPS = 16, 240
lr, momentum = rescaled(5.25e-4, 0.99925, batch=3072 / BATCH, steps=12_000 / STEPS)

recipe = config.Pretrain(
    model=config.Model(predictor_depth=2, scaled_init=True),
    mask=config.Mask(kinds=("short", "long")),
    target=config.Target(kind="ema", of="whole", error="absolute", momentum=(momentum, momentum)),
    learn=config.Learn(rule="backprop_last"),
    optim=config.Optim(schedule="cooldown", lr=lr, lr_end=lr / 525, weight_decay=0.04, b1=0.9, b2=0.999),
    corpus=config.Corpus(crop_scale=(0.3, 1.0), crop_aspect=(0.75, 1.35), flip=True, pack=80),
    run=config.Run(steps=STEPS, batch=BATCH, seed=239, save_every=120),
)
