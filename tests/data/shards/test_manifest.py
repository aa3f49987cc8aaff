from dataclasses import replace

import pytest

from unicl.data.shards.manifest import Manifest, Shard, ShardSettings, differences, read_manifest, save_manifest
from unicl.errors import UserError

SHARD = Shard(
    name="0000.tar",
    first=0,
    stop=7,
    samples=6,
    images=5,
    read=900,
    size=10240,
    sha256="ab",
    verified=True,
    left_out=(("照片/1.jpg", "cut off"),),
)
BEGUN = Manifest(total=9, settings=ShardSettings(resize=256), sources=("/data/photos",), digest="d", shards=(SHARD,))


def test_what_is_saved_is_read(tmp_path):
    save_manifest(tmp_path, BEGUN)
    assert read_manifest(tmp_path / "shards.json") == BEGUN
    assert [path.name for path in tmp_path.iterdir()] == ["shards.json"]


def test_how_far_it_is_and_how_many_samples_a_shard_holds():
    assert BEGUN.done == 7
    assert replace(BEGUN, shards=()).done == 0
    assert ShardSettings().samples == 10_000
    assert ShardSettings(size_mb=500).samples is None
    assert ShardSettings(size_mb=500, per_shard=10).samples == 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resize": 7}, "resize=7: the shorter side must have at least 8"),
        ({"quality": 0}, "quality=0"),
        ({"quality": 101}, "between 1 and 100"),
        ({"per_shard": 0}, "at least 1 sample"),
        ({"size_mb": 0.0}, "size_mb=0.0 is no size"),
        ({"size_mb": float("nan")}, "size_mb=nan is no size"),
        ({"shuffle": -1}, "a seed is 0 or more"),
    ],
)
def test_wrong_settings_are_refused_in_words(wrong, said):
    with pytest.raises(UserError, match=said):
        ShardSettings(**wrong)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(BEGUN, settings=ShardSettings(resize=288)), ["resize was 256 and is 288"]),
        (replace(BEGUN, settings=ShardSettings(resize=256, per_shard=5)), ["per_shard was not given and is 5"]),
        (
            replace(BEGUN, settings=ShardSettings(resize=256, shuffle=None), digest="e"),
            ["shuffle was 0 and is not given"],
        ),
        (replace(BEGUN, sources=("/b",), digest="e"), ["the data was /data/photos and is /b"]),
        (replace(BEGUN, total=8, digest="e"), ["the data has changed: it had 9 samples and has 8"]),
        (replace(BEGUN, sources=("/moved/photos",)), []),
    ],
)
def test_what_makes_two_jobs_different_is_said(other, said):
    assert differences(BEGUN, other) == said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"unicl": 1}', b"\xff"])
def test_what_is_no_list_of_shards_is_refused(tmp_path, content):
    (tmp_path / "shards.json").write_bytes(content)
    with pytest.raises(UserError, match=r"shards.json' is no list of shards"):
        read_manifest(tmp_path / "shards.json")
