"""Columns and classes of labelled tasks, as in the examples of Transformers."""

import numpy as np
import pytest

from jaxopt_tf.data import TaskColumns, find_columns, label_ids, label_names


@pytest.mark.parametrize(
    ("task", "names", "given", "expected"),
    [
        ("sequence-classification", "idx sentence2 sentence1 label", {},
         ("sentence1", "sentence2", "label", None)),
        ("sequence-classification", "premise label hypothesis", {},
         ("premise", "hypothesis", "label", None)),
        ("sequence-classification", "text label", {}, ("text", None, "label", None)),
        ("sequence-classification", "text label extra", {"text_column": "text"},
         ("text", None, "label", None)),
        ("sequence-classification", "a b c", {"label_column": "a",
         "text_pair_column": "b"}, ("c", "b", "a", None)),
        ("token-classification", "id tokens ner_tags", {},
         ("tokens", None, "ner_tags", None)),
        ("token-classification", "words tags", {}, ("words", None, "tags", None)),
        ("masked-lm", "title text", {}, ("text", None, None, None)),
        ("masked-lm", "sentence", {}, ("sentence", None, None, None)),
        ("seq2seq", "text summary id", {}, ("text", None, None, "summary")),
        ("seq2seq", "id translation.de translation.en", {},
         ("translation.de", None, None, "translation.en")),
        ("seq2seq", "translation.de translation.en",
         {"text_column": "translation.en"},
         ("translation.en", None, None, "translation.de")),
        ("seq2seq", "a b c", {"target_column": "a"}, ("b", None, None, "a")),
        ("image-classification", "image label", {}, ("image", None, "label", None)),
    ],
)  # fmt: skip
def test_columns_are_found_as_in_the_example_scripts(task, names, given, expected):
    assert find_columns(task, names.split(), given=given) == TaskColumns(*expected)


def test_columns_of_numbers_are_not_texts():
    columns = {"idx": [1], "sentence": ["a"], "label": ["x"], "rating": [0.5]}
    found = find_columns("sequence-classification", columns)
    assert found == TaskColumns("sentence", None, "label")
    given = {"label_column": "rating", "text_column": None}
    found = find_columns("sequence-classification", columns, given=given)
    assert found == TaskColumns("sentence", None, "rating")
    rows = {"id": ["0"], "tokens": [["a"]], "labels": [[0]]}
    assert find_columns("token-classification", rows).label == "labels"


@pytest.mark.parametrize(
    ("task", "names", "given", "message"),
    [
        ("sequence-classification", "text target", {}, "`label_column` must be given"
         ".*'label'.*the columns 'text', 'target'"),
        ("sequence-classification", "label", {}, "`text_column`.*columns 'label'"),
        ("sequence-classification", "text label", {"text_column": "sentence"},
         "`text_column`.*got 'sentence', but the data has the columns 'text', 'label'"),
        ("seq2seq", "text", {}, "`target_column` must be given"),
        ("image-classification", "pixels label", {}, "`text_column`.*'image'"),
        ("question-answering", "text", {}, "`task` must be one of"),
    ],
)  # fmt: skip
def test_a_missing_column_is_an_error_that_lists_the_columns(
    task, names, given, message
):
    with pytest.raises(ValueError, match=message):
        find_columns(task, names.split(), given=given)


def test_data_to_predict_need_no_label():
    found = find_columns("sequence-classification", ["text"], needs_label=False)
    assert found == TaskColumns("text")
    assert find_columns("seq2seq", ["text"], needs_label=False).target is None


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        (["neg", "pos", "Pos"], ("Pos", "neg", "pos"), [1, 2, 0]),
        ([10, 9, 2, 9], ("2", "9", "10"), [2, 1, 0, 1]),
        ([True, False], ("False", "True"), [1, 0]),
        ([["O", "B"], [], ["B"]], ("B", "O"), [[1, 0], [], [0]]),
    ],
)
def test_names_are_sorted_and_integers_keep_their_numbers(values, names, ids):
    assert label_names(values) == names
    found = label_ids(values, names)
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == ids


def test_numbers_with_a_fraction_are_a_regression():
    assert label_names([0.5, 1, 2.0]) is None
    ids = label_ids([0.5, 1, 2.0], None)
    np.testing.assert_array_equal(ids, np.float32([0.5, 1, 2]))
    assert ids.dtype == np.float32
    with pytest.raises(ValueError, match="numbers, as the labels of a regression"):
        label_ids([0.5, "a"], None)


def test_given_names_have_the_order_of_a_class_label_or_a_checkpoint():
    given = ("no", "yes", "maybe")
    assert label_names([1, 0, 1], given=given) == given
    assert label_ids([2, 0], given).tolist() == [2, 0]
    assert label_names(["yes", "no"], given=given) == given
    assert label_ids(["maybe", "no"], given).tolist() == [2, 0]
    with pytest.raises(ValueError, match="row 2 has 3"):
        label_names([0, 3], given=given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", 1], "either strings or numbers, got 'a' and, in row 2, 1"),
        ([0.5, "a"], "got 0.5 and, in row 2, 'a'"),
        (["a", None], "row 2 has None"),
        (["a", ""], "row 2 has ''"),
        ([1, float("nan")], "row 2 has nan"),
        (["a", "a"], "at least 2 different labels, got 'a'"),
        ([], "got none"),
    ],
    ids=repr,
)
def test_mixed_missing_and_single_labels_are_refused(values, message):
    with pytest.raises(ValueError, match=f"`label_column`.*{message}"):
        label_names(values)


def test_a_label_that_the_training_data_lacks_is_named_with_its_row():
    message = r"'neg', 'pos', but row 3 of 'dev.jsonl' has 'neutral'"
    with pytest.raises(ValueError, match=message):
        label_ids(["pos", "neg", "neutral"], ("neg", "pos"), source="dev.jsonl")
    with pytest.raises(ValueError, match="row 2 has 7"):
        label_ids([[1], [1, 7]], ("0", "1"))
    # A column of integers with empty rows becomes floats in pandas.
    assert label_ids([1.0, 0.0], ("0", "1")).tolist() == [1, 0]
