import dataclasses
import os
import pickle
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import write_photos
from unicl.data.collate import FindingValues, class_texts
from unicl.data.image import Augment
from unicl.data.mix import Mix
from unicl.data.quarantine import Quarantine
from unicl.data.sources import load_all
from unicl.data.stream import Place, Stream, StreamSettings
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.space import TextType

TOKENIZER = train_tokenizer(["a red square number 1", "green blue photo of a"], vocab_size=300, context=16)


def stream(data, *, place=Place(), limit=0, features=None, seed=0, **settings):
    return Stream(
        load_all(data),
        StreamSettings(**{"batch": 8, "workers": 2, **settings}),
        texts=class_texts("en-short"),
        tokenizer=TOKENIZER,
        size=16,
        seed=seed,
        quarantine=Quarantine(limit=limit),
        place=place,
        features=features,
    )


def same(first, second):
    pairs = zip(_leaves(dataclasses.asdict(first)), _leaves(dataclasses.asdict(second)), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def _leaves(value):
    return [leaf for v in value.values() for leaf in _leaves(v)] if isinstance(value, dict) else [value]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("stream"))


def test_a_batch_is_a_function_of_the_step_alone(data):
    one = list(stream(data).batches(0, stop=7))
    again = list(stream(data, workers=4, ahead=1).batches(4, stop=7))
    assert all(same(a, b) for a, b in zip(one[4:], again, strict=True))
    assert same(one[2], stream(data).batch(2))
    assert not same(one[2], one[3])


def alternatives(tmp_path, *rows):
    table = tmp_path / "three.csv"
    table.write_text("\n".join(["name,caption,caption_de,caption_ru", *rows]) + "\n", encoding="utf-8")
    return f"{table}?text=caption,caption_de,caption_ru"


def test_several_text_columns_are_texts_of_one_image_of_which_each_is_drawn_as_often(tmp_path):
    made = stream([alternatives(tmp_path, "1,a red square,ein rotes Quadrat,красный квадрат")])
    assert made.samples[0].captions == ("a red square", "ein rotes Quadrat", "красный квадрат")
    drawn = [made.draw(position, out=None).caption for position in range(10_000)]
    counts = np.array([drawn.count(caption) for caption in made.samples[0].captions])
    # Three standard deviations of a third of 10,000 draws.
    assert np.abs(counts - 10_000 / 3).max() < 3 * (10_000 * 2 / 9) ** 0.5
    assert drawn[:50] == [made.draw(position, out=None).caption for position in range(50)]


def test_empty_cells_and_repeated_texts_are_no_alternatives(tmp_path):
    rows = ("1,a red square,,nan", "2,same,same,  ", "3,,nur deutsch,")
    captions = [sample.captions for sample in stream([alternatives(tmp_path, *rows)]).samples]
    assert captions == [("a red square",), ("same",), ("nur deutsch",)]


def test_a_text_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    typed = alternatives(tmp_path, "1,a,b,c").replace("caption_de", "caption_d")
    with pytest.raises(UserError, match=r"no column 'caption_d'.*did you mean.*'caption', 'caption_de', 'caption_ru'"):
        stream([typed])


def test_an_epoch_shows_every_sample_once(data):
    made = stream(data)
    assert made.epoch_size == 48
    ids = [id for batch in made.batches(0, stop=6) for id in batch.ids]
    assert len(ids) == len(set(ids)) == 48


def test_the_parts_of_the_ranks_are_the_batch_of_one(data):
    whole = stream(data, batch=7).batch(3)
    parts = [stream(data, batch=7, place=Place(rank=r, ranks=3)).batch(3) for r in range(3)]
    assert sum((part.ids for part in parts), ()) == whole.ids
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_unreadable_images_are_left_out_and_counted(tmp_path):
    photos, _ = write_photos(tmp_path)
    (tmp_path / "photos" / "red" / "3.png").write_bytes(b"not an image")
    made = stream([photos], limit=1)
    ids = [id for batch in made.batches(0, stop=3) for id in batch.ids]
    assert len(ids) == 23
    assert list(made.quarantine.reasons) == ["photos/red/3.png"]
    with pytest.raises(UserError, match="cannot be read"):
        list(stream([photos], limit=0).batches(0, stop=3))


