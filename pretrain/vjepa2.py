"""V-JEPA 2's pretraining, scaled down: warm-up, then a constant rate, a constant teacher's momentum and decay.

    cora pretrain pretrain/vjepa2.py --workdir runs/vjepa2
    cora pretrain pretrain/vjepa2.py --corpus.path FILMS --corpus.sampling fps --corpus.fps 4 --workdir runs/vjepa2

                      published (ViT-L)                    here
    encoder           24 blocks of 1024, 16 heads          4 of 128, 4 heads
    predictor         12 blocks of 384, 12 heads           2 of 64, 2 heads
    clips             16 frames of 256 pixels at 4 fps     16 of 64 pixels, every frame (the embedded films last 1.7 s)
    batch             3072                                 16
    steps             240,000 (warm-up 12,000)             4,800 (240)
    learning rate     1e-4 to 5.25e-4                      7.2e-6 to 3.8e-5
    momentum          .99925                               .963
    weight decay      .04                                  .04

The encoder by its name is `config.sized("large")`. How rate and momentum are scaled: pretrain/README.md. Whoever
changes batch or steps changes them here, so that both follow. Next: pretrain/vjepa2_cooldown.py.
Source: arXiv 2506.09985.
"""

from cora import config
from cora.pc.schedules import rescaled

BATCH, STEPS = 16, 4800
lr, momentum = rescaled(5.25e-4, 0.99925, batch=3072 / BATCH, steps=240_000 / STEPS)

recipe = config.Pretrain(
    model=config.Model(predictor_depth=2, scaled_init=True),
    mask=config.Mask(kinds=("short", "long")),
    target=config.Target(kind="ema", of="whole", error="absolute", momentum=(momentum, momentum)),
    learn=config.Learn(rule="backprop_last"),
    optim=config.Optim(schedule="constant", lr=lr, lr_start=lr / 5.25, warmup=12_000 / 240_000,
                       weight_decay=0.04, b1=0.9, b2=0.999),
    corpus=config.Corpus(crop_scale=(0.3, 1.0), crop_aspect=(0.75, 1.35), flip=True, pack=80),
    run=config.Run(steps=STEPS, batch=BATCH, seed=239, save_every=600),
)
