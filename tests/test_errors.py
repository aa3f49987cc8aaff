import pytest

from unicl.errors import BadImage, UserError, suggest


def test_an_error_for_the_user_carries_its_text_and_an_exit_code():
    assert str(UserError("what came")) == "what came"
    assert UserError("x").code == 2
    assert UserError("x", code=3).code == 3


def test_a_bad_image_is_no_mistake_of_the_user():
    with pytest.raises(ValueError, match="cut off"):
        raise BadImage("cut off")
    assert not issubclass(BadImage, UserError)


@pytest.mark.parametrize(
    ("word", "known", "ending"),
    [
        ("titel", ("image", "title"), " (did you mean 'title'?)"),
        ("wieght", iter(["weight"]), " (did you mean 'weight'?)"),
        ("zzz", ("image", "title"), ""),
        ("x", (), ""),
    ],
)
def test_a_near_word_is_suggested_and_a_far_one_is_not(word, known, ending):
    assert suggest(word, known) == ending
