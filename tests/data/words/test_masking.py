from collections import Counter

import numpy as np
import pytest
import torch

from unicl.data.text import train_tokenizer
from unicl.data.words.masking import Hidden, hidden_words, mask_of
from unicl.data.words.phrases import parse
from unicl.data.words.tags import SPEECH
from unicl.errors import UserError
from unicl.space import NOTHING
from unicl.towers.text import TextSettings, build_tokenizer

CAPTIONS = [
    "two black dogs run through the tall grass",
    "a man rides a horse near Zürich, and the horse jumps",
    "a snowboarder's category cat",
    "above and below",
    "红色的自行车",
]
ALL = Counter(dict.fromkeys(CAPTIONS, 1))


@pytest.fixture(scope="module")
def bert():
    return build_tokenizer(TextSettings(name="package:minilm", tokenizer="", context=24))


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CAPTIONS * 3, vocab_size=600, context=24)


def hiding(tokenizer, *, captions=ALL, **settings):
    return hidden_words(captions, parse(list(captions)), Hidden(**settings), tokenizer=tokenizer)


def draws(hide, tokenizer, text, times=60):
    """What is hidden of a text in many draws, as words."""
    [tokens], _ = tokenizer([text])
    found = set()
    for seed in range(times):
        shown, wanted = hide(text, tokens, rng=np.random.default_rng(seed))
        places = (wanted != NOTHING).nonzero()[:, 0].tolist()
        assert len(places) <= 1
        kept = torch.ones(len(tokens), dtype=torch.bool)
        kept[places] = False
        assert torch.equal(shown[kept], tokens[kept])
        for place in places:
            assert (int(shown[place]), int(wanted[place])) == (hide.mask, int(tokens[place]))
            found.add(tokenizer.inner.id_to_token(int(wanted[place])).strip("▁"))
    return found


def _bare(word):
    """As BERT's own vocabulary writes it."""
    return word.lower().replace("ü", "u")


@pytest.mark.parametrize("speech", ["nouns", "adjectives", "verbs"])
@pytest.mark.parametrize("which", ["bert", "trained"])
def test_a_hidden_word_has_an_allowed_part_of_speech(speech, which, request):
    tokenizer = request.getfixturevalue(which)
    hide = hiding(tokenizer, speech=speech)
    for caption, parsed in zip(CAPTIONS, parse(CAPTIONS), strict=True):
        allowed = {_bare(word.text) for word in parsed.words if word.part in SPEECH[speech]}
        found = {_bare(word) for word in draws(hide, tokenizer, caption)}
        assert found <= allowed
        if caption.startswith("two"):
            assert found == allowed


def test_words_in_pieces_are_never_hidden_and_others_are_found_where_they_stand(bert):
    hide = hiding(bert)
    assert draws(hide, bert, CAPTIONS[2]) == {"cat", "category"}
    assert draws(hide, bert, CAPTIONS[1]) == {"man", "rides", "horse", "zurich", "jumps"}
    assert len(hide.places[CAPTIONS[1]]) == 6


def test_only_frequent_lemmas_are_hidden(bert):
    captions = Counter({"a dog and a cat": 1, "many dogs": 3, "a cat": 1, "a bird": 1})
    hide = hiding(bert, captions=captions, count=1)
    assert draws(hide, bert, "a dog and a cat") == {"dog"}
    assert draws(hide, bert, "many dogs") == {"dogs"}
    assert draws(hide, bert, "a bird") == set()


def test_what_is_not_known_stays_as_it_is(bert):
    assert draws(hiding(bert), bert, "a dog that nobody has read of") == set()
    assert draws(hiding(bert), bert, "above and below") == set()


def test_each_word_of_a_caption_is_as_likely_and_the_same_draw_hides_the_same(bert):
    hide = hiding(bert)
    [tokens], _ = bert(CAPTIONS[:1])
    places = [
        int((hide(CAPTIONS[0], tokens, rng=np.random.default_rng(k))[1] != NOTHING).nonzero()) for k in range(600)
    ]
    counts = Counter(places)
    assert set(counts) == set(hide.places[CAPTIONS[0]])
    assert min(counts.values()) > 600 / len(counts) * 0.7
    first, again = (hide(CAPTIONS[0], tokens, rng=np.random.default_rng(9)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_mask_is_the_tokenizers_own_or_padding(bert, trained):
    assert mask_of(bert) == bert.inner.token_to_id("[MASK]")
    assert mask_of(trained) == trained.pad_id


def test_what_is_left_out_is_counted_before_training(bert):
    captions = Counter({"a cat near a snowboarder": 3, "two cats": 1, "above and below": 2})
    concepts = hiding(bert, captions=captions).concepts
    assert concepts.whole == {"cat": 4}
    assert concepts.cut == {"snowboarder": 3}
    assert (concepts.captions, concepts.among) == (4, 6)
    assert concepts.told() == (
        "hides one word of a caption: 4 words of 1 concepts in 4 of 6 captions; 3 words in several tokens are never "
        "hidden (snowboarder)"
    )
    assert hiding(bert, captions=Counter({"a cat": 1})).concepts.told().endswith("in 1 of 1 captions")


def test_words_behind_the_end_of_the_tokens_do_not_count():
    short = build_tokenizer(TextSettings(name="package:minilm", tokenizer="", context=5))
    concepts = hiding(short, captions=Counter({"a cat near a snowboarder": 1})).concepts
    assert (concepts.whole, concepts.cut) == ({"cat": 1}, {})


def test_captions_without_a_whole_word_are_told(bert):
    with pytest.raises(UserError, match="no caption has a noun, an adjective or a verb to hide; captions in English"):
        hiding(bert, captions=Counter({"above and below": 1, "красный квадрат": 1}))
    with pytest.raises(UserError, match=r"all 2 .*自行车.* are cut into several tokens .* of the captions' language"):
        hiding(bert, captions=Counter({"红色的自行车": 1}))
