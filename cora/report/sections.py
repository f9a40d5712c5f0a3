"""The sections of the page: each a function from `Material` to `Section`, none aware of the others.

This file chooses words and figures. It computes no statistic (reading.py) and draws nothing (figures.py).
"""

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cora.report import ahead, figures, reading
from cora.report.html import image, labelled, paragraph, percent, swatch, table
from cora.report.material import GUESSES, Gallery, Material, Section
from cora.video.motion import standing, unmoved

TILE = 128
"""Height of a frame on the page in pixels."""
COLUMNS = 8
"""At most so many moments of a clip are shown."""
TINT = (250, 170, 60)
"""Of predicted tokens; they are grey below it."""
METHODS = {"linear": "Linear classifier", "knn": "Nearest neighbours", "attentive": "Attentive probe"}
SETTLING = {"backprop_cosine": "Cosine to backprop", "backprop_ratio": "Norm ratio to backprop",
            "energy_last": "Energy per clip, settled", "error_norm": "Norm of the state errors"}
KINDS = {"short": "Short mask: many small blocks", "long": "Long mask: few large blocks",
         "tube": "Tube mask: random places, for the whole clip", "random": "Random mask: single tokens",
         "future": "Future mask: all that comes later"}

HIDDEN = {"random": "A quarter, at random places", "blocks": "Three quarters, in blocks", "future": "The later half"}


