"""V-JEPA 2.1's pretraining, scaled down: one predictor of all levels' latents, of hidden and of seen tokens.

    cora pretrain pretrain/vjepa21.py --workdir runs/vjepa21
    cora pretrain pretrain/vjepa21.py --corpus.path FILMS --corpus.sampling fps --corpus.fps 4 --workdir runs/vjepa21

                      published                              here
    encoder           ViT-L to ViT-G, read at 4 levels       4 blocks of 128, each a level
    positions         interleaved, scaled to 16 x 16         the same
    a batch           128 clips and 2,304 images             16 clips
    steps             135,000 (warm-up 12,000)               2,700 (240)
    learning rate     1e-4 to 6e-4, then constant            8.1e-6 to 4.9e-5
    context error     x .5 from step 30,000, 0 to 15,000     the same fractions of the run; by 1 / sqrt(distance)
    momentum          .99925                                 .963
    weight decay      .04                                    .04

Not here: images with a tokenizer of their own, modality embeddings, and the guard that skips a step of exceptional
loss. Its cooldown (12,000 steps, 64 frames, no distance, no ramp) is --optim.schedule cooldown
--learn.no-context-distance --learn.context-ramp 0 0 --run.start runs/vjepa21.
Source: arXiv 2603.14482.
"""

from cora import config
from cora.pc.schedules import rescaled

BATCH, STEPS = 16, 2700
lr, momentum = rescaled(6e-4, 0.99925, batch=(128 + 2304) / BATCH, steps=135_000 / STEPS)

recipe = config.Pretrain(
    model=config.Model(rope="interleaved", rope_grid=16, predictor_depth=2, scaled_init=True),
    mask=config.Mask(kinds=("short", "long")),
    target=config.Target(kind="ema", of="whole", error="absolute", momentum=(momentum, momentum)),
    learn=config.Learn(rule="dense", context=0.5, context_ramp=(1 / 9, 2 / 9), context_distance=True),
    optim=config.Optim(schedule="constant", lr=lr, lr_start=lr / 6, warmup=12_000 / 135_000,
                       weight_decay=0.04, b1=0.9, b2=0.999),
    corpus=config.Corpus(crop_scale=(0.3, 1.0), crop_aspect=(0.75, 1.35), flip=True, pack=80),
    run=config.Run(steps=STEPS, batch=BATCH, seed=239, save_every=600),
)
