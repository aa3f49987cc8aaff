from dataclasses import replace

import pytest

from evaluate_oracles import colour_samples, source, tiny_model
from unicl.data.prompts import templates
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.page import to_html
from unicl.evaluate.queries import read_composed
from unicl.evaluate.quick import metrics_from_embeddings
from unicl.evaluate.rated import read_ratings
from unicl.evaluate.report import to_json, to_markdown
from unicl.evaluate.retrieval import pair_captions
from unicl.evaluate.run import evaluate
from unicl.evaluate.zeroshot import Truth
from unicl.space import Sample

FAST = Bootstrap(resamples=20)


def changed(colours, **changes):
    return replace(colours, samples=tuple(replace(s, **changes) for s in colours.samples))


def test_all_tasks_run_by_default(report):
    assert [result.task for result in report.results] == ["zeroshot", "retrieval", "probe", "knn"]
    assert report.facts["images"] == 20
    assert report.notes == ()


def test_every_number_lies_in_its_interval_and_says_what_it_counts(report):
    for result in report.results:
        for score in result.scores:
            assert score.low <= score.value + 1e-9, score
            assert score.high >= score.value - 1e-9, score
            assert score.n > 0


def test_an_unreadable_image_is_listed_and_left_out(report):
    assert [one.id for one in report.unreadable] == ["broken.png"]
    assert report.facts["images that could not be read"] == 1
    assert report.results[0].facts["images"] == 20


def test_the_same_call_gives_the_same_report(report, model, colours):
    again = evaluate(model, [colours], title="runs/a | <b>", bootstrap=Bootstrap(resamples=100))
    assert to_json(again) == to_json(report)


def test_numbers_are_those_of_the_quick_metrics(report, model, job):
    names = sorted({s.labels[0] for s in job.pictures.samples})
    truth = Truth.of([{names.index(s.labels[0])} for s in job.pictures.samples])
    vectors = model.classifier(names, templates=templates("en"))
    texts, pairs = pair_captions([s.captions for s in job.pictures.samples])
    quick = metrics_from_embeddings(
        class_view=(job.pictures.classes, vectors, truth),
        instance_view=(job.pictures.instances, model.embed_text(texts), pairs),
    )
    numbers = report.numbers()
    assert {key: pytest.approx(numbers[key]) for key in quick} == quick
    assert len(quick) == 14


def test_asked_tasks_run_alone_and_in_their_own_order(model, colours):
    report = evaluate(model, [colours], tasks=["knn", "zeroshot"], bootstrap=FAST)
    assert [result.task for result in report.results] == ["zeroshot", "knn"]


def test_an_unknown_task_is_an_error_that_suggests(model, colours):
    with pytest.raises(UserError, match="there is no task 'zeroshoot' .did you mean 'zeroshot'"):
        evaluate(model, [colours], tasks=["zeroshoot"])


def test_a_task_that_cannot_be_done_is_an_error_that_says_why(model, colours):
    with pytest.raises(UserError, match="retrieval: the data has no captions"):
        evaluate(model, [changed(colours, captions=())], tasks=["retrieval"])
    with pytest.raises(UserError, match="zeroshot: the data has no labels; probe: the data has no labels"):
        evaluate(model, [changed(colours, labels=())], tasks=["zeroshot", "probe"])
    with pytest.raises(UserError, match="there is only one class, 'red'"):
        evaluate(model, [changed(colours, labels=("red",))], tasks=["zeroshot"])


def test_a_task_among_others_that_can_be_done_becomes_a_note(model, colours):
    report = evaluate(model, [changed(colours, captions=())], tasks=["zeroshot", "retrieval"], bootstrap=FAST)
    assert [result.task for result in report.results] == ["zeroshot"]
    assert report.notes == ("retrieval was left out: the data has no captions",)


def test_what_nobody_asked_for_is_not_missed(model, colours):
    assert evaluate(model, [changed(colours, captions=())], bootstrap=FAST).notes == ()


def test_a_label_outside_the_list_is_an_error_although_other_tasks_could_run(model, colours):
    with pytest.raises(UserError, match=r"label 'blue' .* is not in the list of 2 classes"):
        evaluate(model, [colours], names=["red", "green"])


def test_a_task_whose_only_images_cannot_be_read_is_left_out_with_a_note(model, colours):
    samples = [replace(s, captions=("one", "two") if s.id == "broken.png" else ()) for s in colours.samples]
    report = evaluate(
        model, [replace(colours, samples=tuple(samples))], tasks=["retrieval", "zeroshot"], bootstrap=FAST
    )
    assert report.notes == ("retrieval was left out: the data has no captions",)


def test_data_without_images_is_an_error(model, colours):
    with pytest.raises(UserError, match="no sample with an image"):
        evaluate(model, [changed(colours, image=None)])


