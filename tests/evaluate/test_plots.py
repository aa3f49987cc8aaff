import re
from dataclasses import replace
from xml.etree import ElementTree

from unicl.evaluate.plots import class_plot, confusion_plot, rank_plot
from unicl.evaluate.report import ClassScore, Confused, Result


def scored(name, value, n=10):
    return ClassScore(label=name, name=name, value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), n=n)


RESULT = Result(
    task="zeroshot",
    title="Zero-shot",
    scores=(),
    classes=(scored("猫", 0.9), scored("a $5 bill for $3", 0.2), scored("<dog> & co", 1.0)),
    confusion=(
        Confused(true="猫", predicted="猫", count=9),
        Confused(true="猫", predicted="<dog> & co", count=1),
        Confused(true="a $5 bill for $3", predicted="猫", count=8),
    ),
    ranks={"image to text": (1, 1, 3, 2000), "text to image": (7, 1)},
)


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_plots_hold_the_names_of_the_classes_as_text():
    for svg in (class_plot(RESULT), confusion_plot(RESULT)):
        joined = " ".join(texts(svg))
        for name in ("猫", "a $5 bill for $3", "<dog> & co"):
            assert name in joined


def test_ranks_of_one_direction_are_drawn_too():
    shown = texts(rank_plot(replace(RESULT, ranks={"text to text": (1, 4)})))
    assert "text to text" in shown
    assert "image to text" not in shown


def test_bars_stand_from_the_weakest_to_the_strongest():
    labels = [text for text in texts(class_plot(RESULT)) if "(10)" in text]
    assert [label.split(" (")[0] for label in labels] == ["a $5 bill for $3", "猫", "<dog> & co"]


def test_confusions_are_written_into_the_cells():
    assert {"9", "1", "8"} <= set(texts(confusion_plot(RESULT)))


def test_ranks_reach_the_worst_one():
    found = texts(rank_plot(RESULT))
    assert "1001–2000" in found
    assert {"image to text", "text to image", "rank of the best right answer"} <= set(found)


def test_many_classes_are_cut_to_the_weakest_and_the_most_confused():
    classes = tuple(scored(f"class {k:03d}", k / 100) for k in range(100))
    confused = tuple(
        Confused(true=f"class {k:03d}", predicted=f"class {(k + 1) % 100:03d}", count=k) for k in range(100)
    )
    many = replace(RESULT, classes=classes, confusion=confused)
    bars = [text for text in texts(class_plot(many)) if "class" in text]
    assert len(bars) == 40
    assert bars[0].startswith("class 000")
    cells = {text for text in texts(confusion_plot(many)) if "class" in text}
    assert len(cells) == 40
    assert "class 099" in cells
    assert "class 001" not in cells


def test_plots_take_the_colours_of_the_page_and_keep_their_ids_to_themselves():
    plots = {"c": confusion_plot(RESULT), "b": class_plot(RESULT), "r": rank_plot(RESULT)}
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in plots.values()]
    assert len(set.union(*ids)) == sum(len(own) for own in ids)
    for svg in plots.values():
        assert "var(--soft)" in svg
        assert "#01020" not in svg
        assert "<style" not in svg
        for used in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
            assert f'id="{used}"' in svg


def test_a_plot_is_the_same_again():
    assert class_plot(RESULT) == class_plot(RESULT)
    assert confusion_plot(RESULT) == confusion_plot(RESULT)
