"""Which split a document is in: the fraction holds, copies stay together, neither is empty."""

import random
import re

import pytest

from core import UserError
from core.extras.splits import Splits, validates


def choose(documents, val_fraction=0.1, seed=1, **options):
    splits = Splits(val_fraction, seed, **options)
    for document in documents:
        splits.add([document])
    return splits.choose(), splits


def random_texts(count, longest, seed=0):
    rng = random.Random(seed)
    return [
        "".join(rng.choices("abcdefgh ", k=rng.randint(longest // 10, longest)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("val_fraction", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 20, 49, 50, 51, 100, 1000, 10_000])
def test_the_fraction_holds_by_size_for_any_number_of_documents(count, val_fraction):
    documents = random_texts(count, 2000 if count < 1000 else 100)
    lengths, splits = choose(documents, val_fraction)
    total = sum(map(len, documents))
    assert 0 < sum(lengths) < total
    assert splits.fractions["train"] == sum(lengths) / total
    assert abs(splits.fractions["val"] - val_fraction) < 0.1 * min(val_fraction, 1 - val_fraction)


def test_many_documents_are_whole_and_few_are_cut_each():
    documents = random_texts(1000, 100)
    lengths, _ = choose(documents)
    assert all(n in (0, len(d)) for n, d in zip(lengths, documents, strict=True))
    lengths, _ = choose(["a" * 400_000, "b" * 4_000])
    assert lengths[0] == 360_000 and lengths[1] == 4_000
    assert choose(["x" * 1_115_394])[0] == [1_003_854]  # where nanoGPT cuts it


def test_copies_share_a_split_and_are_cut_at_the_same_place():
    documents = random_texts(300, 100) * 3 + ["a long one" * 5000] * 2
    random.Random(0).shuffle(documents)
    lengths, _ = choose(documents)
    of_text = {}
    for document, length in zip(documents, lengths, strict=True):
        assert of_text.setdefault(document, length) == length


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    documents = random_texts(500, 100)
    first = dict(zip(documents, choose(documents)[0], strict=True))
    assert first == dict(zip(documents[::-1], choose(documents[::-1])[0], strict=True))
    assert first != dict(zip(documents, choose(documents, seed=2)[0], strict=True))


def test_whole_documents_leave_neither_split_empty():
    for documents in (["a" * 1000, "b"], ["a", "b"], ["a"] * 9 + ["b"], ["a", "", "b" * 50, ""]):
        for val_fraction in (0.001, 0.5, 0.999):
            lengths, _ = choose(documents, val_fraction, may_cut=False)
            pairs = [(d, n) for d, n in zip(documents, lengths, strict=True) if d]
            assert all(n in (0, len(d)) for d, n in pairs)
            assert {n > 0 for _, n in pairs} == {True, False} and len(set(pairs)) == 2


@pytest.mark.parametrize(
    ("documents", "options", "sentence"),
    [
        ([], {}, "0 characters and 0 distinct texts"),
        (["", ""], {}, "0 characters and 0 distinct texts"),
        (["x"], {}, "1 characters and 1 distinct texts"),
        (["the same"] * 100, {}, "800 characters and 1 distinct texts"),
        (["one dialogue"], {"may_cut": False}, "1 distinct texts"),
        (["text"], {"val_fraction": 0}, "--val_fraction=0 leaves nothing to validate on"),
        (["text"], {"val_fraction": 1}, "--val_fraction=1 leaves nothing to train on"),
        (["text"], {"val_fraction": 1.5}, "--val_fraction=1.5 leaves nothing to train on"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(documents, options, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        choose(documents, **options)


def test_one_document_alone_is_chosen_by_its_text():
    documents = random_texts(2000, 100)
    chosen = [validates([d], 0.1, 1) for d in documents]
    assert 140 < sum(chosen) < 260
    assert chosen == [validates([d[:7], d[7:]], 0.1, 1) for d in documents]
