"""Clips for training and for evaluation: which frames of a file, which part of the picture, in which order.

Knows grain, and everything random about a clip; never a codec (that is codec.py), an array of JAX or a loss. The order
and content of clips follow from manifest, corpus, sizes, seed and shard alone: not from threads, nor from which files
proved unreadable before. Hence a saved iterator resumes exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import grain
import grain.experimental
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from cora.config import STREAM, Corpus
from cora.meaning import Count
from cora.schema import guard
from cora.video import codec, pack, stream
from cora.video.ledger import CorpusError, Ledger
from cora.video.manifest import Manifest
from cora.video.source import Opened, Source, files, resize, shrink, shrunk

Video = UInt8[np.ndarray, "T H W 3"]
Size = Count | tuple[Count, Count]
"""Height and width of a clip in pixels; one number for a square."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom of a crop in pixels of the frame."""
Framing = tuple[Box, bool]
"""What is seen of a frame, and whether it is mirrored."""
ENDLESS = 2**31 - 1
"""Films of the stream that have a number."""


def clips(
    manifest: Manifest, corpus: Corpus, *, frames: int, size: Size, batch: int, seed: int, ledger: Ledger,
    shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Returns an endless dataset of {"video": uint8 [B T H W 3], "label": int32 [B], "index": int32 [B]}.

    `index` is the clip's place in the manifest and `label` -1 where there is none. Process i of n passes `shard` (i, n)
    and has every n-th clip to itself. Every epoch is a new permutation; every visit cuts another clip. `iter` of the
    dataset has `get_state` and `set_state`; the state depends on neither threads nor prefetching, but it does depend
    on the number of worker processes, each of which makes every n-th batch.

    An unreadable file goes to the ledger and its place to another clip of the shard, drawn by that place's own random
    numbers. While iterating, CorpusError is raised once more than `corpus.max_bad` of the files are unreadable.
    """
    return _batches(_elements(manifest, corpus, frames, size, seed, ledger, shard), corpus, batch)


def mixed(
    sources: Sequence[tuple[Manifest, Corpus]], *, frames: int, size: Size, batch: int, seed: int, ledger: Ledger,
    shard: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Returns as `clips` a dataset of several corpora, each with its `weight` in the long run, and of any order.

    Threads and workers are those of the first corpus.
    """
    own = [_elements(manifest, corpus, frames, size, seed + i, ledger, shard)
           for i, (manifest, corpus) in enumerate(sources)]
    total = sum(corpus.weight for _, corpus in sources)
    whole = grain.MapDataset.mix(own, [corpus.weight / total for _, corpus in sources]) if len(own) > 1 else own[0]
    return _batches(whole, sources[0][1], batch)


def together(datasets: Sequence[grain.IterDataset]) -> grain.IterDataset:
    """Returns the dataset whose elements are tuples of one batch of each, with one state for all."""
    return grain.experimental.ZipIterDataset(datasets)


def _elements(
    manifest: Manifest, corpus: Corpus, frames: int, size: Size, seed: int, ledger: Ledger, shard: tuple[int, int]
) -> grain.MapDataset:
    """Returns the endless dataset of single clips."""
    number, shards = shard
    if corpus.path == STREAM:
        endless = grain.MapDataset.range(number, ENDLESS, shards)
        return endless.map(partial(_film, stream.renderer(frames, _sides(size)), seed))
    if not 0 <= number < shards <= len(manifest.clips):
        raise ValueError(f"shard = {shard!r}: must be (i, n) with 0 <= i < n <= {len(manifest.clips)} clips")
    paths = manifest.paths
    opened = pack.unpack(pack.pack(paths, pack.cache(), corpus.pack, corpus.threads)) if corpus.pack else files(paths)
    places = range(number, len(paths), shards)

    cut = partial(_element, manifest, opened, places, ledger, partial(_cut, corpus, frames, size))

    # Sliced before it is shuffled, so that the shards stay disjoint through all epochs.
    own = grain.MapDataset.range(places.start, places.stop, places.step).seed(_seed(seed, number))
    return own.shuffle().repeat().random_map(cut)


def _film(drawn: stream.Renderer, seed: int, number: int) -> dict[str, Any]:
    """Returns an element of the stream; its label is how the nearest thing moves, -1 where there is none."""
    video, facts = drawn(seed, number)
    return {"video": video, "label": np.int32(stream.subject(facts)), "index": np.int32(number)}


def _batches(elements: grain.MapDataset, corpus: Corpus, batch: int) -> grain.IterDataset:
    reading = grain.ReadOptions(num_threads=corpus.threads, prefetch_buffer_size=max(corpus.threads, 2 * batch))
    batches = elements.to_iter_dataset(reading).batch(batch, drop_remainder=True)
    if not corpus.workers:
        return batches
    flags.FLAGS.mark_as_parsed()  # grain's workers read a flag, which absl forbids before its own parsing
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=corpus.workers))


