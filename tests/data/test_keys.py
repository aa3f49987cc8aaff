import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from unicl.data.keys import class_key, image_key, normalise, sample_key, stamp, text_key
from unicl.space import NO_KEY, RemoteTar, Slice, Streamed

any_text = st.text(max_size=20)


def test_keys_are_the_same_in_every_process():
    keys = "class_key('a', 'b'), text_key('A  red\\nfruit'), sample_key('s', 'x/1.jpg')"
    code = f"from unicl.data.keys import *; print({keys})"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"}
    )
    found = [int(word) for word in ran.stdout.split()]
    assert found == [class_key("a", "b"), text_key("a red fruit"), sample_key("s", "x/1.jpg")]


def test_keys_never_change_between_versions():
    assert class_key("photos", "cat") == 3085228362330612381
    assert text_key("a photo of a cat") == -3439881968552938333
    assert sample_key("photos", "cat/0.jpg") == -4131159954551423704


@given(any_text, any_text, any_text, any_text)
def test_a_class_key_tells_every_namespace_and_label_apart(space, label, other_space, other):
    assert (class_key(space, label) == class_key(other_space, other)) == ((space, label) == (other_space, other))


def test_the_parts_of_a_key_do_not_run_into_each_other():
    assert class_key("ab", "c") != class_key("a", "bc")
    assert class_key("a", "b") != sample_key("a", "b")
    assert len({class_key("", "x"), text_key("x"), sample_key("", "x")}) == 3


@given(any_text)
def test_a_key_is_a_signed_integer_of_64_bits_and_never_no_key(text):
    for key in (class_key("s", text), text_key(text), sample_key("s", text)):
        assert -(2**63) <= key < 2**63
        assert key != NO_KEY


def test_the_class_called_zero_or_nothing_has_a_key():
    assert len({class_key("s", "0"), class_key("s", ""), class_key("s", "00")}) == 3
    assert NO_KEY not in (class_key("", ""), text_key(""), sample_key("", ""))


def test_texts_that_read_alike_have_one_key():
    assert text_key("A Red  Fruit\n") == text_key("a red fruit")
    assert text_key("ｒｅｄ　苹果") == text_key("red 苹果")
    assert text_key("Straße") == text_key("STRASSE")
    assert text_key("cafe\u0301") == text_key("café")
    assert text_key("a red fruit") != text_key("a red fruit.")


@given(any_text)
def test_normalising_twice_gives_the_same_key(text):
    assert text_key(normalise(text).upper().lower()) == text_key(normalise(normalise(text)).upper().lower())


def test_a_broken_character_still_has_a_key():
    assert text_key("\ud800") != text_key("\udfff")


def test_an_image_that_changed_has_another_stamp_and_key(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    first = stamp(path), image_key(path)
    assert (stamp(path), image_key(path)) == first
    path.write_bytes(b"other")
    assert stamp(path) != first[0]
    assert image_key(path) != first[1]
    assert stamp(tmp_path / "gone.png") == ""


def test_images_of_other_places_have_other_keys(tmp_path, monkeypatch):
    tar = tmp_path / "a.tar"
    tar.write_bytes(b"0123456789")
    remote = RemoteTar(address="https://x/a.tar", path=tmp_path / "copy.tar", size=10)
    images = [tar, Slice(tar, 0, 3), Slice(tar, 3, 3), Streamed(remote, 0, 3), Streamed(remote, 3, 3), b"012", b"345"]
    assert len({image_key(image) for image in images}) == len(images)
    monkeypatch.chdir(tmp_path)
    assert image_key(Slice(type(tar)("a.tar"), 0, 3)) == image_key(images[1])
