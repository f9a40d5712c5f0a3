"""Every annotation format says the same of the same corpus, and what cannot be understood is refused with advice."""

import json
from pathlib import Path

import pytest

from cora.video.manifest import FORMATS, Clip, ManifestError, ManifestWarning, load, select


def put(root: Path, **texts: str) -> Path:
    """Writes files by path (`__` stands for `/`, `_dot_` for `.`) and returns the root."""
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def ours(root: Path) -> Path:
    put(root, manifest_dot_csv="path,label,class_name,group,split,trial\n"
        "a/x 1.mp4,1,run,p1,train,7\na/y.mp4,0,hop,p2,test,7\na/z.mp4,-1,,,validation,7\n")
    return root / "manifest.csv"


def vjepa(root: Path) -> Path:
    return put(root, train_dot_csv="a/x.mp4 1\n\na/y.mp4 0\n") / "train.csv"


def vjepa_spaces(root: Path) -> Path:
    return put(root, list_dot_txt="a/x 1.mp4::1\n/abs/y.mp4::0\n") / "list.txt"


def ucf(root: Path) -> Path:
    put(root, classInd_dot_txt="1 Hop\n2 Run\n", trainlist01_dot_txt="Run/v_Run_g08_c01.avi 2\n",
        testlist01_dot_txt="Hop/v_Hop_g01_c02.avi\n", trainlist02_dot_txt="Hop/v_Hop_g01_c02.avi 1\n")
    return root


def hmdb(root: Path) -> Path:
    put(root, hop_test_split1_dot_txt="h1.avi 1\nh2.avi 0\n", run_test_split1_dot_txt="r1.avi 2 \n",
        run_test_split2_dot_txt="r1.avi 1\n")
    return root


def something(root: Path) -> Path:
    rows = [{"id": "7", "template": "Holding [something]", "label": "holding a cup", "placeholders": ["a cup"]},
            {"id": "9"}]
    put(root, labels_dot_json='{"Dropping something": "0", "Holding something": "1"}',
        validation_dot_json=json.dumps(rows))
    return root / "validation.json"


def kinetics(root: Path) -> Path:
    put(root, k_dot_csv="label,youtube_id,time_start,time_end,split\nrun,abc,19,29,train\nhop,-x_y,0,10,validate\n",
        run__abc_000019_000029_dot_mp4="")
    return root / "k.csv"


def tree(root: Path) -> Path:
    return put(root, train__run__b_dot_mp4="", train__run__a_dot_MP4="", val__hop__c_dot_webm="", readme_dot_txt="")


def class_tree(root: Path) -> Path:
    return put(root, run__b_dot_mp4="", hop__a_dot_avi="", run___dot_hidden_dot_mp4="")


def bare(root: Path) -> Path:
    return put(root, b_dot_mp4="", a_dot_mkv="", notes_dot_txt="")


def one_folder(root: Path) -> Path:
    return put(root, clips__b_dot_mp4="", clips__a_dot_mkv="")


RUN, HOP = (1, "run"), (0, "hop")
EXPECTED = {
    ours: [("a/x 1.mp4", *RUN, "p1", "train"), ("a/y.mp4", *HOP, "p2", "test"), ("a/z.mp4", None, "", "", "val")],
    vjepa: [("a/x.mp4", 1, "1", "", "train"), ("a/y.mp4", 0, "0", "", "train")],
    vjepa_spaces: [("a/x 1.mp4", 1, "1", "", ""), ("/abs/y.mp4", 0, "0", "", "")],
    ucf: [("Run/v_Run_g08_c01.avi", 1, "Run", "g08", "train"), ("Hop/v_Hop_g01_c02.avi", 0, "Hop", "g01", "test")],
    hmdb: [("hop/h1.avi", *HOP, "", "train"), ("run/r1.avi", *RUN, "", "test")],
    something: [("7.webm", 1, "Holding something", "", "val"), ("9.webm", None, "", "", "val")],
    kinetics: [("run/abc_000019_000029.mp4", *RUN, "abc", "train"), ("-x_y_000000_000010.mp4", *HOP, "-x_y", "val")],
    tree: [("train/run/a.MP4", *RUN, "", "train"), ("train/run/b.mp4", *RUN, "", "train"),
           ("val/hop/c.webm", *HOP, "", "val")],
    class_tree: [("hop/a.avi", *HOP, "", ""), ("run/b.mp4", *RUN, "", "")],
    bare: [("a.mkv", None, "", "", ""), ("b.mp4", None, "", "", "")],
    one_folder: [("clips/a.mkv", None, "", "", ""), ("clips/b.mp4", None, "", "", "")],
}


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_each_format_is_known_by_what_is_there(tmp_path, make):
    manifest = load(make(tmp_path))
    meant = [Clip(tmp_path / p, label, name, group or str(tmp_path / p), split)
             for p, label, name, group, split in EXPECTED[make]]
    assert list(manifest.clips) == meant
    assert all(manifest.classes[c.label] == c.class_name for c in manifest.clips if c.label is not None)


