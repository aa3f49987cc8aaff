import pytest
import torch
import torch.multiprocessing as mp

import during_work
from evaluate_oracles import parts_model
from rank_work import free_port
from tiny import tiny, write_photos
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.evaluate.during import evaluator
from unicl.evaluate.run import evaluate
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.ranks import Ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("during"), each=4)


def model(name, sources):
    recipe = tiny(name)
    tokenizer = None if recipe.text is None else build_tokenizer(recipe.text, texts=["a red green blue square photo"])
    return build_model(recipe, sources, tokenizer=tokenizer)


def test_the_numbers_are_those_of_the_full_report(data):
    sources = load_all(data)
    made = model("itl", sources)
    quick = evaluator(sources, prompts="en-short", ranks=Ranks())(made)
    report = evaluate(made, load_all(data[:1]), tasks=("zeroshot",), templates="en-short").numbers()
    assert quick["zeroshot/top1"] == pytest.approx(report["zeroshot/top1"])
    assert "retrieval/image_to_text/r1" in quick
    assert made.training is True, "training goes on as it was"


@pytest.mark.parametrize(
    ("ensemble", "standardise"),
    [("similarities", False), ("probabilities", False), ("best", True), ("embeddings", False)],
)
def test_a_model_of_parts_gets_the_numbers_of_its_full_report(data, ensemble, standardise):
    made = parts_model(ensemble, standardise=standardise)
    for sources, task, templates in ((data[:1], "zeroshot", "filip:3"), (data[1:], "retrieval", "auto")):
        quick = evaluator(load_all(sources), prompts=templates, ranks=Ranks())(made)
        report = evaluate(made, load_all(sources), tasks=(task,), templates=templates).numbers()
        of_task = {name: value for name, value in quick.items() if name.startswith(task)}
        assert of_task
        assert of_task == pytest.approx({name: report[name] for name in of_task})


@pytest.mark.slow
def test_two_processes_find_the_numbers_of_one(data, tmp_path):
    mp.spawn(during_work.work, args=(list(data), tmp_path, free_port(), 2), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second
    for each, found in first.items():
        assert found == pytest.approx(during_work.numbers(data, *each, Ranks()))


def test_a_classifier_without_texts_is_measured_by_its_own_head(data):
    sources = load_all(data[:1])
    made = model("cross_entropy", sources)
    quick = evaluator(sources, prompts="auto", ranks=Ranks())(made)
    pictures = [s.image for s in sources[0].samples]
    head = made.objective.terms["classes"]
    with torch.no_grad():
        guesses = head.head(made.image_features(pictures)).argmax(1).tolist()
    right = [head.labels[g] == s.labels[0] for g, s in zip(guesses, sources[0].samples, strict=True)]
    assert quick["zeroshot/top1"] == pytest.approx(sum(right) / len(right))


def test_unreadable_pictures_are_left_out(tmp_path):
    photos, _ = write_photos(tmp_path, each=3)
    (tmp_path / "photos" / "red" / "0.png").write_bytes(b"")
    sources = load_all([photos])
    quick = evaluator(sources, prompts="en-short", ranks=Ranks())(model("clip", sources))
    assert round(quick["zeroshot/top1"] * 8, 6) == round(quick["zeroshot/top1"] * 8)


def test_data_that_says_nothing_about_its_pictures_is_refused(tmp_path):
    write_photos(tmp_path, each=2)
    with pytest.raises(UserError, match="no image with a label or a caption"):
        evaluator(load_all([str(tmp_path / "photos" / "red")]), prompts="auto", ranks=Ranks())
