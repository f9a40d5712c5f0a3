"""The command line, as a user walks it: a small corpus through every verb, and what is said when something is wrong."""

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import cora
from cora import cli
from cora.video import codec, events, synthetic

SMALL = ["--model.size", "32", "--model.frames", "8", "--model.width", "24", "--model.heads", "2",
         "--model.levels", "2", "--model.predictor-width", "12", "--model.predictor-heads", "1",
         "--mask.kinds", "short", "--run.batch", "8", "--run.log-every", "2", "--run.save-every", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    source = synthetic.render(tmp_path_factory.mktemp("corpus"), plan=synthetic.Plan(train=48, test=24))
    (source.parent / "clips" / "broken.mp4").write_bytes(b"")
    lines = source.read_text().splitlines()
    cells = lines[1].split(",")
    cells[0] = "clips/broken.mp4"
    source.write_text("\n".join([*lines, ",".join(cells)]) + "\n")
    return source


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    cli.main(["pretrain", "pretrain/synthetic.py", "--workdir", str(folder), "--corpus.path", str(corpus),
              "--corpus.max-bad", "0.5", "--run.steps", "6", *SMALL])
    return folder


def test_pretraining_leaves_a_whole_run_folder(run):
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= {p.name for p in run.iterdir()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all(len(row["loss"]) == len(row["rank"]) == 2 for row in rows)


def test_skill_writes_the_contract_and_the_report_shows_it(run, corpus, tmp_path):
    cli.main(["skill", str(run), str(corpus), "--json", str(tmp_path / "deep" / "skill.json")])
    found = json.loads((tmp_path / "deep" / "skill.json").read_text())
    assert found == json.loads((run / "skill.json").read_text())
    assert found["n_train"] == 48 and found["n_test"] == 24 and found["step"] == 6
    for kind in ("random", "blocks", "future"):
        one = found[kind]
        assert len(one["left"]) == 2 and set(one["trivial"]) >= {"mean", "nearest", "neighbours"}
        best = [min(row[level] for row in one["trivial"].values()) for level in range(2)]
        np.testing.assert_allclose(one["skill"], 1 - np.array(one["left"]) / best)
        assert one["readout_r2"]["energies"]["ceiling"][0] > one["readout_r2"]["energies"]["predicted"][0]
    assert any("predicts nothing" in line for line in found["alarms"]), "six steps teach nothing"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(len(row["skill"]) == 2 and max(row["skill"]) < 0.5 for row in rows)


def test_forecast_and_surprise_write_the_contract_and_the_report_shows_them(run, corpus, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    cli.main(["report", str(folder)])
    assert "Run <code>cora forecast</code>" in (folder / "report.html").read_text()
    cli.main(["forecast", str(folder), str(corpus), "--show", "2"])
    found = json.loads((folder / "forecast.json").read_text())
    steps = found["by_horizon"]
    assert len(found["left"]) == 2 and found["step"] == 6 and found["seen"] == 2
    assert all(len(row) == 2 for row in (*steps["left"], *(row for rows in steps["trivial"].values() for row in rows)))
    pairs = events.events(tmp_path / "events", 3, 4)
    cli.main(["surprise", str(folder), str(pairs), "--show", "1", "--score", "misfit", "--level", "0"])
    told = json.loads((folder / "surprise" / "surprise.json").read_text())
    arrays = np.load(folder / "surprise" / "surprise.npz")
    assert len(told["films"]) == 8 and told["step"] == 6 and told["pairs"]["energy"]["all"]["pairs"] == 4
    for i, film in enumerate(told["films"]):
        np.testing.assert_allclose(film["error"]["curve"], arrays[f"{i:06d}_error"].mean((2, 3)), rtol=1e-5)
        np.testing.assert_allclose(film["error"]["mean"], arrays[f"{i:06d}_error"].mean((1, 2, 3)), rtol=1e-5)
    wins = [told["films"][2 * i + 1]["energy"]["mean"][0] > told["films"][2 * i]["energy"]["mean"][0] for i in range(4)]
    assert told["pairs"]["energy"]["all"]["accuracy"][0] == np.mean(wins)
    peaks = [film["misfit"]["peak"][0] for film in told["films"]]
    shown = next((folder / "surprise").glob("01_*.mp4"))
    assert Path(told["films"][int(np.argmax(peaks))]["path"]).stem in shown.stem
    assert codec.inspect(shown).frames == 32
    cli.main(["surprise", str(folder), told["films"][0]["path"], "--out", str(tmp_path / "one"), "--show", "0"])
    assert len(json.loads((tmp_path / "one" / "surprise.json").read_text())["films"]) == 1
    cli.main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    assert "What surprises it" in page and "reverse-gravity (1 pairs)" in page and "1 step ahead" in page
    for verb, source, *wrong in (("forecast", corpus, "--seen", "4"), ("surprise", pairs, "--context", "9")):
        with pytest.raises(SystemExit):
            cli.main([verb, str(folder), str(source), *wrong])
    assert "seen = 4: must be 1 to 3" in capsys.readouterr().err


def test_probe_writes_the_contract_and_the_ledger(run, corpus, tmp_path):
    cli.main(["probe", str(run), str(corpus), "--method", "knn,attentive", "--epochs", "1", "--views", "1",
              "--json", str(tmp_path / "probe.json")])
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["n_train"] == 48 and found["n_test"] == 24 and len(found["knn"]["per_level"]) == 2
    for method in ("knn", "attentive"):
        score = found[method]
        assert set(score) >= {"accuracy", "ci95", "level", "per_level", "random", "pixels"}
        assert 0 <= score["ci95"][0] <= score["accuracy"] <= score["ci95"][1] <= 1
        for other in (score["random"], score["pixels"]):
            assert other["ahead"] == pytest.approx(score["accuracy"] - other["accuracy"])
            assert other["ahead_ci95"][0] <= other["ahead"] <= other["ahead_ci95"][1]
    assert found["unreadable"] == 1 and sum(found["rows_by_group"].values()) == 24
    assert "broken.mp4" in (run / "bad_files_probe.csv").read_text()


def test_a_step_folder_is_a_checkpoint_too(run, tmp_path):
    steps = {p.name: p for p in (run / "checkpoints").iterdir()}
    assert {"4", "6"} <= set(steps)
    encoders = []
    for step in ("4", "6"):
        cli.main(["export", str(steps[step]), str(tmp_path / step)])
        encoders.append(cora.load(tmp_path / step).encoder.embed["proj"]["linear"]["kernel"])
    cli.main(["export", str(run), str(tmp_path / "latest")])
    latest = cora.load(tmp_path / "latest").encoder.embed["proj"]["linear"]["kernel"]
    np.testing.assert_array_equal(latest, encoders[1])
    assert not np.array_equal(encoders[0], encoders[1])


def test_a_probe_s_numbers_go_with_its_own_step_alone(run, corpus, tmp_path, capsys):
    """Of another step, or where a file of an earlier checkout says of none, card and report leave them out."""
    folder = shutil.copytree(run, tmp_path / "run")
    cli.main(["probe", str(folder / "checkpoints" / "4"), str(corpus), "--method", "knn,attentive", "--epochs", "1",
              "--views", "0", "--tokens", "whole", "--heads", "2"])
    found = json.loads((folder / "probe.json").read_text())
    assert found["step"] == 4 and found["corpus"] == str(corpus)

    def record(name, ckpt):
        cli.main(["export", str(ckpt), str(tmp_path / name), "--format", "hf"])
        return (tmp_path / name / "README.md").read_text()

    accuracy = f'"accuracy": {found["knn"]["accuracy"]}'
    assert accuracy in record("own", folder / "checkpoints" / "4")
    cli.main(["export", str(folder / "checkpoints" / "4"), str(tmp_path / "head"), "--format", "hf", "--probe"])
    with pytest.raises(SystemExit):
        cli.main(["export", str(folder), str(tmp_path / "other"), "--format", "hf", "--probe"])
    assert "probe.step = 4: the encoder is of step 6" in capsys.readouterr().err
    for why in ("is of step 4's encoder, and this one is of step 6", "does not say of which step's encoder it is"):
        card = record(why[:4], folder)
        assert accuracy not in card and why in card
        cli.main(["report", str(folder)])
        page = html.unescape((folder / "report.html").read_text())
        assert why in page and "Nearest neighbours" not in page
        (folder / "probe.json").write_text(json.dumps({name: own for name, own in found.items() if name != "step"}))


def test_features_have_a_row_for_every_readable_clip(run, corpus, tmp_path):
    cli.main(["features", str(run), str(corpus), "--out", str(tmp_path / "f.npz"), "--pool", "token"])
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["features"].shape == (2, 72, 4 * 4 * 24)
        assert len(stored["path"]) == 72
        named = dict(zip(stored["label"].tolist(), stored["class_name"].tolist(), strict=True))
    lines = [line.split(",") for line in corpus.read_text().splitlines()]
    label, name = (lines[0].index(column) for column in ("label", "class_name"))
    assert named == {int(line[label]): line[name] for line in lines[1:]}


def test_export_gives_an_encoder_that_embeds_a_video(run, corpus, tmp_path):
    cli.main(["export", str(run), str(tmp_path / "encoder")])
    encoder = cora.load(tmp_path / "encoder")
    video = next((corpus.parent / "clips").glob("*.mp4"))
    clips = cora.views(video, cora.Pretrain().corpus, frames=8, size=32, count=2)
    latents = np.asarray(encoder(clips))
    assert latents.shape == (2, 2, 16, 24) and np.isfinite(latents).all()


def test_what_goes_to_hugging_face_comes_back_and_trains_on(run, corpus, tmp_path):
    hf, back, more = (str(tmp_path / name) for name in ("hf", "back", "more"))
    cli.main(["export", str(run), hf, "--format", "hf"])
    cli.main(["import", hf, back])
    for a, b in zip(jax.tree.leaves(cora.load(hf).encoder.embed), jax.tree.leaves(cora.load(back).encoder.embed),
                    strict=True):
        np.testing.assert_array_equal(a, b)
    cli.main(["pretrain", "pretrain/synthetic.py", "--workdir", more, "--corpus.path", str(corpus),
              "--corpus.pack", "0", "--corpus.max-bad", "0.5", "--run.start", back, "--run.steps", "1", *SMALL])
    assert json.loads((tmp_path / "more" / "config.json").read_text())["run"]["start"] == back


def test_report_is_one_file(run):
    cli.main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert page.startswith("<!") and "http://" not in page and "https://" not in page


@pytest.mark.parametrize(("words", "said"), [
    (["probe", "nowhere", "nothing.csv"], "nowhere"),
    (["pretrain", "nothing.py", "--workdir", "x"], "nothing.py"),
    (["report", "nowhere"], "nowhere"),
])
def test_a_mistake_is_one_line_and_status_one(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "Traceback" not in error


def test_a_folder_that_cannot_be_made_is_a_mistake_too_and_one_that_can_is_made(run, corpus, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        cli.main(["features", str(run), str(corpus), "--out", str(tmp_path / "file" / "x.npz")])
    assert end.value.code == 1 and str(tmp_path / "file") in capsys.readouterr().err
    cli.main(["features", str(run), str(corpus), "--out", str(tmp_path / "new" / "x.npz")])
    assert (tmp_path / "new" / "x.npz").is_file()


def test_an_unknown_field_names_its_neighbour(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", "pretrain/synthetic.py", "--workdir", str(tmp_path), "--optim.weight-decy", "1"])
    assert end.value.code == 2 and "optim.weight-decay" in capsys.readouterr().err


def test_another_config_in_the_same_folder_is_refused_by_field(run, corpus, capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "pretrain/synthetic.py", "--workdir", str(run), "--corpus.path", str(corpus),
                  "--corpus.max-bad", "0.5", "--run.steps", "6", *SMALL, "--optim.lr", "0.5"])
    assert "optim.lr: 0.015 there, 0.5 now" in capsys.readouterr().err


def test_a_corpus_of_nothing_readable_stops_with_the_reason(tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_text("no film")
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "pretrain/synthetic.py", "--workdir", str(tmp_path / "run"), "--corpus.path",
                  str(tmp_path), "--run.steps", "2", *SMALL])
    assert "bad_files.csv" in capsys.readouterr().err
    with pytest.raises(codec.VideoError):
        cora.views(tmp_path / "a.mp4", cora.Pretrain().corpus, frames=8, size=32, count=1)


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["pretrain", "small", "--help"]])
def test_whoever_stops_reading_gets_no_traceback(words):
    run = subprocess.Popen([sys.executable,
        "-c", f"from cora.cli import main; main({words!r})"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    said = run.stderr.read().decode()
    run.stderr.close()
    assert run.wait() in (0, 141) and "Error" not in said and "Traceback" not in said


def test_help_of_pretraining_needs_no_recipe(capsys):
    cli.main(["pretrain", "--help"])
    assert "usage: cora pretrain" in capsys.readouterr().out


def test_an_unknown_recipe_names_those_there_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "smal", "--workdir", "x"])
    assert "small" in capsys.readouterr().err


def test_a_platform_that_is_not_there_is_one_line():
    run = subprocess.run([sys.executable, "-c", "from cora.cli import main; main(['report', 'nowhere'])"],
                         env=os.environ | {"JAX_PLATFORMS": "nowhere"}, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip().splitlines()[-1].startswith("cora report: JAX_PLATFORMS")
    assert "Traceback" not in run.stderr
