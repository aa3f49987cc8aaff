import pytest

from unicl.errors import UserError
from unicl.evaluate.queries import located, read_composed
from unicl.space import Sample

SAMPLES = tuple(Sample(id=f"i/{k}.jpg") for k in range(4))


def read(folder, content):
    (folder / "q.csv").write_text(content)
    return read_composed(folder / "q.csv")


def test_rows_that_differ_in_their_target_alone_are_one_query(tmp_path):
    found = read(tmp_path, "image,text,sign,target\n0,red,+,1\n0,red,plus,2\n0,red,-,2\n1,red,+,2\n0,red,+,1\n")
    assert found.images == ("0", "0", "1")
    assert found.signs == (1, -1, 1)
    assert found.targets == (("1", "2"), ("2",), ("2",))
    assert located(found, SAMPLES).targets == (("i/1.jpg", "i/2.jpg"), ("i/2.jpg",), ("i/2.jpg",))


def test_without_a_column_of_signs_texts_are_added(tmp_path):
    assert read(tmp_path, "image,text,target\n0,red,1\n").signs == (1,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,words,target\n0,red,1\n", "has the columns 'image', 'words', 'target'; wanted are image, text, sign"),
        ("image,text,sign,target\n0,red,*,1\n", r"q.csv, line 2: the sign '\*' is neither \+ nor -"),
        ("image,text,sign,target\n", "holds no query"),
        ("image,text,target\n0,red,9\n7,red,1\n", r"1 of 2 images are not in the data \(first: '7'\)"),
        ("image,text,target\n0,red,9\n", r"1 of 1 images are not in the data \(first: '9'\)"),
        ("image,text,target\n0,red,0\n", r"1 queries have their own image as the target \(first: 'i/0.jpg'\)"),
    ],
)
def test_what_cannot_be_meant_is_an_error(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        located(read(tmp_path, content), SAMPLES)
