import json

import pytest

from pictures import picture
from unicl.data.sources import load
from unicl.errors import UserError


def put(folder, **files):
    """Files by name, ``__`` for a slash and ``_`` for the dot; pictures get their content here."""
    for name, content in files.items():
        path = folder / (name.replace("__", "/")[::-1].replace("_", ".", 1)[::-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if content is None else content.encode())
    return str(folder)


def brief(source):
    return {sample.id: (sample.captions, sample.labels) for sample in source.samples}


def test_a_folder_per_class_gives_labels(tmp_path):
    source = load(put(tmp_path / "photos", dog__b_jpg=None, cat__a_jpg=None, cat__deep__c_PNG=None, cat__notes_md="x"))
    assert source.format == "class folder"
    assert [sample.id for sample in source.samples] == ["cat/a.jpg", "cat/deep/c.PNG", "dog/b.jpg"]
    assert [sample.labels for sample in source.samples] == [("cat",), ("cat",), ("dog",)]
    assert source.samples[0].image == tmp_path / "photos" / "cat" / "a.jpg"
    assert {sample.namespace for sample in source.samples} == {"photos"}
    assert dict(source.guessed) == {"image": "files", "label": "folder"}


def test_class_names_of_any_form_stay_whole(tmp_path):
    for name in ("0", "AC;DC", "nan", "red|green", "苹果"):
        put(tmp_path / "p" / name, a_png=None)
    assert {sample.labels for sample in load(str(tmp_path / "p")).samples} == {
        ("0",), ("AC;DC",), ("nan",), ("red|green",), ("苹果",)
    }  # fmt: skip


def test_texts_beside_the_images_of_a_class_are_captions_too(tmp_path):
    source = load(put(tmp_path / "p", cat__a_jpg=None, cat__a_txt=" a cat \n\n", dog__b_jpg=None))
    assert brief(source) == {"cat/a.jpg": (("a cat",), ("cat",)), "dog/b.jpg": ((), ("dog",))}
    assert source.notes == ("images without a caption: 1 (first: dog/b.jpg)",)


def test_images_with_texts_beside_them(tmp_path):
    fields = json.dumps({"caption": "from json", "label": 0, "url": "https://e.org"})
    folder = put(tmp_path / "p", a_jpg=None, a_txt="one\ntwo\n", b_png=None, b_json=fields, c_webp=None, d_txt="alone")
    source = load(folder)
    assert source.format == "image folder"
    assert brief(source) == {"a.jpg": (("one", "two"), ()), "b.png": ((), ("0",)), "c.webp": ((), ())}
    assert brief(load(f"{folder}?text=caption"))["b.png"] == (("from json",), ("0",))


def test_numbered_shards_are_no_classes(tmp_path):
    source = load(
        put(tmp_path / "p", **{f"0000{n}__0000{n}000_jpg": None for n in range(2)}, **{"00000__00000000_txt": "x"})
    )
    assert source.format == "image folder"
    assert brief(source) == {"00000/00000000.jpg": (("x",), ()), "00001/00001000.jpg": ((), ())}


def test_images_above_the_folders_make_it_a_folder_of_images(tmp_path):
    folder = put(tmp_path / "p", a_jpg=None, cat__b_jpg=None)
    source = load(folder)
    assert brief(source) == {"a.jpg": ((), ()), "cat/b.jpg": ((), ())}
    assert source.notes == ("folders inside it (cat) are read as images without a class",)
    assert brief(load(f"{folder}?format=class-folder"))["cat/b.jpg"] == ((), ("cat",))


def test_the_parts_of_a_data_set_are_no_classes(tmp_path):
    folder = put(tmp_path / "p", train__cat__a_jpg=None, val__cat__b_jpg=None)
    with pytest.raises(UserError, match="p holds train and val, which are parts of a data set: give p/train or p/val"):
        load(folder)
    assert brief(load(f"{folder}/train")) == {"cat/a.jpg": ((), ("cat",))}


def test_a_table_of_metadata_in_the_folder_is_used(tmp_path):
    folder = put(tmp_path / "p", a_jpg=None, metadata_csv="file_name,text\na.jpg,a cat\n")
    assert brief(load(folder)) == {"a.jpg": (("a cat",), ())}
    assert load(folder).name == "p"


def test_another_table_in_the_folder_is_told(tmp_path):
    source = load(put(tmp_path / "p", a_jpg=None, captions_csv="file,title\n"))
    assert source.notes == ("captions.csv in the folder is not read; give it as a source of its own",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images: it is empty"),
        (
            {"a_heic": "x", "b_heic": "x", "c_md": "x"},
            r"holds no images \(jpg, png, webp, ...\); it has 2 .heic files, 1 .md",
        ),
        (
            {"captions_csv": "file,title\n"},
            "holds no images; it has the table captions.csv: give that file as the source",
        ),
    ],
)
def test_a_folder_without_images_says_what_it_has(tmp_path, files, message):
    (tmp_path / "p").mkdir()
    with pytest.raises(UserError, match=message):
        load(put(tmp_path / "p", **files))


def test_hidden_files_are_left_out(tmp_path):
    folder = tmp_path / "p"
    put(folder, cat__a_jpg=None)
    for name in (".DS_Store", "cat/._a.jpg", "__MACOSX/cat/a.jpg", ".cache/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    assert list(brief(load(str(folder)))) == ["cat/a.jpg"]


def test_links_stay_inside_the_folder(tmp_path):
    folder = tmp_path / "p"
    put(folder, cat__a_jpg=None)
    (folder / "cat" / "again.jpg").symlink_to(folder / "cat" / "a.jpg")
    (folder / "cat" / "round").symlink_to(folder)
    assert list(brief(load(str(folder)))) == ["cat/a.jpg", "cat/again.jpg"]
    put(tmp_path / "other", x_jpg=None)
    (folder / "dog").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"p/dog' is a link that leaves the data folder"):
        load(str(folder))
    assert brief(load(f"{folder}?root={tmp_path}"))["dog/x.jpg"] == ((), ("dog",))


def test_a_text_in_another_encoding_names_its_file(tmp_path):
    put(tmp_path / "p", cat__a_jpg=None)
    (tmp_path / "p" / "cat" / "a.txt").write_bytes("一只红色的猫在桌子上".encode("gb18030"))
    with pytest.raises(UserError, match=r"cat/a.txt is not UTF-8 text: .*encoding=gb18030"):
        load(str(tmp_path / "p"))
    assert load(f"{tmp_path / 'p'}?encoding=gb18030").samples[0].captions == ("一只红色的猫在桌子上",)


def test_a_broken_json_beside_an_image_names_it(tmp_path):
    with pytest.raises(UserError, match=r"a.json is not JSON"):
        load(put(tmp_path / "p", a_jpg=None, a_json="{"))
