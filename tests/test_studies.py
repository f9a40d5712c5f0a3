"""What the programs of eval/ compute beside runs: variants, held-out people, shares of a corpus, fits."""

from collections import Counter
from dataclasses import replace

import compare
import numpy as np
import pytest
import scaling
import splits
import supervised
import tasks
import transfer

from cora.demo import RECIPE
from cora.measure import evaluation
from cora.measure.table import Table
from cora.schema import ConfigError
from cora.video import manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A list of 4 people, 3 classes and 8 clips of each, the last person for testing."""
    path = tmp_path_factory.mktemp("corpus") / "list.csv"
    rows = [f"{who}_{label}_{i}.avi,{label},c{label},{who},{'test' if who == 'd' else 'train'}"
            for who in "abcd" for label in range(3) for i in range(8)]
    path.write_text("\n".join(["path,label,class_name,group,split", *rows]))
    return path


@pytest.mark.usefixtures("as_users_have_it")
def test_a_variant_is_the_recipe_but_for_what_it_names():
    found = compare.varied(RECIPE, 'backprop_last,target.cells=[1],run.steps=7,target.of=both')
    assert found.learn.rule == "backprop_last" and found.run.steps == 7
    assert found.target.cells == (1,) and found.target.of == "both"
    back = f"local,target.cells={list(RECIPE.target.cells)},run.steps={RECIPE.run.steps},target.of={RECIPE.target.of}"
    assert compare.varied(found, back) == RECIPE
    for wrong in ("local,runs.steps=7", "local,run.step=7", "locl", "local,optim.method=Muon", "local,run.steps=2.5",
                  "local,learn.top_down=True", "local,infer.steps=2", "local,mix.0.fps=4", "local,optim.lr=NaN",
                  "steps=3"):
        with pytest.raises(ConfigError):
            compare.varied(RECIPE, wrong)


def test_results_answer_one_question(tmp_path):
    """More rows of the same question are welcome; another question finds the rows of the first, and is refused."""
    tasks.same_question(tmp_path, hold=["a"], views=8)
    tasks.same_question(tmp_path, hold=["b"], views=8)  # nothing has been answered yet
    tasks.once(tmp_path / "results.jsonl", {"seed": 0}, dict)
    tasks.same_question(tmp_path, hold=["b"], views=8)
    with pytest.raises(ValueError, match="another hold:"):
        tasks.same_question(tmp_path, hold=["a"], views=8)
    (tmp_path / "asked.json").unlink()  # rows of an earlier checkout say not what they answer
    with pytest.raises(ValueError, match="another hold, views:"):
        tasks.same_question(tmp_path, hold=["b"], views=8)


def test_the_control_with_labels_never_learns_from_a_row_that_it_answers_for(corpus, tmp_path, monkeypatch):
    """Nor does its seed move the split that all probes have, where the corpus has none."""
    bare = tmp_path / "bare.csv"
    bare.write_text("".join(line.rsplit(",", 1)[0] + "\n" for line in corpus.read_text().splitlines()))
    learned, answered = [], []

    def tables(readers, rows, *rest):
        answered.append({clip.path for clip in rows.clips if clip.split == "test"})
        columns = (np.array([getattr(clip, name) for clip in rows.clips]) for name in ("label", "group", "split"))
        return {"it": Table(np.ones((1, len(rows.clips), 3)), *columns)}

    monkeypatch.setattr(supervised, "fit", lambda recipe, rows, ledger: learned.append({c.path for c in rows.clips}))
    monkeypatch.setattr(supervised.features, "tables", tables)
    for seed in (0, 1):
        supervised.run(replace(RECIPE, run=replace(RECIPE.run, seed=seed)), bare, tmp_path / "labels")
    assert answered[0] == answered[1] and learned[0] == learned[1]
    assert answered[0] and learned[0] and not answered[0] & learned[0]


@pytest.mark.parametrize("last", ["test", "val"])
def test_rows_to_test_are_those_named_so_or_else_those_to_validate(corpus, tmp_path, last):
    path = tmp_path / "list.csv"
    path.write_text(corpus.read_text().replace(",test", f",{last}"))
    rows = evaluation.settled(evaluation.labelled(path), 0).clips
    assert {clip.group for clip in rows if clip.split == "test"} == {"d"} and len(rows) == 96
    both = tmp_path / "both.csv"
    both.write_text(path.read_text() + "\nz.avi,0,c0,z,val\ny.avi,0,c0,y,test\n")
    asked = {clip.group for clip in evaluation.labelled(both).clips if clip.split == "test"}
    assert asked == ({"d", "y"} if last == "test" else {"y"})


def test_what_no_probe_can_answer_is_said_before_any_file_is_read(corpus, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(corpus.read_text().replace(",test", ",train"))
    with pytest.raises(ValueError, match="no row has split 'test'"):
        evaluation.settled(evaluation.labelled(path), 0)
    path.write_text("\n".join(["path,label,split", "a.avi,0,train", "b.avi,1,train", "c.avi,0,test"]))
    with pytest.raises(ValueError, match="at least 3 clips in 2 classes"):
        evaluation.settled(evaluation.labelled(path), 0)


def test_held_out_people_answer_and_true_test_people_are_gone(corpus, tmp_path):
    found = manifest.load(splits.held_out(corpus, ["b"], tmp_path / "held.csv")).clips
    count = Counter((clip.group, clip.split) for clip in found)
    assert count == {("a", "train"): 24, ("b", "test"): 24, ("c", "train"): 24}
    with pytest.raises(ConfigError, match="'d'"):
        splits.held_out(corpus, ["d"], tmp_path / "held.csv")
    assert splits.held_out(corpus, [], tmp_path / "none.csv") == corpus


def test_every_training_row_answers_in_one_fold_with_its_whole_group_and_no_test_row_does(corpus, tmp_path):
    rows = manifest.load(splits.training(corpus, tmp_path / "training.csv")).clips
    assert {clip.path for clip in rows} == {c.path for c in manifest.load(corpus).clips if c.split == "train"}
    columns = (np.array([getattr(clip, name) for clip in rows]) for name in ("label", "group", "split"))
    table = Table(np.arange(len(rows), dtype=np.float32)[None, :, None], *columns)
    whole = evaluation.Reading({"trained": table, "pixels": table}, {"trained": table}, {}, ())
    parts = splits.folded(whole)
    assert (sum((part.pooled["trained"].split == "test").astype(int) for part in parts) == 1).all()
    for part in parts:
        one, *others = (*part.pooled.values(), *part.tokens.values())
        assert not {*one.group[one.split == "train"]} & {*one.group[one.split == "test"]}
        for other in others:
            np.testing.assert_array_equal(other.split, one.split)


def test_folds_are_merged_over_rows_and_their_groups_stay_apart():
    def report(rows, right, **groups):
        people = {name: right for name in groups}
        return {"n_test": rows, "rows_by_group": groups,
                "knn": {"accuracy": right, "by_group": people, "random": {"accuracy": 0.5, "by_group": {**people}}}}

    def merged(*reports):
        found = splits.merged(reports, ["knn"])
        return found["knn"]["accuracy"], found["knn"]["by_group"], found["rows_by_group"]

    apart = merged(report(10, 0.5, a=10), report(30, 0.9, b=30))
    assert apart == (pytest.approx(0.8), {"a": 0.5, "b": 0.9}, {"a": 10, "b": 30})
    one = merged(report(10, 0.5, a=10), report(30, 0.9, a=30))  # a single group, whose clips are the units
    assert one == (pytest.approx(0.8), {"a": pytest.approx(0.8)}, {"a": 40})
    none = merged(report(10, 0.5), report(30, 0.9))
    assert none == (pytest.approx(0.8), {"fold 0": 0.5, "fold 1": 0.9}, {"fold 0": 10, "fold 1": 30})


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0])
def test_a_share_is_even_over_people_and_classes_and_leaves_the_test_rows(corpus, tmp_path, part):
    found = manifest.load(scaling.share(corpus, part, tmp_path / "part.csv")).clips
    count = Counter((clip.group, clip.label) for clip in found)
    assert len(count) == 12 and all(n == (8 if who == "d" else 8 * part) for (who, _), n in count.items())


def points(power, noise=0.0, sizes=(1, 2, 4, 8)):
    rng = np.random.default_rng(0)
    return [{"size": size, "loss": 3 * (size / 4) ** -power * np.exp(noise * rng.normal())} for size in sizes]


def test_a_power_law_is_found_again_and_lines_meet_where_they_cross():
    law = scaling.fit(points(0.7), "loss", 4)
    np.testing.assert_allclose(law, (3, 0.7, 0), atol=1e-7)
    other = scaling.fit(points(0.2), "loss", 4)
    assert scaling.meeting(law, other, 4) == "x = 4"
    rough = scaling.fit(points(0.3, 0.2), "loss", 4)
    assert rough.error > 0.04 and "parallel" in scaling.meeting(rough, other, 4)
    assert np.isnan(scaling.fit(points(0.7, sizes=(1, 2)), "loss", 4).error)


def test_rows_are_grouped_by_variant_whatever_their_order():
    rows = [{"variant": name, "seed": seed} for seed in (0, 1) for name in ("b", "a")]
    assert [[row["seed"] for row in own] for own in compare.grouped(rows).values()] == [[0, 1], [0, 1]]
    assert list(compare.grouped(rows)) == ["b", "a"]
    assert compare.family("local,run.steps=800,optim.lr=0.1") == "local,optim.lr=0.1"


def test_leads_are_paired_by_seed_and_person():
    def row(variant, seed, **people):
        return {"variant": variant, "seed": seed, "rows_by_group": {"x": 5, "y": 5}, "knn": {"by_group": people}}

    rows = [row("b", 0, x=0.2, y=0.6), row("b", 1, y=0.5, x=0.3), row("a", 1, x=0.4, y=0.6), row("a", 2, x=1.0, y=1.0),
            row("c", 0), row("d", 7, x=0.1, y=0.2)]
    lines = compare.against(rows, ["knn"]).splitlines()
    assert lines[0] == "| ahead of b | knn |"
    assert lines[2:] == ["| a | +0.100 (+0.100 to +0.100; 1 seeds) |", "| c |  |", "| d |  |"]


def test_transfer_sets_each_run_and_what_it_has_to_beat_in_the_column_of_its_corpus():
    def row(run, corpus, right, **beside):
        others = {name: {"accuracy": value} for name, value in beside.items()}
        return {"run": run, "corpus": corpus, "knn": {"accuracy": right, **others}}

    rows = [row("a", "x", 0.5, random=0.25, targets=0.75), row("b", "x", 0.125), row("a", "y", 1.0, random=0.375)]
    assert transfer.table(rows, "knn").splitlines() == [
        "| knn: pretrained | on x | on y |", "|---|---|---|", "| a | 0.500 | 1.000 |", "| b | 0.125 |  |",
        "| random | 0.250 | 0.375 |", "| targets | 0.750 |  |"]


def test_transfer_reads_every_run_on_every_corpus_once_and_the_controls_beside_the_first(monkeypatch, tmp_path, capsys):
    asked = []

    def pair(run, corpus, out, methods, folds, beside, views):
        asked.append((run.name, corpus, beside))
        return {"run": run.name, "corpus": transfer.called(corpus), "knn": {"accuracy": 0.5}}

    monkeypatch.setattr(transfer, "pair", pair)
    words = ["transfer.py", "runs/a", "runs/b", "--on", "embedded", "x/list.csv", "--methods", "knn", "--out"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", [*words, str(tmp_path)])
        transfer.main()
    assert asked == [("a", "embedded", True), ("b", "embedded", False), ("a", "x/list.csv", True),
                     ("b", "x/list.csv", False)]
    assert "| knn: pretrained | on embedded | on x-list |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, str(tmp_path), "--on", "x/a.csv", "y/x/a.csv"])
    with pytest.raises(SystemExit):
        transfer.main()


HEAD = "path,label,group,split\na.avi,0,p,train\nb.avi,0,q,train\nc.avi,1,r,train\n"


def test_a_class_that_the_test_split_alone_has_is_refused_by_its_line(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HEAD + "d.avi,1,s,test\ne.avi,2,t,test\n")
    with pytest.raises(manifest.ManifestError, match=r"list\.csv:6: class '2' .* none to train on"):
        evaluation.labelled(path)


def test_rows_that_no_probe_reads_are_counted(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HEAD + "d.avi,1,s,test\ne.avi,,t,test\nf.avi,,t,test\ng.avi,1,u,holdout\n")
    with pytest.warns(manifest.ManifestWarning):
        notes = evaluation.labelled(path).notes
    assert [note.split(": ", 1)[1] for note in notes] == [
        f"2 of 7 rows have no label and are left out (the first: {path}:6)",
        "1 of 7 rows are left out, whose split is 'holdout'"]


def test_a_split_that_is_drawn_through_the_only_group_names_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,label,group\n" + "".join(f"{i}.avi,{i % 2},NA\n" for i in range(12)))
    with pytest.warns(manifest.ManifestWarning, match="'NA' in test and train"):
        rows = evaluation.settled(evaluation.labelled(path), 0)
    assert len(rows.notes) == 1