def methods(probe: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (title, score) of every method in the JSON of a probe."""
    for name, score in probe.items():
        if isinstance(score, dict) and "accuracy" in score:
            yield METHODS.get(name, name), score


# --------------------------------------------------------------------------------------------------------- frames


def moments(gallery: Gallery) -> list[int]:
    """Returns the token times that are shown: at most COLUMNS, evenly spaced."""
    times = gallery.latents.shape[2]
    return [int(i) for i in np.linspace(0, times - 1, min(times, COLUMNS)).round()]


def shown_frames(gallery: Gallery, clip: int) -> UInt8[np.ndarray, "n H W 3"]:
    """Returns the first frame of each shown moment of a clip, TILE pixels high."""
    video = gallery.clips[clip]
    frames = video[[i * len(video) // gallery.latents.shape[2] for i in moments(gallery)]]
    return reading.resize(frames, TILE, max(1, round(TILE * frames.shape[2] / frames.shape[1])))


# ------------------------------------------------------------------------------------------------------- sections


def scores(material: Material) -> Section:
    """Returns what simple classifiers read from the frozen features, beside their two baselines."""
    title, probe = "What was learned", material.gallery.probe
    if probe is None:
        left_out = material.gallery.left_out
        why = f"Accuracies are left out: {escape(left_out)}." if left_out else "This run has not been probed yet."
        return Section("scores", title, f'<p class="missing">{why} Run '
                       "<code>cora probe</code> on its folder, which needs a corpus with labels, and write the report "
                       "again: the accuracies appear here.</p>")
    groups, rows = [], []
    for name, score in methods(probe):
        parts = {"trained": score, "untrained": score["random"], "pixels": score["pixels"]}
        colours = [figures.TRAINED, figures.RANDOM, figures.PIXELS]
        if "targets" in score:
            parts["targets"] = score["targets"]
            colours.append(figures.TARGETS)
        groups.append((name, [figures.Dot(k, c, float(p["accuracy"]), *map(float, p["ci95"]))
                              for (k, p), c in zip(parts.items(), colours, strict=True)]))
        rows += [[f"{name}, {k}", percent(p["accuracy"]), f"{percent(p['ci95'][0])} to {percent(p['ci95'][1])}",
                  str(p.get("level", "–")) if k not in ("pixels", "targets") else "–"] for k, p in parts.items()]
    verdicts = "".join(f"<p><b>{escape(name)}.</b> {escape(reading.compare(score))}.</p>"
                       for name, score in methods(probe))
    alt = "; ".join(f"{row[0]}: {row[1]} ({row[2]})" for row in rows)
    told = any("targets" in score for _, score in methods(probe))
    body = paragraph(
        "A simple classifier is fitted to frozen features: the encoder never saw a label. The same network before "
        "training and the bare pixels show what comes for free"
        f"{'; its targets, read without any network, what it was told' * told}. Bars are 95% intervals.", "lead")
    body += "".join(paragraph(f"Beware: {note}.", "verdict warning") for note in probe.get("notes", ()))
    body += verdicts + image(figures.dots(groups, probe.get("chance")), f"Accuracies with 95% intervals. {alt}")
    body += table(["Method and features", "Accuracy", "95% interval", "Level"], rows)
    body += paragraph(f"{probe['n_train']} training and {probe['n_test']} test clips; the test clips come from "
                      f"{probe['groups']} groups. Level and settings were chosen on training clips alone.", "note")
    return Section("scores", title, body)


def clips(material: Material) -> Section:
    """Returns film strips of the clips."""
    gallery = material.gallery
    count = min(4, len(gallery.clips))
    body = paragraph(f"{count} of the {len(gallery.clips)} clips that the pictures below are made from, "
                     f"{gallery.clips.shape[1]} frames each; time runs to the right.", "lead")
    for i in range(count):
        strip = figures.picture(reading.strip(shown_frames(gallery, i)))
        body += f"<figure>{image(strip, f'Frames of clip {i + 1}: {gallery.captions[i]}')}" \
                f"<figcaption>{escape(gallery.captions[i])}</figcaption></figure>"
    return Section("clips", "What it saw", body)


def _fixed(material: Material) -> bool:
    """Whether the targets are the same functions of the pixels for the whole run."""
    return material.config.get("target", {}).get("kind") == "hog3d"


def masks(material: Material) -> Section:
    """Returns the masks drawn over frames of the first clip."""
    gallery = material.gallery
    goal = "how brightness changes in space and time in" if _fixed(material) else "the latents of"
    body = paragraph(f"From the tokens it sees, the model predicts {goal} hidden ones at every level. "
                     "Each mask shown is one draw; training draws a new one for every clip.", "lead")
    body += "<p>" + swatch("linear-gradient(135deg,#3f7fc4,#66a95c)", "seen: the encoder's only input") \
        + swatch(f"rgb{TINT}", "predicted: hidden, and asked for") \
        + swatch("#e6e6e6", "neither") + "</p>"
    for kind, state in gallery.tokens.items():
        frames = reading.paint_masks(shown_frames(gallery, 0), state[0][moments(gallery)], TINT)
        seen, asked = float((state[0] == 1).mean()), float((state[0] == 2).mean())
        text = f"{KINDS.get(kind, kind)}. {seen:.0%} of the tokens seen, {asked:.0%} predicted."
        body += f"<figure>{image(figures.picture(reading.strip(frames)), text)}" \
                f"<figcaption>{escape(text)}</figcaption></figure>"
    return Section("masks", "What it had to predict", body)


def _panel(material: Material, name: str, title: str, floor: float | None = None,
           floor_name: str = "") -> figures.Panel | None:
    values = reading.series(material.rows, name)
    if values is None or not np.isfinite(values).any():
        return None
    return figures.Panel(title, reading.thin(values), reading.thin(reading.smooth(values)), floor, floor_name)


def _curves(material: Material, panels: list[figures.Panel | None], alt: str) -> str:
    there = [panel for panel in panels if panel is not None]
    if not there:
        return paragraph("Nothing was recorded in metrics.jsonl.", "missing")
    steps = reading.thin(np.array([row["step"] for row in material.rows], np.float64))
    ends = "; ".join(f"{p.title}: " + ", ".join(f"{x:.3g}" for x in p.line[-1]) for p in there)
    return image(figures.curves(steps, there), f"{alt} At the end, by level: {ends}.")


def losses(material: Material) -> Section:
    """Returns the loss curves, and beside them skill (where recorded) or the norm of the gradient."""
    second = _panel(material, "skill", "Skill") or _panel(material, "grad_norm", "Norm of the gradient")
    moving = ("The targets move as the teacher learns: a loss may rise while the features improve, so the curves show "
              "trouble, not quality.")
    fixed = "The targets are fixed: a lower loss is a better prediction, though not always better features."
    body = paragraph("Each level predicts by itself, so each has its own loss. Strong lines are running means. "
                     + (fixed if _fixed(material) else moving), "lead")
    still = standing(material.gallery.clips, material.gallery.latents.shape[2])
    if line := unmoved([still], material.config.get("target", {}).get("of", "")):
        body += paragraph(f"Warning: {line}.", "verdict warning")
    body += _curves(material, [_panel(material, "loss", "Prediction loss"), second], "Curves over training.")
    return Section("loss", "How training went", body)


def skill(material: Material) -> Section:
    """Returns how much of what is hidden each level predicts, beside the best guess without a network."""
    title, found = "What it predicts", material.gallery.skill
    if found is None:
        return Section("skill", title, '<p class="missing">Not measured of this step yet. Run <code>cora skill</code> '
                       "on the run's folder with any corpus, and write the report again.</p>")
    body = paragraph(f"Of {found['n_test']} clips that nothing was fitted to, tokens are hidden and predicted. “Left” "
                     "is the share of the hidden targets' variance that the prediction leaves: 0% is perfect, 100% no "
                     "better than the mean at each place. The best guess needs no network: the nearest seen token, the "
                     "last one seen, a straight line, or a linear map of the energies and pixels of all seen "
                     "neighbours. R² is what a linear map reads of the hidden tokens' own oriented energies off the "
                     "prediction; no collapse improves it.",
                     "lead")
    body += "".join(paragraph(f"Warning: {line}.", "verdict warning") for line in found["alarms"])
    rows = []
    for kind, words in HIDDEN.items():
        if kind not in found:
            continue
        one = found[kind]
        for level, share in enumerate(one["left"]):
            guess = min(one["trivial"], key=lambda name: one["trivial"][name][level])
            energies = one["readout_r2"]["energies"]
            rows.append([f"{words}, level {level}", percent(share), f"{percent(one['trivial'][guess][level])} "
                         f"({GUESSES[guess]})", f"{one['skill'][level]:+.2f}", f"{energies['predicted'][level]:.2f}",
                         f"{energies['neighbours']:.2f}", f"{energies['ceiling'][level]:.2f}"])
    body += table(["Hidden", "Left", "Best guess leaves", "Skill", "R² of energies", "from neighbours", "from targets"],
                  rows)
    return Section("skill", title, body)


def collapse(material: Material) -> Section:
    """Returns the verdict on collapse with the curves of rank and deviation that it rests on."""
    width = material.gallery.latents.shape[-1]
    judged = reading.verdict(reading.series(material.rows, "rank"), reading.series(material.rows, "std"), width)
    body = f'<p class="verdict {judged.state}"><b>{escape(judged.line)}</b> {escape(judged.advice)}</p>'
    body += paragraph("A model that gives every clip the same features predicts perfectly and knows nothing. Effective "
                      f"rank counts how many of the {width} directions a level really uses; the standard deviation "
                      "tells how much tokens differ. Both fall long before a loss curve shows it.", "lead")
    body += _curves(material, [
        _panel(material, "rank", f"Effective rank (width {width})", reading.LEAST_RANK * width, "10% of the width"),
        _panel(material, "std", "Standard deviation per dimension", reading.LEAST_STD, "collapsed"),
    ], "Rank and deviation over training.")
    return Section("collapse", "Is it healthy?", body)


def settling(material: Material) -> Section | None:
    """Returns how inference settled and how far learning was from backprop; None for a run without inference."""
    if reading.series(material.rows, "backprop_cosine") is None:
        return None
    rest = reading.series(material.rows, "residual")
    left = f" At the end of the run the slope of the energy fell to {float(rest[-1, 0]):.0%} of its first value." \
        if rest is not None else ""
    body = paragraph("Before each step of the weights the states settled under the errors of all levels. The cosine of "
                     "a level's gradient with that of end-to-end backprop on the same batch says which regime the run "
                     "is in: 1 is backprop, whatever the rule is called; a small ratio means a level that hears little "
                     "of the errors above it." + left, "lead")
    for names, alt in ((("backprop_cosine", "backprop_ratio"), "Agreement with backprop."),
                       (("energy_last", "error_norm"), "Settled states.")):
        body += _curves(material, [_panel(material, name, SETTLING[name]) for name in names], alt)
    return Section("settling", "How it settled", body)


def maps(material: Material) -> Section:
    """Returns the principal components of the latents as colours beside the frames, for up to two clips."""
    gallery = material.gallery
    levels = [reading.colour_maps(gallery.latents[:, level]) for level in range(gallery.latents.shape[1])]
    colours = figures.level_colours(len(levels))
    body = paragraph("At each level the three directions in which tokens differ most become red, green and blue. "
                     "Tokens of one colour are alike to the model: look for things that keep their colour as they "
                     "move. Colours are not comparable between levels.", "lead")
    for i in range(min(2, len(gallery.clips))):
        frames = shown_frames(gallery, i)
        rows = [("frames", image(figures.picture(reading.strip(frames)), f"Frames of clip {i + 1}"))]
        for level, (colour, share) in enumerate(levels):
            drawn = reading.strip(reading.enlarge(colour[i][moments(gallery)], *frames.shape[1:3]))
            rows.append((swatch(colours[level], f"level {level}") + paragraph(f"{share:.0%} of variance", "note"),
                         image(figures.picture(drawn), f"Principal components of level {level} for clip {i + 1}")))
        body += f"<h3>{escape(gallery.captions[i])}</h3>" + labelled(rows)
    return Section("maps", "What it tells apart", body)


def levels(material: Material) -> Section:
    """Returns the accuracy of the probe at every level."""
    title, probe = "Level by level", material.gallery.probe
    if probe is None:
        return Section("levels", title, paragraph("This needs the probe; see the first section.", "missing"))
    every = [(name, s) for name, s in methods(probe) if s["level"] < len(s["per_level"])]
    if not every:
        return Section("levels", title, paragraph("The attentive probe reads one level alone: see above.", "note"))
    panels = [figures.ByLevel(name, np.array(s["per_level"], float), np.array(s["random"]["per_level"], float),
                              float(s["pixels"]["accuracy"]), s["level"]) for name, s in every]
    ends = "; ".join(f"{p.title}: {', '.join(percent(x) for x in p.trained)}" for p in panels)
    body = paragraph("Test accuracy of every level. The level of the headline was chosen on training clips, so it need "
                     "not be the highest point here.", "lead")
    body += image(figures.by_level(panels, probe.get("chance")), f"Accuracy by level. Trained: {ends}.")
    return Section("levels", title, body)


def facts(material: Material) -> Section:
    """Returns throughput, versions and the whole configuration."""
    summary = dict(material.gallery.summary)
    versions = summary.pop("versions", {})
    shown = [[name.replace("_", " "), plain(value)] for name, value in summary.items()]
    body = '<div class="tables"><div><h3>Outcome</h3>' + table([], shown) + "</div>"
    body += "<div><h3>Versions</h3>" + table([], [[str(k), str(v)] for k, v in versions.items()]) + "</div>"
    for name, part in material.config.items():
        rows = [[str(k), plain(v)] for k, v in part.items()] if isinstance(part, dict) else [[str(name), plain(part)]]
        body += f"<div><h3>{escape(str(name))}</h3>{table([], rows)}</div>"
    return Section("facts", "Facts", body + "</div>")


def plain(value: object) -> str:
    """Returns a value of JSON as a reader would write it: few digits, lists with commas, a dash for nothing."""
    if value is None or value == "" or value != value:  # nan alone differs from itself
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)


SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    scores, clips, masks, skill, ahead.forecast, ahead.surprise, losses, settling, collapse, maps, levels, facts,
)
"""The page, from top to bottom; a section that returns None has nothing to say of this run."""
