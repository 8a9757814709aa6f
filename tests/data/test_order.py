"""Orders of epochs: a pure function of seed, stage and epoch."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_lab.data.order import epoch_batches, order_hash, shard

ROWS = st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=120)
NO_FILES = settings(deadline=None, database=None)
SIZES = st.integers(1, 9)


def order(
    rows: list[tuple[int, bool]], size: int, seed: int = 0, epoch: int = 0, grouped: bool = True
) -> list[list[int]]:
    lengths, visual = [length for length, _ in rows], [flag for _, flag in rows]
    return epoch_batches(lengths, visual, size, seed, "instruct", epoch, grouped)


@NO_FILES
@given(ROWS, SIZES, st.booleans(), st.integers(0, 5))
def test_every_sample_once_and_only_the_last_batch_is_smaller(rows, size, grouped, epoch) -> None:
    batches = order(rows, size, epoch=epoch, grouped=grouped)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= size


@NO_FILES
@given(ROWS, SIZES)
def test_full_batches_are_of_one_modality_and_longest_first(rows, size) -> None:
    batches = order(rows, size)
    full = sum(sum(flag is side for _, flag in rows) // size for side in (True, False))
    for batch in batches[:full]:
        assert len({rows[index][1] for index in batch}) == 1
        lengths = [rows[index][0] for index in batch]
        assert lengths == sorted(lengths, reverse=True)
    rest = [rows[index][1] for batch in batches[full:] for index in batch]
    assert rest == sorted(rest, reverse=True) and len(rest) <= 2 * (size - 1)


def test_videos_may_be_a_modality_of_their_own() -> None:
    kinds = [n % 3 for n in range(60)]
    batches = epoch_batches([5] * 60, kinds, 4, 0, "instruct", 0, True)
    found = sorted(sorted({kinds[i] for i in batch}) for batch in batches)
    assert found == [[0]] * 5 + [[1]] * 5 + [[2]] * 5
    together = epoch_batches([5] * 60, [min(1, k) for k in kinds], 4, 0, "instruct", 0, True)
    assert any({kinds[i] for i in batch} == {1, 2} for batch in together)


@NO_FILES
@given(ROWS, SIZES, st.booleans(), st.integers(0, 2**32))
def test_global_random_state_is_neither_read_nor_moved(rows, size, grouped, state) -> None:
    random.seed(state)
    before = random.getstate()
    batches = order(rows, size, grouped=grouped)
    assert random.getstate() == before
    random.seed(state + 1)
    assert order(rows, size, grouped=grouped) == batches


ROWS_200 = [(1 + n * 37 % 101, n % 3 > 0) for n in range(200)]


@pytest.mark.parametrize("grouped", [True, False])
def test_seed_stage_and_epoch_each_change_the_order(grouped: bool) -> None:
    lengths, visual = [row[0] for row in ROWS_200], [row[1] for row in ROWS_200]
    keys = [(0, "align", 0), (1, "align", 0), (0, "instruct", 0), (0, "align", 1)]
    hashes = {order_hash(epoch_batches(lengths, visual, 8, *key, grouped)) for key in keys}
    assert len(hashes) == 4


def test_lengths_within_a_batch_are_alike() -> None:
    def spread(batches: list[list[int]]) -> float:
        lengths = [[ROWS_200[index][0] for index in batch] for batch in batches]
        return sum(max(batch) - min(batch) for batch in lengths) / len(lengths)

    assert spread(order(ROWS_200, 8)) < 0.4 * spread(order(ROWS_200, 8, grouped=False))


def test_long_batches_do_not_come_first() -> None:
    means = [sum(ROWS_200[i][0] for i in batch) for batch in order(ROWS_200, 8)[:-2]]
    assert means != sorted(means, reverse=True)
    modalities = [ROWS_200[batch[0]][1] for batch in order(ROWS_200, 8)[:-2]]
    assert modalities != sorted(modalities) and modalities != sorted(modalities, reverse=True)


GOLDEN_ROWS = [(length, n % 4 > 0) for n, length in enumerate([5, 9, 2, 7, 4, 8, 3, 6, 1, 9, 4, 2])]


def test_order_is_pinned() -> None:
    assert order(GOLDEN_ROWS, 2) == GOLDEN_GROUPED
    assert order(GOLDEN_ROWS, 5, grouped=False) == GOLDEN_PLAIN
    assert order_hash(order(ROWS_200, 8)) == GOLDEN_HASH


GOLDEN_GROUPED = [[0, 4], [9, 1], [7, 10], [5, 3], [11, 2], [6, 8]]
GOLDEN_PLAIN = [[9, 5, 2, 3, 10], [7, 8, 6, 1, 0], [11, 4]]
GOLDEN_HASH = "380c5d81d79e"


def test_another_process_comes_to_the_same_order() -> None:
    code = (
        "import sys; from llava_lab.data.order import *;"
        "rows = [(1 + n * 37 % 101, n % 3 > 0) for n in range(200)];"
        "print(order_hash(epoch_batches(*zip(*rows), 8, 0, 'instruct', 0, True)));"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [GOLDEN_HASH, "False"]


def test_what_an_order_refuses() -> None:
    with pytest.raises(ValueError, match="batch_size is 0; at least 1 is needed"):
        order(GOLDEN_ROWS, 0)
    with pytest.raises(ValueError, match="2 lengths, but 1 modalities"):
        epoch_batches([1, 2], [True], 1, 0, "align", 0, True)
    with pytest.raises(ValueError, match="sample 1 has length 0; at least 1 is needed"):
        order([(3, True), (0, True)], 1)


@NO_FILES
@given(st.integers(1, 8), st.lists(st.integers(1, 500), min_size=8, max_size=40), st.booleans())
def test_shards_share_a_batch_equally(world, lengths, balanced) -> None:
    batch = list(range(len(lengths)))
    shares = [shard(batch, rank, world, lengths if balanced else None) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == batch
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if balanced:
        sums = [sum(lengths[index] for index in share) for share in shares]
        assert max(sums) - min(sums) <= max(lengths)
    else:
        assert [index for share in shares for index in share] == batch


def test_shards_are_dealt_to_and_fro() -> None:
    lengths = [80, 70, 60, 50, 40, 30, 20, 10]
    shares = [shard(range(8), rank, 3, lengths) for rank in range(3)]
    assert shares == [[0, 5, 6], [1, 4, 7], [2, 3]]
    assert [shard([0, 1, 2], rank, 4, lengths) for rank in range(4)] == [[0], [1], [2], []]


def test_what_a_shard_refuses() -> None:
    with pytest.raises(ValueError, match="rank 2 is not one of 2 devices"):
        shard([0, 1, 2], 2, 2)
