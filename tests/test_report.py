"""Laws of the report: one file that needs no other, says what the numbers say, and trusts no foreign text."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cora.report import Gallery, Section, figures, reading, sections, write
from cora.report.material import Shown

LEVELS, WIDTH, TIMES, SIDE = 3, 16, 4, 2


def score(accuracy, reach=0.05, level=1):
    return {"accuracy": accuracy, "ci95": [accuracy - reach, accuracy + reach], "level": level,
            "per_level": [accuracy - 0.1, accuracy, accuracy - 0.05]}


def probe():
    return {"linear": score(0.7) | {"random": score(0.4), "pixels": score(0.5) | {"per_level": [0.5], "level": 0}},
            "n_train": 70, "n_test": 30, "groups": 6, "chance": 0.125}


@pytest.fixture(scope="module")
def gallery():
    rng = np.random.default_rng(0)
    grid = (2, TIMES, SIDE, SIDE)
    return Gallery(
        clips=rng.integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8),
        captions=("a ball falls", "a door opens"),
        tokens={"short": rng.integers(0, 3, grid), "long": rng.integers(0, 3, grid)},
        latents=rng.normal(size=(2, LEVELS, TIMES, SIDE, SIDE, WIDTH)),
        probe=probe(),
        summary={"steps": 40, "seconds": 125.0, "clips_per_second": 99.0, "wait_share": 0.02, "device": "cpu",
                 "versions": {"jax": "1.2.3"}, "rank_per_level": [8.0, 9.0, 10.0]},
        skill=skill(), forecast=Shown(forecast(), PNG), surprise=Shown(surprise(), PNG),
    )


PNG = b"\x89PNG what a strip would be"


def forecast():
    horizons = {"left": [[0.5, 0.75], [0.25, 0.625], [0.375, 0.875]],
                "trivial": {"mean": [[1.0, 1.0]] * 3, "neighbours": [[0.8, 1.25]] * 3}}
    return {"seen": 2, "frames_a_step": 2, "n_test": 34, "n_train": 12, "by_horizon": horizons}


def surprise():
    kinds = {kind: {"accuracy": [0.25, 0.5, 0.75], "auroc": [0.5] * 3, "pairs": 8} for kind in ("<vanish>", "all")}
    return {"score": "energy", "level": 2, "pairs": {"energy": kinds}}


def skill():
    each = {"left": [0.5, 0.625, 0.995], "skill": [0.2, 0.05, -0.4],
            "trivial": {"mean": [1.0] * 3, "nearest": [1.5] * 3, "neighbours": [0.715] * 3},
            "readout_r2": {name: {"predicted": [0.4, 0.3, 0.1], "neighbours": 0.35,
            "ceiling": [0.9] * 3} for name in ("energies", "pixels")}}
    return {"random": each, "n_train": 12, "n_test": 34, "alarms": ["level 2 predicts nothing of what is hidden"]}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run-one")


@pytest.fixture(scope="module")
def html(tmp_path_factory, gallery):
    folder = tmp_path_factory.mktemp("whole")
    return write(folder / "out", make_run(folder / "run-one"), gallery).read_text()


def make_run(folder):
    folder.mkdir()
    rows = [{"step": i, "seconds": i / 2, "clips_per_second": 99.0, "wait_share": 0.0, "loss": [1 / i] * LEVELS,
             "rank": [8.0, 9.0, 10.0], "std": [0.5] * LEVELS, "grad_norm": [1.0] * LEVELS} for i in range(1, 41)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"model": {"width": WIDTH, "rope": "tiled"}, "seed": 7}))
    return folder


class Page(HTMLParser):
    """What a browser would find: tags with attributes, text, and whether tags close in order."""

    VOID = ("img", "meta", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page(tmp_path, run, gallery, **more):
    return Page(write(tmp_path / "out", run, gallery, **more).read_text())


# ------------------------------------------------------------------------------------------------------- the page


def test_the_page_refers_to_nothing_outside_itself(html):
    links = [v for _, attrs in Page(html).tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data")]
    assert len(links) > 8 and all(link.startswith(("#", "data:image/")) for link in links)
    assert "<script" not in html and "url(" not in html and "@import" not in html
    drawings = [base64.b64decode(link.split(",")[1]).decode() for link in links if "svg" in link[:20]]
    assert len(drawings) == 4
    for drawing in drawings:
        inside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawing)
        assert "http" not in inside and "<image" not in inside


def test_every_section_is_there_once_and_linked_and_every_image_is_described(html):
    found = Page(html)
    names = [attrs["id"] for attrs in found.all("section")]
    assert names == ["scores", "clips", "masks", "skill", "forecast", "surprise", "loss", "collapse", "maps", "levels",
                     "facts"]
    assert [attrs["href"] for attrs in found.all("a")] == [f"#{name}" for name in names]
    assert all(len(attrs["alt"]) > 10 for attrs in found.all("img"))
    assert found.open == []


def test_what_is_expected_and_what_surprises_is_said_and_shown(tmp_path, html, gallery):
    def part(name, page):
        return page[page.index(f'id="{name}"') : page.index("</section>", page.index(f'id="{name}"'))]

    ahead = part("forecast", html)
    assert "1 step ahead" in ahead and "2 steps ahead" in ahead and "first 2 time steps" in ahead
    assert "<td>25.0%</td>" in ahead and "80.0% (linear map of neighbours)" in ahead
    assert "100.0% (mean at each place)" in ahead, "the best guess is that of each horizon"
    strange = part("surprise", html)
    assert "energy, &lt;vanish&gt; (8 pairs)" in strange and "<td>75%</td>" in strange
    picture = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert picture in ahead and picture in strange
    silent = gallery._replace(forecast=None, surprise=None)
    bare = write(tmp_path / "out", make_run(tmp_path / "bare"), silent).read_text()
    assert "cora forecast" in part("forecast", bare) and 'id="surprise"' not in bare


def test_foreign_text_stays_text(tmp_path, run, gallery):
    bad = '<b id="x">&amp;"\'</b>'
    (run / "config.json").write_text(json.dumps({"model": {bad: bad}, bad: bad}))
    scores = probe()
    hostile = gallery._replace(
        captions=(bad, bad), tokens={bad: gallery.tokens["short"]},
        probe=scores | {bad: scores["linear"], "groups": bad},
        summary=gallery.summary | {"device": bad, bad: bad, "versions": {bad: bad}})
    some = (sections.scores, sections.clips, sections.masks, sections.maps, sections.facts)
    found = page(tmp_path, run.rename(run.with_name("<b id=x>")), hostile, sections=some)
    assert "x" not in [attrs.get("id") for _, attrs in found.tags]
    assert found.open == []
    assert found.text.count(bad) > 12
    assert any(attrs["alt"].endswith(bad) for attrs in found.all("img"))


def test_the_same_run_gives_the_same_bytes(tmp_path, run, gallery, html):
    assert write(tmp_path, run, gallery).read_text() == html


def test_without_a_probe_the_page_says_how_to_make_one(tmp_path, run, gallery):
    found = page(tmp_path, run, gallery._replace(probe=None), sections=(sections.scores, sections.levels))
    assert "cora probe" in found.text and "not probed yet" in found.text
    assert [attrs["id"] for attrs in found.all("section")] == ["scores", "levels"] and found.all("img") == []


def test_a_probe_that_is_left_out_is_not_called_missing(tmp_path, run, gallery):
    found = page(tmp_path, run, gallery._replace(probe=None, left_out="of step 2, <b>"), sections=(sections.scores,))
    assert "left out: of step 2, <b>." in found.text and "not been probed" not in found.text
    assert "not probed yet" not in found.text


def test_a_run_without_rows_still_has_a_page(tmp_path, run, gallery):
    (run / "metrics.jsonl").write_text("")
    found = page(tmp_path, run, gallery, sections=(sections.losses, sections.collapse))
    assert "Nothing was recorded" in found.text and "Unknown" in found.text


def test_fixed_targets_are_not_called_latents_of_a_teacher(tmp_path, run, gallery):
    own = (sections.masks, sections.losses)
    assert "the latents of hidden" in page(tmp_path, run, gallery, sections=own).text
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"target": {"kind": "hog3d"}}))
    text = page(tmp_path, run, gallery, sections=own).text
    assert "latents" not in text and "teacher" not in text and "targets are fixed" in text


def test_the_numbers_of_probe_config_and_summary_are_on_the_page(html):
    text = Page(html).text
    for words in ("70.0%", "65.0% to 75.0%", "untrained 40.0%, pixels 50.0%", "tiled", "1.2.3", "2 min 5 s",
                  "99 clips/s", "effective rank 8 to 10 of 16", "70 training and 30 test clips", "Healthy"):
        assert words in text, words


def test_a_section_of_ones_own_is_added_by_passing_it(tmp_path, run, gallery):
    own = Section("forecast", "What comes next", "<p>mine</p>")
    found = page(tmp_path, run, gallery, sections=(sections.facts, lambda material: own))
    assert found.all("section")[-1]["id"] == "forecast" and "mine" in found.text
    with pytest.raises(ValueError, match="name of its own"):
        page(tmp_path, run, gallery, sections=(sections.facts, sections.facts))


@pytest.mark.parametrize("rate", [None, float("nan")])
def test_a_run_too_short_for_rates_still_has_a_page(tmp_path, run, gallery, rate):
    short = gallery._replace(summary=gallery.summary | {"clips_per_second": rate, "wait_share": rate})
    text = page(tmp_path, run, short, sections=(sections.facts,)).text
    assert "too short a run to tell" in text and "clips/s" not in text and "nan" not in text.lower()


@pytest.mark.parametrize(("change", "words"), [
    ({"captions": ("one",)}, "1 captions of 2 clips"),
    ({"clips": np.zeros((2, 8, 32, 32, 3), np.float32)}, "must be uint8"),
    ({"latents": np.zeros((1, LEVELS, TIMES, SIDE, SIDE, WIDTH))}, "with V = 2"),
    ({"tokens": {"long": np.zeros((2, TIMES, SIDE, SIDE + 1), int)}}, "'long' have shape"),
])
def test_parts_that_do_not_fit_are_named(tmp_path, run, gallery, change, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "out", run, gallery._replace(**change))


def test_a_long_run_of_large_clips_stays_below_three_megabytes(tmp_path, run, gallery):
    rng = np.random.default_rng(0)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    (run / "metrics.jsonl").write_text("".join(
        json.dumps(row | {"step": i, "loss": rng.normal(size=LEVELS).tolist()}) + "\n" for i in range(1, 5001)))
    noise = rng.integers(0, 256, (4, 16, 160, 160, 3), dtype=np.uint8)
    large = gallery._replace(
        clips=noise, captions=("noise",) * 4, latents=rng.normal(size=(4, LEVELS, 8, 10, 10, WIDTH)),
        tokens={k: rng.integers(0, 3, (4, 8, 10, 10)) for k in ("short", "long")})
    assert write(tmp_path / "out", run, large).stat().st_size < 3e6


# ------------------------------------------------------------------------------------------------------- verdicts


def curve(*ends, start=None, rows=100):
    start = ends if start is None else start
    return np.linspace(np.array(start, float), np.array(ends, float), rows)


@pytest.mark.parametrize(("rank", "std", "state", "words"), [
    (curve(40, 50), curve(0.5, 0.6), "healthy", "at least 40 of 128"),
    (curve(40, 12), curve(0.5, 0.6), "warning", "level 1 uses few of its 128 directions"),
    (curve(40, 50), curve(0.01, 0.6), "warning", "level 0 tells tokens apart no more"),
    (curve(5, 5), curve(0.01, 0.02), "warning", "levels 0, 1 tell"),
    (curve(30, 50, start=(100, 50)), curve(0.5, 0.6), "warning", "level 0 has lost more than half"),
    (curve(60, 50, start=(100, 20)), curve(0.5, 0.6), "healthy", ""),
    (curve(np.nan, 50), curve(0.5, 0.6), "warning", "level 0 uses few"),
    (None, curve(0.5, 0.6), "unknown", "cannot be judged"),
    (curve(40, 50, rows=1), curve(0.5, 0.6, rows=1), "healthy", ""),
])
def test_the_verdict_names_the_level_and_the_reason(rank, std, state, words):
    judged = reading.verdict(rank, std, 128)
    assert judged.state == state and words in judged.line
    assert bool(judged.advice) == (state == "warning")


def test_the_verdict_rests_on_the_last_tenth():
    rank = np.full((100, 1), 5.0)
    rank[90:] = 60
    assert reading.verdict(rank, curve(0.5), 128).state == "healthy"
    assert reading.verdict(rank[::-1], curve(0.5), 128).state == "warning"


@pytest.mark.parametrize(("trained", "words"), [
    (0.7, "clearly better than the same network untrained (40%), and clearly better than raw pixels (50%)"),
    (0.55, "clearly better than the same network untrained (40%), and above raw pixels (50%), though"),
    (0.47, "above the same network untrained (40%), though not beyond doubt, and no better than raw pixels"),
    (0.4, "no better than the same network untrained (40%), and no better than raw pixels"),
])
def test_a_score_is_compared_by_its_intervals(trained, words):
    assert words in reading.compare(score(trained) | {"random": score(0.4), "pixels": score(0.5)})


def test_a_lead_over_groups_decides_where_it_is_known():
    def beside(low, high):
        return score(0.48) | {"ahead": 0.02, "ahead_ci95": [low, high]}

    words = reading.compare(score(0.5) | {"random": beside(0.01, 0.03), "pixels": beside(-0.01, 0.05)})
    assert "better than the same network untrained (48%) by 1 to 3 points" in words
    assert "above raw pixels (48%), though not beyond doubt" in words


# --------------------------------------------------------------------------------------------------------- arrays


def test_a_series_has_a_column_a_level_and_nan_where_a_row_lacks_it():
    rows = [{"step": 1, "loss": [1, 2], "lr": 0.5}, {"step": 2, "lr": 0.25}]
    np.testing.assert_array_equal(reading.series(rows, "loss"), [[1, 2], [np.nan, np.nan]])
    np.testing.assert_array_equal(reading.series(rows, "lr"), [[0.5], [0.25]])
    assert reading.series(rows, "skill") is None


def test_thinning_keeps_short_curves_and_the_mean_of_long_ones():
    values = np.random.default_rng(0).normal(size=(1000, 2))
    assert reading.thin(values, 1000) is values
    thinned = reading.thin(values, 100)
    np.testing.assert_allclose(thinned, values.reshape(100, 10, 2).mean(1))
    np.testing.assert_allclose(reading.thin(np.full(999, 2.5), 100), np.full(100, 2.5))


def test_smoothing_is_the_mean_of_the_window_without_nan():
    values = np.random.default_rng(0).normal(size=(50, 2))
    values[10, 0] = np.nan
    smooth = reading.smooth(values, share=0.2)
    for i in range(50):
        np.testing.assert_allclose(smooth[i], np.nanmean(values[max(0, i - 5):i + 6], axis=0))


def test_colour_maps_do_not_change_under_a_rotation_or_a_shift_of_the_latents(gallery):
    latents = gallery.latents[:, 0] * np.linspace(5, 0.1, WIDTH)
    turned = latents @ np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0] + 3
    colours, share = reading.colour_maps(latents)
    again, same = reading.colour_maps(turned)
    assert np.abs(colours.astype(int) - again).max() <= 1 and share == pytest.approx(same)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 20


def test_the_first_colour_follows_the_direction_of_most_variance():
    latents = np.random.default_rng(0).normal(size=(2, 4, 3, 3, 8)) * [0.1, 9, 0.2, 0.1, 3, 0.1, 0.1, 0.1]
    colours, share = reading.colour_maps(latents)
    values = latents[..., 1].ravel()
    order = np.clip(values, *np.percentile(values, [2, 98]))
    assert abs(np.corrcoef(colours[..., 0].ravel(), order)[0, 1]) > 0.99
    assert share == pytest.approx(np.sort(np.linalg.svd(
        (flat := latents.reshape(-1, 8)) - flat.mean(0), compute_uv=False) ** 2)[::-1][:3].sum()
        / ((flat - flat.mean(0)) ** 2).sum())


def test_collapsed_latents_give_grey():
    colours, share = reading.colour_maps(np.full((1, 2, 3, 3, 8), 2.5))
    assert (colours == 128).all() and share == 0
    line = np.zeros((1, 2, 3, 3, 2))
    line[..., 0] = np.arange(18).reshape(1, 2, 3, 3)
    turned = line @ np.array([[0.6, 0.8], [-0.8, 0.6]])  # leaves rounding where there was nothing
    assert (reading.colour_maps(turned)[0][..., 1:] == 128).all()
    colours, share = reading.colour_maps(line)
    assert share == pytest.approx(1) and (colours[..., 1:] == 128).all() and np.ptp(colours[..., 0]) == 255


def test_resizing_keeps_constants_and_ramps_and_averages_areas():
    frames = np.full((1, 10, 6, 3), 77, np.uint8)
    assert (reading.resize(frames, 25, 4) == 77).all()
    ramp = np.broadcast_to(np.arange(0, 200, 20, dtype=np.uint8)[None, :, None, None], (1, 10, 6, 3))
    big = reading.resize(ramp, 40, 6)[0, :, 0, 0].astype(float)
    np.testing.assert_allclose(big[4:-4], ((np.arange(40) + 0.5) / 4 - 0.5)[4:-4] * 20, atol=0.51)
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert reading.resize(noise, 8, 8).std() < noise.std() / 4


def test_masks_show_context_as_it_is_tint_targets_and_fade_the_rest():
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
    state = np.array([[[0, 1, 2], [1, 2, 0]]])
    painted = reading.paint_masks(frames, state, (255, 0, 0))
    np.testing.assert_array_equal(painted[0, :4, 4:8], frames[0, :4, 4:8])
    np.testing.assert_array_equal(painted[0, 4:, :4], frames[0, 4:, :4])
    for target in (painted[0, :4, 8:], painted[0, 4:, 4:8]):
        assert (target[..., 0].astype(int) - target[..., 1] > 150).all()
    for rest in (painted[0, :4, :4], painted[0, 4:, 8:]):
        assert (rest >= 226).all() and np.ptp(rest.astype(int), axis=-1).max() == 0


def test_enlarged_tokens_cover_their_patch():
    tokens = np.arange(6).reshape(1, 2, 3)
    np.testing.assert_array_equal(reading.enlarge(tokens, 4, 9), np.kron(tokens, np.ones((1, 2, 3))))


def test_a_strip_is_the_frames_side_by_side():
    frames = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    strip = reading.strip(frames, gap=2)
    assert strip.shape == (4, 3 * 5 + 2 * 2, 3)
    np.testing.assert_array_equal(strip[:, 7:12], frames[1])
    assert (strip[:, 5:7] == 255).all()


def test_shown_frames_are_the_first_of_their_tokens_and_span_the_clip(gallery):
    clips = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None, None], (1, 32, 8, 8, 3))
    long = gallery._replace(clips=clips, latents=np.zeros((1, 1, 16, 2, 2, 4)))
    times = sections.moments(long)
    assert len(times) == 8 and (times[0], times[-1]) == (0, 15)
    assert sections.shown_frames(long, 0)[:, 0, 0, 0].tolist() == [2 * i for i in times]


@pytest.mark.parametrize("levels", [1, 4, 12])
def test_levels_have_colours_of_their_own(levels):
    assert len(set(figures.level_colours(levels))) == levels
    assert figures.level_colours(levels)[0] == figures.level_colours(4)[0]


def test_a_run_with_inference_tells_how_it_settled(tmp_path, gallery):
    """The section stands there only if the run settled states, and says what the last row says."""
    plain = make_run(tmp_path / "plain")
    assert 'id="settling"' not in write(tmp_path / "a", plain, gallery).read_text()
    settled = make_run(tmp_path / "settled")
    rows = [json.loads(line) for line in (settled / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"backprop_cosine": [0.1, 0.9, 0.987], "backprop_ratio": [0.01, 0.1, 1.0], "residual": [0.42],
                "energy_last": [1.0, 2.0, 3.0], "error_norm": [0.1, 0.2, 0.3]}
    (settled / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write(tmp_path / "b", settled, gallery).read_text()
    assert 'id="settling"' in page and "fell to 42% of its first value" in page
    assert "Cosine to backprop: 0.1, 0.9, 0.987" in page


def test_what_it_predicts_stands_beside_the_best_guess_and_the_alarm(html, gallery, tmp_path):
    part = html[html.index('id="skill"') : html.index("</section>", html.index('id="skill"'))]
    assert "A quarter, at random places, level 1" in part and "62.5%" in part
    assert "71.5% (linear map of neighbours)" in part and "-0.40" in part
    assert "Warning: level 2 predicts nothing of what is hidden." in part and "Of 34 clips" in part
    bare = write(tmp_path / "out", make_run(tmp_path / "bare"), gallery._replace(skill=None)).read_text()
    assert "cora skill" in bare and "71.5%" not in bare


# ------------------------------------------------------------------------------------------------------- warnings


def test_what_is_to_be_known_of_a_corpus_stands_beside_its_accuracies(tmp_path, run, gallery):
    note = "3 of 9 groups have clips in more than one split ('<p1>' in test and train)"
    told = page(tmp_path, run, gallery._replace(probe=probe() | {"notes": [note]}), sections=(sections.scores,))
    assert note in told.text and note not in page(tmp_path, run, gallery, sections=(sections.scores,)).text


def test_clips_that_stand_still_are_named_where_only_change_is_asked_for(tmp_path, run, gallery):
    still = gallery._replace(clips=gallery.clips[:, :1].repeat(8, 1))
    for of, shown, warns in (("change", still, True), ("whole", still, False), ("change", gallery, False)):
        (run / "config.json").write_text(json.dumps({"target": {"of": of}}))
        text = page(tmp_path, run, shown, sections=(sections.losses,)).text
        assert ("--target.of whole" in text) == warns
