"""Hold-out split: by images, whatever the order of the rows and the place of the files."""

import random
from pathlib import Path

import pytest

from llava_lab.data.sample import Sample
from llava_lab.data.split import hold_out


def sample(name: str, *images: str) -> Sample:
    return Sample(name, (), tuple(Path("/data") / image for image in images), "")


def test_hold_out_keeps_an_image_on_one_side() -> None:
    samples = [sample(str(n), f"coco/{n // 3}.png") for n in range(3000)]
    samples += [sample(str(n)) for n in range(500)]
    train, held = hold_out(samples, 0.2)
    assert len(train) + len(held) == len(samples)
    assert 0.17 < len(held) / len(samples) < 0.23
    assert not {s.images for s in train if s.images} & {s.images for s in held if s.images}
    assert any(not s.images for s in held) and any(not s.images for s in train)
    shuffled = random.Random(0).sample(samples, len(samples))
    assert {(s.id, s.images) for s in hold_out(shuffled, 0.2)[1]} == {
        (s.id, s.images) for s in held
    }
    moved = [sample(s.id, *(f"moved/coco/{image.name}" for image in s.images)) for s in samples]
    assert [s.id for s in hold_out(moved, 0.2)[1]] == [s.id for s in held]


def test_hold_out_is_pinned() -> None:
    held = hold_out([sample(str(n), f"coco/{n}.png") for n in range(40)], 0.1)[1]
    assert [s.id for s in held] == ["7", "13", "33"]


def test_hold_out_does_not_mix_up_frames_of_clips() -> None:
    clips = [sample(str(n), f"clip{n}/0.png") for n in range(200)]
    assert 5 < len(hold_out(clips, 0.1)[1]) < 40


def test_hold_out_joins_rows_through_a_shared_image() -> None:
    chains = [
        sample(f"{n}/{link}", f"c/{n}-{link}.png", f"c/{n}-{(link + 1) % 4}.png")
        for link in (0, 2, 1)
        for n in range(100)
    ]
    train, held = hold_out(chains, 0.5)
    sides = [{s.id.split("/")[0] for s in side} for side in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 100 and 30 < len(sides[1]) < 70


def test_hold_out_keeps_at_least_one_image_from_training() -> None:
    few = [sample(str(n), f"photos/{n}.png") for n in range(3)]
    train, held = hold_out(few, 0.001)
    assert (len(train), len(held)) == (2, 1)
    assert hold_out(few[::-1], 0.001)[1] == held


def test_hold_out_of_nothing_and_of_too_little() -> None:
    samples = [sample("1", "a/b.png")]
    assert hold_out(samples, 0) == (samples, [])
    with pytest.raises(ValueError, match=r"hold_out is 1\.5; it is from 0 to below 1"):
        hold_out(samples, 1.5)
    with pytest.raises(ValueError, match=r"holding out 0\.5 of 1 leaves . samples to train on and"):
        hold_out(samples, 0.5)
