import pytest

from unicl.errors import UserError
from unicl.evaluate.rated import graded, positives, read_ratings
from unicl.space import Sample

SAMPLES = tuple(Sample(id=f"i/{k}.jpg", captions=(f"text {k}", f"other {k}")) for k in range(4))
DATA = "file,title,caption_id\n" + "".join(f"i/{k}.jpg,text {k},{10 + k}\n" for k in range(4))


def table(folder, content, name="t.csv"):
    (folder / name).write_text(content)
    return folder / name


def read(folder, content, **options):
    return graded(read_ratings([table(folder, content)], **options), SAMPLES)[0]


def test_the_three_layouts_of_cxc_are_read(tmp_path):
    data = [str(table(tmp_path, DATA, "data.csv"))]
    sts = read(
        tmp_path,
        "caption1,caption2,agg_score,sampling_method\nCOCO_val2014:sentid:10,COCO_val2014:sentid:12,1.24,c2c_isim\n"
        "COCO_val2014:sentid:11,COCO_val2014:sentid:13,5,c2c_isim\n",
        data=data,
    )
    assert (sts.kind, sts.first, sts.second) == ("sts", ("text 0", "text 1"), ("text 2", "text 3"))
    assert sts.ratings.tolist() == [1.24, 5.0]
    sis = read(tmp_path, "image1,image2,agg_score,sampling_method\n0.jpg,1.jpg,2,i2i\n2.jpg,3.jpg,3,i2i\n")
    assert (sis.kind, sis.first, sis.second) == ("sis", ("i/0.jpg", "i/2.jpg"), ("i/1.jpg", "i/3.jpg"))
    sits = read(
        tmp_path, "caption,image,agg_score,sampling_method\nsentid:10,1.jpg,2,x\nsentid:11,3.jpg,3,x\n", data=data
    )
    assert (sits.kind, sits.images) == ("sits", (False, True))
    assert (sits.first, sits.second) == (("text 0", "text 1"), ("i/1.jpg", "i/3.jpg"))


def test_ids_of_either_kind_are_looked_up(tmp_path):
    data = [str(table(tmp_path, DATA, "data.csv"))]
    assert read(tmp_path, "id1,id2,agg_score\n10,11,1\n12,13,2\n", data=data).kind == "sts"
    assert read(tmp_path, "id1,id2,agg_score\n0,1,1\n2,3,2\n").kind == "sis"
    assert read(tmp_path, "id1,id2,agg_score\n10,1,1\n12,3,2\n", data=data).kind == "sits"


def test_texts_may_be_any_and_captions_must_be_those_of_the_data(tmp_path):
    any_text = read(tmp_path, "sentence1,sentence2,score\nTEXT 1,a cat,4\na cow,other 2,1\n")
    assert any_text.first == ("text 1", "a cow")
    assert any_text.second == ("a cat", "other 2")
    with pytest.raises(UserError, match=r"2 of 2 texts are not in the data \(first: 'a cat', 'a cow'\)"):
        read(tmp_path, "caption1,caption2,score\na cat,text 1,4\na cow,text 2,1\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("left,right,score\na,b,1\nc,d,2\n", "has the columns 'left', 'right', 'score'; wanted are two of what"),
        ("image1,image2,grade\n0.jpg,1.jpg,1\n", "'grade'; wanted .* and the mean rating"),
        ("caption,title,score\na,b,1\n", "has the columns 'caption', 'title', 'score'"),
        ("image1,image2,score\n0.jpg,1.jpg,1\n", "t.csv holds 1 rated pairs; a correlation needs two at least"),
        ("image1,image2,score\n0.jpg,1.jpg,1\n0.jpg,2.jpg,high\n", "line 3: the rating 'high' is no number"),
        ("image1,image2,score\n0.jpg,1.jpg,nan\n0.jpg,2.jpg,1\n", "the rating 'nan' is no number"),
    ],
)
def test_what_cannot_be_meant_is_an_error(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_pairs_of_a_high_rating_are_right_and_images_stand_first(tmp_path):
    data = [str(table(tmp_path, DATA, "data.csv"))]
    content = "caption,image,agg_score\n10,1.jpg,2.9\n11,2.jpg,3\n12,3.jpg,4.5\n"
    tables = [read(tmp_path, content, data=data)]
    assert positives(tables, "sits", positive=None) == [("i/2.jpg", "text 1"), ("i/3.jpg", "text 2")]
    assert len(positives(tables, "sits", positive=2.5)) == 3
    assert positives(tables, "sts", positive=None) == []
    images = [read(tmp_path, "image1,image2,score\n0.jpg,1.jpg,2.5\n1.jpg,2.jpg,2.4\n")]
    assert positives(images, "sis", positive=None) == [("i/0.jpg", "i/1.jpg")]


def test_pairs_may_be_kept_by_their_images(tmp_path):
    one = read(tmp_path, "text,image,score\nanything,1.jpg,2.5\nelse,2.jpg,2.4\n").among({"i/2.jpg"})
    assert (one.first, one.second, one.ratings.tolist()) == (("else",), ("i/2.jpg",), [2.4])
