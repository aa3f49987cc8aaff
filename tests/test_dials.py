import pytest

from unicl.dials import Dials, assigned, turned
from unicl.errors import UserError


def test_only_the_dials_that_were_given_change_the_recipe():
    plain, turned = assigned("clip", Dials(), more=()), assigned("clip", Dials(steps=7, lr=1e-4, batch=32), more=())
    assert (turned.fit.steps, turned.optim.lr, turned.data.batch) == (7, 1e-4, 32)
    assert turned.image == plain.image


def test_the_width_of_itl_halves_into_its_prefix_and_of_others_is_a_field():
    assert assigned("itl", Dials(width=128), more=()).terms[1].dims == 64
    assert assigned("clip", Dials(width=128), more=()).width == 128


def test_another_image_model_starts_at_random_unless_weights_are_named():
    assert assigned("clip", Dials(image="resnet18"), more=()).image.weights == "random"
    assert assigned("clip", Dials(image="resnet18", image_weights="hub"), more=()).image.weights == "hub"


def test_set_comes_last_and_a_recipe_without_texts_has_no_text_dial():
    assert assigned("clip", Dials(lr=1.0), more=["optim.lr=0.5"]).optim.lr == 0.5
    with pytest.raises(UserError, match="text"):
        assigned("supcon", Dials(tokenizer="clip"), more=())


def test_how_a_step_is_computed_has_flags():
    dials = Dials(chunk="auto", parallel="fsdp", exchange="ring", keep_mb=10, compile=True, workers=3)
    turned = assigned("unicl", dials, more=("optim.states=bf16",))
    compute = turned.compute
    assert (compute.chunk, compute.parallel, compute.exchange, compute.keep_mb, compute.compile) == (
        *("auto", "fsdp", "ring", 10, True),
    )
    assert (turned.data.workers, turned.optim.states) == (3, "bf16")
    assert assigned("unicl", Dials(chunk=64), more=()).compute.chunk == 64


def test_a_chunk_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="chunk"):
        assigned("clip", Dials(), more=("compute.chunk=some",))


def test_a_recipe_that_is_there_takes_dials_too():
    recipe = assigned("clip", Dials(steps=5), more=())
    turned_again = turned(recipe, Dials(steps=9, chunk=8), more=("fit.keep=1",))
    assert (turned_again.fit.steps, turned_again.compute.chunk, turned_again.fit.keep) == (9, 8, 1)
    assert turned(recipe, Dials(), more=()) == recipe


def test_the_text_tower_is_an_argument_of_recipes_that_make_more_of_it():
    assert assigned("clip", Dials(text="bert"), more=()).text.name == "bert"
    siglip = assigned("lit", Dials(text="siglip", setting="Uu"), more=()).text
    assert (siglip.name, siglip.end, siglip.pool, siglip.head) == ("siglip", "filled", "last", "affine")
    with pytest.raises(UserError, match="this recipe knows bert"):
        assigned("lit", Dials(text="clip"), more=())


def test_what_a_recipe_takes_from_other_processes_and_from_a_teacher_has_flags():
    made = assigned("chinese_clip", Dials(gather="none", teacher="runs/large", batch=64), more=())
    assert (made.terms[0].gather, made.terms[1].teacher, made.data.batch) == ("none", "runs/large", 64)
    with pytest.raises(UserError, match="has no field 'gather'"):
        assigned("clip", Dials(gather="none"), more=())


def test_a_tokenizer_may_be_of_words_that_are_predicted_and_a_task_and_width_are_the_recipes():
    made = assigned("virtex", Dials(tokenizer="clip", task="captioning", width=64), more=())
    assert (made.words.tokenizer, made.text, made.width) == ("clip", None, None)
    assert [(term.task, term.width) for term in made.terms] == [("captioning", 64)]