def test_two_views_differ_and_features_take_the_place_of_images(data):
    made = stream(data, views=2).batch(0)
    assert made.views.shape == made.images.shape
    assert not torch.equal(made.views, made.images)
    features = torch.arange(48.0)[:, None].repeat(1, 5)
    assert stream(data, features=features).batch(0).images.shape == (8, 5)


def test_mixed_batches_share_keys_between_neighbours_and_stay_a_function_of_the_step(data):
    made = stream(data[:1], keys="label", mix=Mix(mixup=0.8))
    batch = made.batch(2)
    sums = torch.zeros(batch.image_keys.size).index_add(0, batch.image_keys.rows, batch.image_keys.weights)
    assert torch.allclose(sums, torch.ones(8))
    assert (batch.image_keys.weights < 1).any()
    assert same(batch, made.batch(2))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(data):
    before = threading.active_count()
    batches = stream(data).batches(0, stop=100)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_a_batch_smaller_than_the_number_of_ranks_is_refused(data):
    with pytest.raises(UserError, match="cannot be shared by 9"):
        stream(data, place=Place(rank=0, ranks=9))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """JPEGs of two colours, some unreadable, and texts without an image."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    rows = ["file,title"]
    for k in range(24):
        pixels = rng.integers(0, 256, (40 + k, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg", quality=90)
        rows += [f"{k}.jpg,a red square number {k}", f"{k}.jpg,green photo of a blue {k}"]
    for k in (3, 11):
        (folder / f"{k}.jpg").write_bytes((folder / f"{k}.jpg").read_bytes()[:200])
    (folder / "all.csv").write_text("\n".join([*rows, ",nothing to see", ",not a picture"]) + "\n", encoding="utf-8")
    return str(folder / "all.csv")


STRONG = Augment(crop=(0.2, 1.0), flip=True, jitter=1.0, gray=0.3, policy="autoaugment")
CHOICES = {
    "plain": {},
    "strong": {"augment": STRONG, "views": 2, "workers": 1, "ahead": 1},
    "mixed": {"mix": Mix(mixup=0.8, cutmix=1.0), "keys": "label", "workers": 3},
    "rank": {"place": Place(rank=1, ranks=3), "augment": None},
}


@pytest.mark.parametrize(
    "choice", ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("strong", "plain", "rank"))]
)
def test_a_loader_process_threads_and_the_plain_function_give_one_sequence(data, mixed, choice):
    sources, options = [*data, mixed], CHOICES[choice]
    plain = stream(sources, limit=9, **options)
    wanted = [plain.batch(step) for step in range(3, 24)]
    for loader in ("threads", "process"):
        made = stream(sources, limit=9, loader=loader, **options)
        found = (
            [*made.batches(3, stop=9), *made.batches(9, stop=24)] if loader == "threads" else made.batches(3, stop=24)
        )
        assert all(same(a, b) for a, b in zip(found, wanted, strict=True))
        assert made.quarantine.reasons == plain.quarantine.reasons
    assert len(plain.quarantine) == 2 or choice == "rank"


def test_too_many_bad_samples_end_both_loaders_alike_and_are_listed_once(mixed, tmp_path):
    listed = []
    for loader in ("threads", "process"):
        made = stream([mixed], loader=loader)
        made.quarantine = Quarantine(limit=1, path=tmp_path / f"{loader}.jsonl")
        with pytest.raises(UserError, match="2 samples cannot be read, more than --max-bad 1"):
            list(made.batches(0, stop=30))
        listed.append((tmp_path / f"{loader}.jsonl").read_text())
    assert listed[0] == listed[1]
    assert listed[0].count("cut off") == 2


def test_features_are_read_by_threads_even_if_a_process_is_asked_for(data):
    made = stream(data, features=torch.rand(48, 5), loader="process")
    assert same(next(made.batches(2, stop=3)), made.batch(2))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="finds the process in /proc")
def test_a_killed_loader_ends_the_stream_and_another_goes_on_from_there(data):
    made = stream(data, loader="process")
    batches = made.batches(0, stop=10**6)
    seen = [next(batches).ids for _ in range(3)]
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if "unicl.data.loading.process" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(UserError, match=r"the loader process was ended by SIGKILL.*--resume") as told:
        seen += [batch.ids for batch in batches]
    assert told.value.code == 1
    done = len(seen)
    seen += [batch.ids for batch in stream(data, loader="process").batches(done, stop=done + 2)]
    assert seen == [made.batch(step).ids for step in range(done + 2)]


def test_a_fast_decode_is_near_the_exact_one_and_off_by_default(tmp_path):
    rows, columns = np.mgrid[0:900, 0:1200]
    picture = np.stack([128 + 80 * np.sin(rows / 40), 128 + 80 * np.cos(columns / 30), (rows + columns) / 9], axis=2)
    (tmp_path / "a").mkdir()
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "a" / "1.jpg", quality=92)
    exact, fast = (
        stream([str(tmp_path / "a")], batch=1, augment=Augment(decode=kind)).batch(0).images.float()
        for kind in ("exact", "fast")
    )
    assert torch.equal(exact, stream([str(tmp_path / "a")], batch=1).batch(0).images.float())
    assert not torch.equal(exact, fast)
    assert (exact - fast).abs().mean() < 2


def test_each_sentence_of_a_report_is_drawn_as_often_and_shown_alone(tmp_path):
    (tmp_path / "reports.csv").write_text(
        'name,text\n1,"Clear lungs. No effusion. Heart is large."\n', encoding="utf-8"
    )
    made = stream([str(tmp_path / "reports.csv")], sentences=True)
    drawn = [made.draw(position, out=None).caption for position in range(10_000)]
    counts = np.array([drawn.count(text) for text in ("Clear lungs.", "No effusion.", "Heart is large.")])
    assert counts.sum() == 10_000
    assert np.abs(counts - 10_000 / 3).max() < 3 * (10_000 * 2 / 9) ** 0.5
    assert {made.draw(k, out=None).sample.captions for k in range(9)} == {
        ("Clear lungs.", "No effusion.", "Heart is large.")
    }


def test_sentences_of_fewer_words_are_not_shown_where_there_are_longer_ones(tmp_path):
    (tmp_path / "reports.csv").write_text(
        'text\n"As above. Heart is large. The lungs are clear today."\nEdema.\n', encoding="utf-8"
    )
    made = stream([str(tmp_path / "reports.csv")], sentences=True, least_words=5)
    assert {made.draw(k, out=None).caption for k in range(20)} == {"The lungs are clear today.", "Edema."}


def test_the_second_view_of_a_text_is_drawn_by_seed_and_place_and_leaves_the_first_as_it_is(tmp_path):
    (tmp_path / "c.csv").write_text("text\na red square number one\n", encoding="utf-8")
    made, again = (stream([str(tmp_path / "c.csv")], batch=16, text_views=2) for _ in range(2))
    drawn = [made.draw(k, out=None) for k in range(16)]
    assert {each.caption for each in drawn} == {"a red square number one"}
    assert len({each.other for each in drawn}) > 4
    assert same(made.batch(0), again.batch(0))
    assert float(made.batch(0).text_counts.sum()) == 32


REPORT = "The lungs are clear. There is no effusion. The heart is normal. No fracture."


def studies(folder, count=3, images=3):
    """A table with a row for each image of a study, all with the report of the study."""
    rows = []
    for number in range(count):
        for view in range(images):
            Image.new("RGB", (16, 16), (40 * number, 60 * view, 0)).save(folder / f"{number}_{view}.png")
            rows.append(f"{number}_{view}.png,{REPORT},s{number}")
    table = folder / "studies.csv"
    table.write_text("\n".join(["file,text,exam", *rows]) + "\n")
    return f"{table}?study=exam"


class Blank:
    """Features in the place of pixels, for draws without decoding."""

    def __getitem__(self, number):
        return torch.zeros(1)


def test_a_step_shows_one_image_and_one_sentence_of_a_study(tmp_path):
    made = stream([studies(tmp_path)], batch=3, sentences=True, keys="sample")
    assert [sample.id for sample in made.samples] == ["s0", "s1", "s2"]
    batch = made.batch(0)
    assert len(batch.images) == 3
    assert sorted(batch.ids) == ["studies.csv/s0", "studies.csv/s1", "studies.csv/s2"]
    assert float(batch.text_counts.sum()) == 3
    drawn = [made.draw(position, out=torch.empty(1, 3, 16, 16, dtype=torch.uint8)) for position in range(30)]
    assert all(each.caption in REPORT and each.caption != REPORT for each in drawn)
    assert all(each.sample.image in made.samples[int(each.sample.id[1])].images for each in drawn)


def test_the_image_of_a_study_that_cannot_be_read_is_named(tmp_path):
    data = studies(tmp_path)
    (tmp_path / "1_2.png").write_bytes(b"no picture")
    made = stream([data], batch=3, limit=1)
    assert len({len(made.batch(step).images) for step in range(12)}) == 2
    assert made.quarantine.reasons == {"studies.csv/s1/1_2.png": "not an image"}


def test_images_and_sentences_of_a_study_are_each_drawn_as_often_and_apart(tmp_path):
    made = stream([studies(tmp_path, count=1)], sentences=True, features=Blank())
    drawn = [made.draw(position, out=None) for position in range(10_000)]
    texts = [each.caption for each in drawn]
    pairs = [(each.sample.image, each.caption) for each in drawn]
    for values, kinds in ((texts, 4), ([image for image, _ in pairs], 3), (pairs, 12)):
        counts = np.array([values.count(value) for value in set(values)])
        assert len(counts) == kinds
        share = 1 / kinds
        assert np.abs(counts - 10_000 * share).max() < 4 * (10_000 * share * (1 - share)) ** 0.5
    again = stream([studies(tmp_path, count=1)], sentences=True, features=Blank())
    assert [again.draw(position, out=None).sample.image for position in range(5000, 5100)] == [
        image for image, _ in pairs[5000:5100]
    ]


def test_a_stream_that_crosses_to_a_loader_process_shows_the_same_images_of_studies(tmp_path):
    made = stream([studies(tmp_path)], batch=3)
    there = pickle.loads(pickle.dumps(made))
    assert all(same(made.batch(step), there.batch(step)) for step in range(4))
    assert len({made.batch(step).images[0].numpy().tobytes() for step in range(4)}) > 1


def test_mirrored_images_say_left_for_right(tmp_path):
    pixels = np.zeros((16, 16, 3), dtype="uint8")
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "c.csv").write_text("file,title\na.png,bright on the left\n", encoding="utf-8")
    made = stream([str(tmp_path / "c.csv")], batch=64, augment=None, mirror=0.5, captions=True).batch(0)
    bright_left = made.images[:, 0, 0, 0] > 127
    assert 10 < int(bright_left.sum()) < 54
    own = dict(zip(made.captions.images.tolist(), made.captions.tokens.tolist()))
    for row, left in enumerate(bright_left.tolist()):
        tokens, mask = TOKENIZER([f"bright on the {'left' if left else 'right'}"])
        assert own[row][: len(tokens[0])] == tokens[0].tolist()
        assert mask.all()


def test_a_text_of_a_table_of_findings_knows_its_own(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "i.csv").write_text("file,title,finding:Edema\na.png,No edema.,1\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("text,finding:Edema\nno  edema.,0\n", encoding="utf-8")
    made = stream(
        [str(tmp_path / name) for name in ("i.csv", "t.csv")], batch=2, findings=FindingValues(absent=-1)
    ).batch(0)
    assert made.image_keys.only(TextType.FINDING).weights.tolist() == [1.0]
    assert set(made.text_keys.only(TextType.FINDING).weights.tolist()) == {-1.0}