def test_training_sources_are_what_the_probe_learns_from(model, colours, tmp_path):
    more = source(colour_samples(tmp_path, each=4, start=5000), root=tmp_path, name="more")
    report = evaluate(model, [colours], tasks=["probe", "knn"], train_sources=[more], bootstrap=FAST)
    for result in report.results:
        assert (result.facts["training images"], result.facts["images"]) == (16, 20)


def test_sources_are_measured_together_and_equal_labels_are_told(model, colours, tmp_path):
    more = source(colour_samples(tmp_path, each=1, start=7000), root=tmp_path, name="more")
    other = changed(more, namespace="b")
    report = evaluate(model, [colours, other], tasks=["zeroshot"], bootstrap=FAST)
    assert report.facts["data"] == "colours, more"
    assert report.results[0].facts["images"] == 24
    assert report.notes == ("equal labels of several sources are measured as one class: blue, green, grey, red",)
    assert report.unreadable[0].id == "colours/broken.png"


def test_a_test_fraction_outside_its_range_is_an_error(model, colours):
    with pytest.raises(UserError, match=r"the test fraction is 1\.0, but must lie between 0 and 1"):
        evaluate(model, [colours], test_fraction=1.0)


def test_several_labels_an_image_count_as_right_if_one_is_predicted(model, colours):
    every = changed(colours, labels=("blue", "green", "grey", "red"))
    report = evaluate(model, [every], tasks=["zeroshot"], bootstrap=FAST)
    assert report.numbers()["zeroshot/top1"] == 1


def test_a_model_without_texts_does_what_it_can(colours):
    bare = tiny_model(texts=False, recipe="supcon")
    report = evaluate(bare, [colours], tasks=["zeroshot", "retrieval", "knn"], bootstrap=FAST)
    assert [result.task for result in report.results] == ["knn"]
    assert len(report.notes) == 2
    assert report.facts["text tower"] == "none"


def test_a_diverged_model_is_an_error(colours):
    import torch

    model = tiny_model()
    with torch.no_grad():
        next(model.image.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="20 of 20 images' features are not finite"):
        evaluate(model, [colours])


def test_notes_of_the_sources_are_passed_on(model, colours):
    noted = replace(colours, notes=("12 rows without an image",))
    report = evaluate(model, [noted], tasks=["zeroshot"], bootstrap=FAST)
    assert report.notes == ("colours: 12 rows without an image",)


def test_templates_are_sentences_or_the_name_of_a_set(model, colours):
    def used(**options):
        report = evaluate(model, [colours], tasks=["zeroshot"], bootstrap=FAST, **options)
        return report.results[0].facts["templates"], report.numbers()["zeroshot/top1"]

    assert used() == used(templates="auto") == used(templates="en") == used(templates=templates("en"))
    assert used(templates=["a {}"])[0] == 1
    with pytest.raises(UserError, match="klingon"):
        used(templates="klingon")


def test_text_only_samples_are_passed_over(model, colours):
    more = replace(colours, samples=(*colours.samples, Sample(id="t", captions=("only a text",))))
    assert evaluate(model, [more], tasks=["zeroshot"], bootstrap=FAST).facts["images"] == 20


def test_the_four_directions_are_measured_where_they_are_asked_for(model, colours):
    report = evaluate(model, [colours], tasks=["t2t", "i2i", "i2t", "t2i"], bootstrap=FAST)
    assert [result.task for result in report.results] == ["i2t", "t2i", "t2t", "i2i"]


def test_rated_pairs_and_queries_are_measured_unasked_and_shown_on_every_page(model, colours, tmp_path):
    ids = [sample.id for sample in colours.samples]
    rows = [f"{ids[k]},{ids[(3 * k + 1) % 20]},{k % 5}" for k in range(20)]
    (tmp_path / "sis.csv").write_text("\n".join(["image1,image2,agg_score", *rows]))
    (tmp_path / "q.csv").write_text(f"image,text,sign,target\n{ids[0]},<green>,-,{ids[7]}\n")
    ratings, composed = read_ratings([tmp_path / "sis.csv"]), read_composed(tmp_path / "q.csv")
    report = evaluate(model, [changed(colours, captions=())], ratings=ratings, composed=composed, bootstrap=FAST)
    assert {"similarity", "composed"} <= {result.task for result in report.results}
    html, text = to_html(report), to_markdown(report)
    assert "− &lt;green&gt;" in html or report.results[-1].ranks["composed"] == (1,)
    assert "half of the queries" in html
    assert "half of the queries" in text
    assert "similarity/sis/spearman" in to_json(report)


def test_names_that_are_not_in_the_data_are_an_error_before_any_image_is_read(model, colours, tmp_path):
    (tmp_path / "sis.csv").write_text("image1,image2,agg_score\nx,y,1\ny,z,2\n")
    with pytest.raises(UserError, match=r"sis.csv: 2 of 2 images are not in the data \(first: 'x', 'y'\)"):
        evaluate(model, [colours], ratings=read_ratings([tmp_path / "sis.csv"]))