@guard
def views(
    path: Path | str, corpus: Corpus, *, frames: Count, size: Size, count: Count
) -> UInt8[np.ndarray, "V T H W 3"]:
    """Returns `count` clips of one file without chance: windows evenly spaced (one: the middle), the picture's centre.

    Frames are spaced as `corpus.sampling` says; under `span` every window is the whole file, read at another phase,
    or `corpus.longest` seconds of it.
    The whole picture is resized where its aspect (or its reciprocal) lies within `corpus.crop_aspect`, as a full crop
    in training is; a wider or taller picture is first cut to the nearest such aspect about its centre.
    Raises codec.VideoError.
    """
    info = _seen(path, corpus)
    numbers = np.stack([_numbers(info, corpus, frames, (view + 0.5) / count, 1.0) for view in range(count)])
    high, wide = _sides(size)
    box = _centre(info.height, info.width, corpus.crop_aspect, wide / high)
    return _several(path, corpus, numbers, [(box, False)] * count, size)


def spacing(path: Path | str, corpus: Corpus) -> float:
    """Returns how many frames a second `whole` reads of a file. Raises codec.VideoError."""
    rate = codec.inspect(Path(path)).fps
    return {"stride": rate / corpus.stride, "fps": corpus.fps, "span": rate}[corpus.sampling]


@guard
def whole(path: Path | str, corpus: Corpus, *, size: Size) -> Video:
    """Returns all frames of a file at the spacing that `corpus.sampling` asks for (under `span` every frame), of the
    picture's centre as `views` cuts it.

    Raises codec.VideoError.
    """
    info = _seen(path, corpus)
    spaced = Corpus() if corpus.sampling == "span" else corpus
    numbers = _numbers(info, spaced, max(1, int(info.frames * spacing(path, corpus) / info.fps)), 0.0, 1.0)
    high, wide = _sides(size)
    box = _centre(info.height, info.width, corpus.crop_aspect, wide / high)
    return _several(path, corpus, numbers[None], [(box, False)], size)[0]


def drawn(
    path: Path | str, corpus: Corpus, *, frames: int, size: Size, count: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "V T H W 3"]:
    """Returns `count` clips of one file by chance, as training cuts them, from one reading of the file.

    Raises codec.VideoError.
    """
    info = _seen(path, corpus)
    numbers = np.stack([_numbers(info, corpus, frames, rng.uniform(), rng.uniform(*corpus.span)) for _ in range(count)])
    framings = [_framing(info.height, info.width, corpus, size, rng) for _ in range(count)]
    return _several(path, corpus, numbers, framings, size)


def _seen(path: Path | str, corpus: Corpus) -> codec.VideoInfo:
    """Returns the file's promise as a pack would give it."""
    info = codec.inspect(Path(path))
    height, width = shrunk(info.height, info.width, corpus.pack or min(info.height, info.width))
    return info._replace(height=height, width=width)


def _several(
    path: Path | str, corpus: Corpus, numbers: Int[np.ndarray, "V T"], framings: Sequence[Framing], size: Size
) -> UInt8[np.ndarray, "V T H W 3"]:
    """Returns the views of these frames, each decoded once and framed as it comes: together they may exceed memory."""
    needed, where = np.unique(numbers, return_inverse=True)
    made = np.empty((*numbers.shape, *_sides(size), 3), np.uint8)
    places = where.reshape(numbers.shape)
    for block in codec.stream(Path(path), needed):
        pictures = shrink(block, corpus.pack) if corpus.pack else block
        for view, time in np.argwhere((places >= 0) & (places < len(block))):
            here = places[view, time]
            made[view, time] = _framed(pictures[here : here + 1], framings[view], size)[0]
        places = places - len(block)
    return made


# ------------------------------------------------------------------------------------------------- one training clip


