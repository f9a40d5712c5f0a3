"""Unlike clips in every batch: films in two lengths and shapes, and images, by weight.

    cora pretrain pretrain/mixed.py --corpus.path FILMS --mix.0.path OTHERS --mix.1.path IMAGES --workdir runs/mixed

Of 16 clips, 8 are 16 square frames of FILMS, 4 are 8 oblong frames of OTHERS, and 4 are IMAGES, shown for one tubelet.
A path that is not given is the embedded corpus. All share one encoder: positions follow a clip's own
grid, and its masks its own number of tokens.
"""

from cora import config

recipe = config.Pretrain(
    corpus=config.Corpus(weight=2.0, crop_scale=(0.6, 1.0), pack=80),
    mix=(
        config.Corpus(weight=1.0, frames=8, size=(48, 80), stride=2, pack=80),
        config.Corpus(weight=1.0, frames=2, stride=1, pack=80),
    ),
    run=config.Run(steps=600, batch=16, save_every=200),
)
