from pathlib import Path

import pytest

from unicl.data.check.advice import percent, recipe
from unicl.data.check.report import CheckReport, Finding
from unicl.data.check.run import check
from unicl.data.text import Tokenizer, train_tokenizer
from unicl.space import Sample


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a photo of a cat", "a dog on the grass"] * 5, vocab_size=512, context=77)


@pytest.fixture
def report(make_source, album: list[Path], tokenizer: Tokenizer):
    def build(
        *, labels: tuple[str, ...] = (), captions: tuple[str, ...] = (), count: int = 60, batch_size: int = 32
    ) -> CheckReport:
        """``count`` samples that take labels and captions in turn."""
        samples = [
            Sample(
                id=str(k),
                image=album[k % 10].read_bytes() + b" " * k,
                labels=(labels[k % len(labels)],) if labels else (),
                captions=(captions[k % len(captions)],) if captions else (),
                namespace="n",
            )
            for k in range(count)
        ]
        return check([make_source(samples)], batch_size=batch_size, tokenizer=tokenizer, max_images=10)

    return build


def line(report: CheckReport, topic: str, words: str) -> Finding:
    found = [f for f in report.findings if f.topic == topic and words in f.text]
    assert len(found) == 1, [f.text for f in report.findings]
    return found[0]


def test_labels_alone_call_for_unicl_and_name_the_floor(report) -> None:
    found = report(labels=("cat", "dog", "bird"))
    assert found.recipe == "unicl"
    assert "the loss stays above" in line(found, "false negatives", "class").text


def test_captions_of_their_own_call_for_clip(report) -> None:
    found = report(captions=tuple(f"caption {k}" for k in range(60)))
    assert found.recipe == "clip"
    assert not [f for f in found.findings if "their own caption" in f.text]


def test_repeated_captions_call_for_itl(report) -> None:
    found = report(captions=("a cat", "a dog", "a bird"))
    assert found.recipe == "itl"
    assert "over 99.9 % of the rows of a batch of 32" in found.reason
    assert "commonest, 20 times: 'a cat'" in line(found, "captions", "equal to the caption").advice


def test_a_batch_too_small_for_equal_captions_to_meet_leaves_clip(report) -> None:
    captions = (*(f"caption {k}" for k in range(57)), "same", "same", "same")
    assert report(captions=captions, batch_size=8).recipe == "clip"
    assert report(captions=captions[-12:], batch_size=60).recipe == "itl"


def test_both_call_for_the_default(report) -> None:
    assert report(labels=("cat", "dog"), captions=("one", "two", "three")).recipe == "itl"


def test_one_class_with_good_captions_trains_on_the_captions(report) -> None:
    assert report(labels=("cat",), captions=tuple(f"caption {k}" for k in range(60))).recipe == "clip"


@pytest.mark.parametrize(
    ("labels", "captions", "words"),
    [
        (("cat",), (), "one class"),
        ((), ("a cat",), "the same text"),
        ((), (), "no image has a caption or a label"),
        (("cat",), ("a cat",), "one class and all captions"),
    ],
)
def test_what_cannot_be_told_apart_is_a_problem(report, labels, captions, words: str) -> None:
    found = report(labels=labels, captions=captions)
    assert found.recipe == ""
    assert words in found.problems[0].text
    assert found.problems[0].advice


def test_images_that_are_all_broken_are_a_problem(make_source, tokenizer: Tokenizer) -> None:
    samples = [Sample(id=str(k), image=b"broken %d" % k, labels=(str(k % 2),)) for k in range(4)]
    found = check([make_source(samples)], tokenizer=tokenizer)
    assert found.recipe == ""
    assert {f.topic for f in found.problems} == {"images", "recipe"}


def test_a_batch_larger_than_the_data_is_pointed_out(report) -> None:
    assert line(report(labels=("a", "b"), batch_size=4096), "samples", "4,096 is more than the 60")


def test_several_rows_of_one_image_ask_for_one_sample(make_source, album, tokenizer: Tokenizer) -> None:
    samples = [Sample(id=str(k), image=album[k % 10], captions=(f"caption {k}",)) for k in range(50)]
    found = check([make_source(samples)], batch_size=32, tokenizer=tokenizer)
    assert "one sample" in line(found, "false negatives", "their own image").advice


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.00001, "under 0.1 %"), (0.9999, "over 99.9 %"), (0.064, "6.4 %"), (0.924, "92 %")],
)
def test_shares_are_not_rounded_to_nothing_or_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_recipe_needs_no_report(report) -> None:
    found = report(labels=("a", "b"))
    name, reason = recipe(
        found.kinds, found.classes, captions=found.captions, meetings=found.meetings, batch_size=found.batch_size
    )
    assert (name, reason) == (found.recipe, found.reason)