def _seed(seed: int, number: int) -> int:
    """Returns another seed for every shard: with one seed their crops would go in step."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _element(
    manifest: Manifest, opened: Source, places: range, ledger: Ledger,
    cut: Callable[[Opened, np.random.Generator], Video], place: int, rng: np.random.Generator,
) -> dict[str, Any]:
    """Returns one element of the dataset. A plain function, so that it can be sent to worker processes."""
    index, video = _readable(opened, places, place, rng, ledger, cut)
    label = manifest.clips[index].label
    return {"video": video, "label": np.int32(-1 if label is None else label), "index": np.int32(index)}


def _readable(
    opened: Source, places: range, place: int, rng: np.random.Generator, ledger: Ledger,
    cut: Callable[[Opened, np.random.Generator], Video],
) -> tuple[int, Video]:
    """Returns (index, clip) of `place`, or of the first readable file in an order that this element's `rng` draws.

    The ledger is only written to: were it asked which files to avoid, clips would depend on what was read before.
    """
    for index in chain([place], (places[int(i)] for i in _lazy_permutation(len(places), rng))):
        try:
            return index, cut(opened(index), rng)
        except codec.VideoError as error:
            ledger.record(error)
    raise CorpusError(f"none of the {len(places)} files of this shard is readable; reasons are in {ledger.path}")


def _lazy_permutation(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Yields a random order of `range(count)`, drawn only if somebody asks."""
    yield from map(int, rng.permutation(count))


def _cut(corpus: Corpus, frames: int, size: Size, film: Opened, rng: np.random.Generator) -> Video:
    """Returns one random clip: a window in time, one crop for all its frames, perhaps mirrored."""
    numbers = _numbers(film.info, corpus, frames, rng.uniform(), rng.uniform(*corpus.span))
    needed, where = np.unique(numbers, return_inverse=True)
    video = film.read(needed)  # before the framing is drawn: what replaces an unreadable file depends on the order
    return _framed(video, _framing(video.shape[1], video.shape[2], corpus, size, rng), size)[where]


def _framing(height: int, width: int, corpus: Corpus, size: Size, rng: np.random.Generator) -> Framing:
    """Returns one random crop, and whether it is mirrored."""
    high, wide = _sides(size)
    box = _crop(height, width, corpus.crop_scale, corpus.crop_aspect, wide / high, rng)
    return box, corpus.flip and rng.uniform() < 0.5


def _framed(video: UInt8[np.ndarray, "n h w 3"], framing: Framing, size: Size) -> Video:
    box, mirrored = framing
    video = resize(video, box, *_sides(size))
    return np.ascontiguousarray(video[:, :, ::-1]) if mirrored else video


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _numbers(info: codec.VideoInfo, corpus: Corpus, frames: int, place: float, part: float) -> Int[np.ndarray, "T"]:
    """Returns `floor(start + t step)` for t = 0 ... T-1, with `start = place * room`, place in [0, 1).

    `step` in frames is `corpus.stride`, `info.fps / corpus.fps`, or for `span` the `part` of the file, or of
    `corpus.longest` seconds where it is longer than that, divided by T.
    `room` is what remains of the file. Where it is too short for the window, its last frame is repeated.
    Where frames are not shown evenly, all but a stride is measured in mean frames, and at each of these times the frame
    is taken that is shown then.
    """
    whole = min(info.frames, corpus.longest * info.fps) if corpus.longest else info.frames
    steps = {"stride": corpus.stride, "fps": info.fps / corpus.fps, "span": part * whole / frames}
    step = steps[corpus.sampling]
    room = max(0.0, info.frames - (frames - 1) * step)
    shown = place * room + np.arange(frames) * step
    if info.times and corpus.sampling != "stride":
        # A part of a millisecond keeps a frame that is due from being missed by a rounding.
        return np.searchsorted(info.times, shown * 1000 / info.fps + 1e-6, side="right") - 1
    return np.minimum(np.floor(shown).astype(np.int64), info.frames - 1)


def _crop(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], shape: float,
    rng: np.random.Generator,
) -> Box:
    """Returns a box of random area (fraction of the frame) and aspect (log-uniform), as Inception's training crop.

    `aspect` is that of the box relative to the clip's own, `shape` = width / height: by how much pictures are squeezed.
    Where ten draws do not fit into the frame, it is the centre's largest box of a legal aspect. (Szegedy et al. 2015)
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = shape * math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return _centre(height, width, aspect, shape)


def _centre(height: int, width: int, aspect: tuple[float, float], shape: float) -> Box:
    """Returns the largest centred box whose aspect relative to `shape`, or its reciprocal, lies within `aspect`."""
    low, high = shape * min(aspect[0], 1 / aspect[1]), shape * max(aspect[1], 1 / aspect[0])
    w, h = min(width, height * high), min(height, width / low)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h