def test_every_format_of_the_table_is_tried_here(tmp_path):
    made = [make(tmp_path / make.__name__) for make in EXPECTED]
    first = {next(i for i, (fits, _) in enumerate(FORMATS) if fits(path)) for path in made}
    assert first | {0} == set(range(len(FORMATS)))


def test_a_folder_with_our_csv_is_read_by_it(tmp_path):
    assert load(ours(tmp_path).parent) == load(tmp_path / "manifest.csv")


def test_one_list_of_ucf_or_hmdb_chooses_its_split(tmp_path):
    assert [c.path.name for c in load(ucf(tmp_path / "u") / "trainlist02.txt").clips] == ["v_Hop_g01_c02.avi"]
    assert [(c.label, c.split) for c in load(hmdb(tmp_path / "h") / "run_test_split2.txt").clips] == [(0, "train")]


REFUSED = {
    "nothing is there": ({}, "no/such", "does not exist"),
    "an empty list": ({"a_dot_csv": ""}, "a.csv", "no format fits"),
    "one word a line": ({"a_dot_csv": "x.mp4\n"}, "a.csv", "no format fits"),
    "a folder without videos": ({"a__b_dot_txt": ""}, "a", "no clip.*mp4"),
    "a header and no row": ({"a_dot_csv": "path,label\n"}, "a.csv", "no clip"),
    "a label in words": ({"a_dot_csv": "path,label\nx.mp4,1\ny.mp4,run\n"}, "a.csv", r"a\.csv:3: label 'run'"),
    "a negative label": ({"a_dot_csv": "x.mp4 0\ny.mp4 -3\n"}, "a.csv", r"a\.csv:2: label '-3'"),
    "a cell too few": ({"a_dot_csv": "path,label,split\nx.mp4,1\n"}, "a.csv", r"a\.csv:2: .*header \(3\)"),
    "a cell too many": ({"a_dot_csv": "path,label\nx.mp4,1,2\n"}, "a.csv", r"a\.csv:2: .*header \(2\)"),
    "an empty path": ({"a_dot_csv": "path,label\n,1\n"}, "a.csv", r"a\.csv:2: the path is empty"),
    "a path with a space": ({"a_dot_csv": "x.mp4 1\ny z.mp4 1\n"}, "a.csv", r"a\.csv:2: .*path::label"),
    "two names of a label": ({"a_dot_csv": "path,label,class_name\nx,1,a\ny,1,b\n"}, "a.csv", "label 1 is both"),
    "UCF101 without numbers": ({"trainlist01_dot_txt": "Run/v.avi 1\n"}, "trainlist01.txt", "classInd.txt.*put it"),
    "UCF101, unknown class": ({"classInd_dot_txt": "1 Run\n", "trainlist01_dot_txt": "Hop/v.avi 1\n"},
                              "trainlist01.txt", r"trainlist01\.txt:1: class 'Hop'"),
    "HMDB51, a fourth split": ({"run_test_split1_dot_txt": "r.avi 3\n"}, "run_test_split1.txt", r"split1\.txt:1: "),
    "Something without numbers": ({"train_dot_json": "[]"}, "train.json", r"labels\.json.*put it"),
    "Something, unknown template": ({"train_dot_json": '[{"id": "1", "template": "x"}]', "labels_dot_json": "{}"},
                                    "train.json", "row 1: .*'x'"),
    "broken JSON": ({"train_dot_json": "[{]", "labels_dot_json": "{}"}, "train.json", "is not JSON"),
    "Kinetics with odd times": ({"k_dot_csv": "label,youtube_id,time_start,time_end,split\nrun,abc,?,9,train\n"},
                                "k.csv", r"k\.csv:2: times"),
    "folders of several depths": ({"a__x_dot_mp4": "", "b__y_dot_mp4": "", "z_dot_mp4": ""}, "", r"z\.mp4 .*move it"),
    "folders too deep": ({"a__b__c_dot_mp4": "", "a__d__e_dot_mp4": ""}, "", "move it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_understood_is_refused_with_its_place(tmp_path, case):
    texts, name, message = REFUSED[case]
    with pytest.raises(ManifestError, match=message):
        load(put(tmp_path, **texts) / name)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x.mp4 1\n\xff\xfe\x00 1\n")
    with pytest.raises(ManifestError, match="UTF-8"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize("header", [
    "path, label , class_name", '"path","label","class_name"', 'path, "label", class_name'])
def test_blanks_and_quotes_in_a_header_are_no_part_of_its_names(tmp_path, header):
    rows = 'x.mp4, 1, run\n"y, z.mp4", 0 ,"hop"\n'
    found = load(put(tmp_path, a_dot_csv=f"{header}\n{rows}") / "a.csv")
    assert found == load(put(tmp_path, a_dot_csv='path,label,class_name\nx.mp4,1,run\n"y, z.mp4",0,hop\n') / "a.csv")
    assert [(c.path.name, c.label) for c in found.clips] == [("x.mp4", 1), ("y, z.mp4", 0)]


def test_a_header_of_kinetics_may_be_quoted(tmp_path):
    text = (kinetics(tmp_path)).read_text()
    quoted = put(tmp_path, q_dot_csv=text.replace("label,youtube_id,", '"label", "youtube_id",')) / "q.csv"
    assert load(quoted) == load(tmp_path / "k.csv")


def test_linked_class_folders_count_like_any_other(tmp_path):
    meant = load(class_tree(tmp_path / "real"))
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("hop", "run"):
        (linked / name).symlink_to(tmp_path / "real" / name)
    found = load(linked)
    assert found.classes == meant.classes == ("hop", "run")
    assert [(c.path.relative_to(linked), c.label) for c in found.clips] == [
        (c.path.relative_to(tmp_path / "real"), c.label) for c in meant.clips]


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path):
    meant = load(class_tree(tmp_path))
    (tmp_path / "run" / "again").symlink_to(tmp_path)
    (tmp_path / "hop" / "itself").symlink_to(tmp_path / "hop")
    assert load(tmp_path) == meant


def test_what_lies_in_a_hidden_folder_is_no_clip(tmp_path):
    meant = load(class_tree(tmp_path))
    put(tmp_path, _dot_trash__z_dot_mp4="", run___dot_thumbs__b_dot_mp4="")
    assert load(tmp_path) == meant


def test_a_hidden_folder_is_read_where_it_is_asked_for(tmp_path):
    assert len(load(class_tree(tmp_path / ".corpus")).clips) == 2


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder, listed = class_tree(tmp_path), Path.iterdir

    def iterdir(path):
        if path.name == "run":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(ManifestError, match=r"run: cannot be listed \(Permission denied\)"):
        load(folder)


def test_select_keeps_one_split_and_the_classes(tmp_path):
    manifest = load(ours(tmp_path))
    chosen = select(manifest, "test")
    assert [c.path.name for c in chosen.clips] == ["y.mp4"] and chosen.classes == manifest.classes
    with pytest.raises(ManifestError, match=r"'nope'.*legal: test, train, val"):
        select(manifest, "nope")


def test_select_takes_all_of_a_corpus_without_splits(tmp_path):
    manifest = load(bare(tmp_path))
    assert select(manifest, "train") == manifest


@pytest.mark.parametrize(("word", "groups"), [("", 2), (" ", 2), ("NA", 1), ("N/A", 1), ("None", 1), ("Nan", 1)])
def test_a_clip_without_a_group_is_its_own_and_only_an_empty_cell_means_none(tmp_path, word, groups):
    path = put(tmp_path, a_dot_csv=f"path,label,group\nx.mp4,0,{word}\ny.mp4,0,{word}\n") / "a.csv"
    assert len({c.group for c in load(path).clips}) == groups


def said(path):
    """What a list says, for comparison of two that lie in one folder."""
    found = load(path)
    return found, [(c.path.name, c.label, c.class_name, c.group, c.split) for c in found.clips]


PLAIN = "path,label,group,split\nx.mp4,1,p1,train\ny z.mp4,0,p2,test\n"
ALIKE = {
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "capitals": PLAIN.replace("path,label", "Path,LABEL"),
    "another order": "split,group,label,path\ntrain,p1,1,x.mp4\ntest,p2,0,y z.mp4\n",
    "rows of nothing": PLAIN + ",,,\n\n",
    "an empty line first": "\n" + PLAIN,
    "labels as pandas writes them": PLAIN.replace(",1,", ",1.0,").replace(",0,", ",0.0,"),
    "a column of notes": PLAIN.replace("\n", ",note\n", 1).replace("train\n", f"train,{'y' * 200_000}\n")
    .replace("test\n", "test,\n"),
    "two columns that are not read": "path,label,group,split,n,n\nx.mp4,1,p1,train,1,2\ny z.mp4,0,p2,test,3,4\n",
}


@pytest.mark.parametrize("case", ALIKE)
def test_what_spreadsheets_make_of_a_list_says_the_same(tmp_path, case):
    meant = said(put(tmp_path, plain_dot_csv=PLAIN) / "plain.csv")
    assert said(put(tmp_path, a_dot_csv=ALIKE[case]) / "a.csv") == meant


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_that_says_what_it_is_and_every_end_of_line(tmp_path, coding, end):
    (tmp_path / "a.csv").write_bytes("path,group\né.mp4,ü\u2028\n".replace("\n", end).encode(coding))
    (tmp_path / "a.txt").write_bytes("é\u2028a.mp4::1\n".replace("\n", end).encode(coding))
    (clip,) = load(tmp_path / "a.csv").clips
    assert (clip.path.name, clip.group) == ("é.mp4", "ü")
    assert [clip.path.name for clip in load(tmp_path / "a.txt").clips] == ["é\u2028a.mp4"]


@pytest.mark.parametrize("mark", ["\t", "::", ";", ",", " :: ", ", "])
def test_lines_of_path_and_label_whatever_is_between(tmp_path, mark):
    path = put(tmp_path, a_dot_txt=f"x y.mp4{mark}1\nz,z.mp4{mark}0\n") / "a.txt"
    assert [(c.path.name, c.label) for c in load(path).clips] == [("x y.mp4", 1), ("z,z.mp4", 0)]


def test_labels_may_be_names_as_those_of_folders_are(tmp_path):
    rows = "path,label\nrun/b.mp4,run\nhop/a.avi,hop\nhop/c.avi,\n"
    found = load(put(class_tree(tmp_path), a_dot_csv=rows) / "a.csv")
    meant = {clip.path: (clip.label, clip.class_name) for clip in load(class_tree(tmp_path)).clips}
    assert {clip.path: (clip.label, clip.class_name) for clip in found.clips[:2]} == meant
    assert found.classes == ("hop", "run") and found.clips[2].label is None


def test_a_home_folder_is_read_as_a_shell_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, a_dot_csv="path,label\n~/x.mp4,0\n~y.mp4,1\n", b_dot_txt="~/x.mp4 0\n")
    assert [c.path for c in load(Path("~/a.csv")).clips] == [tmp_path / "x.mp4", tmp_path / "~y.mp4"]
    assert [c.path for c in load(Path("~/b.txt")).clips] == [tmp_path / "x.mp4"]


TWICE = "path,label,group,split\nd/x.mp4,0,p1,train\ny.mp4,1,p2,test\n{},{}\n"
MISTAKEN = {
    "one file in two splits": (TWICE.format("d/x.mp4", "0,p1,test"), r"a\.csv:4: .*x\.mp4 has split 'test', and "
                               r"'train' at .*a\.csv:2"),
    "by another path": (TWICE.format("e/../d/x.mp4", "0,p1,test"), r"a\.csv:4: .*split.*a\.csv:2"),
    "by a link": (TWICE.format("link/x.mp4", "0,p1,test"), r"a\.csv:4: .*split.*a\.csv:2"),
    "by a linked file": (TWICE.format("linked.mp4", "0,p1,test"), r"a\.csv:4: .*split.*a\.csv:2"),
    "one file with two labels": (TWICE.format("d/x.mp4", "1,p1,train"), r"a\.csv:4: .*label 1, and 0 at .*a\.csv:2"),
    "one file of two groups": (TWICE.format("d/x.mp4", "0,p2,train"), r"a\.csv:4: .*group 'p2', and 'p1'"),
    "two labels without a header": ("d/x.mp4 0\nd/x.mp4 1\n", r"a\.csv:2: .*label 1, and 0 at .*a\.csv:1"),
    "a column twice": ("path,label,label\nx,0,1\n", r"a\.csv:1: .*2 columns 'label'"),
    "a column twice, once in capitals": ("path,group,Group\nx,0,1\n", r"a\.csv:1: .*2 columns 'group'"),
    "no column of paths": ("video,label\nx.mp4,1\n", r"a\.csv:1: the header 'video, label' has no column 'path'"),
    "names and numbers": ("path,label\nx.mp4,1\ny.mp4,NA\n", r"a\.csv:3: label 'NA' .*empty cell for none"),
    "a fraction": ("path,label\nx.mp4,1.5\n", r"a\.csv:2: label '1\.5'"),
    "a path of 200,000 characters": (f"path,label\n{'x' * 200_000},1\n", r"a\.csv:2: path of 200000 characters"),
    "the same without a header": (f"x 1\n{'x' * 200_000} 1\n", r"a\.csv:2: a path of 200000 characters"),
    "a quotation mark left open": ('path\nw.mp4\n"x.mp4\ny.mp4\nz.mp4\n', r"a\.csv:3: a quotation mark is opened"),
    "the last character": ('path\nw.mp4\n"', r"a\.csv:3: a quotation mark is opened"),
    "a cell too few after a quoted line break": ('path,label\n"x\ny.mp4",1\nz.mp4\n', r"a\.csv:4: .*header \(2\)"),
    "a NUL": ("path,label\nx.mp4,0\ny\0.mp4,1\n", r"a\.csv:3: holds a NUL"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_a_list_that_contradicts_itself_is_refused_by_file_and_line(tmp_path, case):
    text, message = MISTAKEN[case]
    put(tmp_path, d__x_dot_mp4="", e__w_dot_mp4="", a_dot_csv=text)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    (tmp_path / "linked.mp4").symlink_to(tmp_path / "d" / "x.mp4")
    with pytest.raises(ManifestError, match=message):
        load(tmp_path / "a.csv")


def test_a_list_in_latin_1_is_refused_by_line(tmp_path):
    (tmp_path / "a.csv").write_bytes("path,label\nx.mp4,0\né.mp4,1\n".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"a\.csv:3: byte 0xe9 is not UTF-8.*Latin-1"):
        load(tmp_path / "a.csv")


def test_a_file_twice_with_one_meaning_is_one_group(tmp_path):
    path = put(tmp_path, a_dot_csv="path,label\nd/x.mp4,0\nd/../d/x.mp4,0\ny.mp4,1\n", d__x_dot_mp4="") / "a.csv"
    first, second, other = load(path).clips
    assert first.group == second.group != other.group


def test_groups_in_two_splits_are_named(tmp_path):
    rows = "path,label,group,split\nx.mp4,0,p1,train\ny.mp4,1,p1,test\nz.mp4,1,p2,test\n"
    with pytest.warns(ManifestWarning, match=r"1 of 2 groups .*'p1' in test and train"):
        found = load(put(tmp_path, a_dot_csv=rows) / "a.csv")
    assert len(found.clips) == 3 and found.places[1] == f"{tmp_path / 'a.csv'}:3"


def test_a_clip_is_no_list(tmp_path):
    with pytest.raises(ManifestError, match="is a clip, not a list"):
        load(put(tmp_path, x_dot_mp4="") / "x.mp4")
