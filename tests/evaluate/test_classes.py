import pytest

from unicl.errors import UserError
from unicl.evaluate.classes import Classes
from unicl.space import Sample


def sample(*labels, namespace="a"):
    return Sample(id="x", labels=labels, namespace=namespace)


def test_the_classes_are_the_sorted_labels_of_the_data():
    classes = Classes.of([sample("pear"), sample("0"), sample("pear", "apple"), sample()])
    assert classes.labels == classes.names == ("0", "apple", "pear")


def test_equal_labels_of_two_sources_are_one_class():
    assert len(Classes.of([sample("pear"), sample("pear", namespace="b")])) == 1


def test_a_given_list_keeps_its_order_and_classes_without_samples():
    assert Classes.of([sample("pear")], names=["plum", "pear"]).labels == ("plum", "pear")


def test_labels_may_have_names_that_are_equal():
    classes = Classes.of([sample("657"), sample("744")], names={"657": "missile", "744": "missile"})
    assert classes.names == ("missile", "missile")
    assert classes.truth([sample("744")])[1].classes.tolist() == [1]


def test_a_label_outside_the_list_is_an_error_that_suggests():
    with pytest.raises(
        UserError, match=r"label 'paer' \(2 samples\) and 1 more labels .* list of 2 classes .did you mean 'pear'"
    ):
        Classes.of([sample("paer"), sample("paer"), sample("xyz")], names=["pear", "plum"])


def test_the_truth_holds_the_samples_that_have_a_label():
    samples = [sample(), sample("b"), sample("a", "b"), sample()]
    index, truth = Classes.of(samples).truth(samples)
    assert index.tolist() == [1, 2]
    assert truth.rows.tolist() == [0, 1, 1]
    assert truth.classes.tolist() == [1, 0, 1]
