"""Columns of labelled files and of saved datasets."""

import json

import pytest

from jaxopt_tf.data import read_labelled

ROWS = [
    {"sentence": "good\tone", "label": 1, "rating": 0.5},
    {"sentence": 'a "bad" one', "label": 0, "rating": -1.0},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def write(path, rows=ROWS):
    if path.suffix == ".json":
        path.write_text(json.dumps({"data": rows}))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="it writes the file")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        end = "\t" if path.suffix == ".tsv" else ","
        quoted = [
            ['"' + str(x).replace('"', '""') + '"' for x in row.values()]
            for row in rows
        ]
        path.write_text("\n".join(map(end.join, [list(rows[0]), *quoted])) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_all_formats_give_the_same_columns(tmp_path, suffix):
    rows = read_labelled(write(tmp_path / f"train.{suffix}"))
    assert rows.num_rows == 2
    assert dict(rows.columns) == COLUMNS
    assert [type(x) for x in rows.columns["label"]] == [int, int]


def test_a_column_of_csv_is_numbers_only_if_all_rows_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,code,text\n1,007,5\n2.5,8,\n")
    rows = read_labelled(path)
    assert rows.columns["label"] == [1.0, 2.5]
    assert rows.columns["code"] == ["007", "8"]  # a number would lose its zeros
    assert rows.columns["text"] == ["5", ""]


def test_rows_without_a_column_have_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n{"a": 3}\n')
    assert dict(read_labelled(path).columns) == {
        "a": [1, None, 3],
        "b": [None, 2, None],
    }


def test_texts_by_language_become_columns(tmp_path):
    rows = [{"translation": {"de": "ja", "en": "yes"}}, {"translation": {"de": "nein"}}]
    columns = read_labelled(write(tmp_path / "a.jsonl", rows)).columns
    assert dict(columns) == {
        "translation.de": ["ja", "nein"],
        "translation.en": ["yes", None],
    }


@pytest.fixture
def save_dataset(tmp_path):
    """Saves rows as `datasets.Dataset.save_to_disk` does."""
    pyarrow = pytest.importorskip("pyarrow", reason="it writes the files")

    def save(folder, rows, features=None):
        folder.mkdir(parents=True)
        table = pyarrow.Table.from_pylist(rows)
        names = []
        for i in range(2):
            names.append(f"data-0000{i}-of-00002.arrow")
            with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as stream:
                stream.write_table(table.slice(i * 1, 1))
        state = {"_data_files": [{"filename": name} for name in names]}
        (folder / "state.json").write_text(json.dumps(state))
        info = {"features": features or {}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return folder

    return save


def test_a_saved_dataset_has_columns_and_names_of_classes(tmp_path, save_dataset):
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "tags": {
            "feature": {"names": ["O", "B-X"], "_type": "ClassLabel"},
            "_type": "List",
        },
        "sentence": {"dtype": "string", "_type": "Value"},
    }
    rows = read_labelled(save_dataset(tmp_path / "saved", ROWS, features))
    assert dict(rows.columns) == COLUMNS
    assert rows.class_names == {"label": ("no", "yes"), "tags": ("O", "B-X")}


def test_a_dataset_of_datasets_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="it is the reference")
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
            "image": datasets.Image(),
        }
    )
    columns = {
        "tokens": [["a", "b"], ["c"], ["d"]],
        "tags": [[0, 1], [1], [0]],
        "image": [{"bytes": b"png", "path": None}] * 3,
    }
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved = saved.select([2, 0])  # is saved without a table of indices
    saved.save_to_disk(tmp_path / "saved")
    rows = read_labelled(tmp_path / "saved")
    assert rows.columns["tokens"] == [["d"], ["a", "b"]]
    assert rows.columns["image"][0] == {"bytes": b"png", "path": None}
    assert rows.class_names == {"tags": ("O", "B-X")}


def test_several_splits_are_refused_by_name(tmp_path, save_dataset):
    for name in ("train", "validation"):
        save_dataset(tmp_path / "all" / name, ROWS)
    splits = tmp_path / "all" / "dataset_dict.json"
    splits.write_text(json.dumps({"splits": ["train", "validation"]}))
    with pytest.raises(
        ValueError, match=r"one split.*'train', 'validation'.*all/train"
    ):
        read_labelled(tmp_path / "all")
    splits.write_text(json.dumps({"splits": ["train"]}))
    assert read_labelled(tmp_path / "all").num_rows == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.csv", "text,label\n", "has none"),
        ("a.tsv", "text\tlabel\n", "has none"),
        ("a.tsv", "text\tlabel\na\n", "line 2 .* does not have 2 values"),
        ("a.txt", "text", r"ends in \.jsonl, \.json, \.csv, \.tsv"),
    ],
)
def test_files_without_rows_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"`validation_file`.*{message}"):
        read_labelled(path, argument="validation_file")


def test_damaged_and_missing_folders_are_refused(tmp_path, save_dataset):
    with pytest.raises(ValueError, match="does not exist"):
        read_labelled(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"contains no state\.json"):
        read_labelled(tmp_path)
    folder = save_dataset(tmp_path / "saved", ROWS)
    file = folder / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"complete Arrow file.*00001"):
        read_labelled(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="flatten_indices"):
        read_labelled(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_labelled(folder)
