"""GPUs of a sweep's jobs: each has its own, as CUDA_VISIBLE_DEVICES names them."""

import threading

import pytest
import torch

from llava_lab.experiment import gpus
from llava_lab.experiment.gpus import Pool

AUTO = {"devices": "auto", "accelerator": "auto"}


@pytest.mark.parametrize(
    ("named", "count", "found"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("3, GPU-5f1a", 2, ["3", "GPU-5f1a"]),
        ("0,1,-1,2", 2, ["0", "1"]),  # CUDA stops at the first one that is none
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),  # CUDA shows one of them at a time
        ("", 0, []),
    ],
)
def test_visible_gpus_are_those_that_the_user_has_named(
    named: str | None, count: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if named is not None:
        monkeypatch.setenv(gpus.VISIBLE, named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus.visible() == found


def test_a_job_waits_until_there_are_as_many_gpus_as_it_wants() -> None:
    pool, had = Pool(["a", "b", "c"], 3), []
    first, second = pool.taken(1), pool.taken(1)
    with first as one:
        with second as two:
            assert one == ["a"] and two == ["b"]

            def work() -> None:
                with pool.taken(2) as names:
                    had.append(names)

            waiting = threading.Thread(target=work)
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(10)
    assert had == [["b", "c"]]


def test_more_jobs_than_gpus_share_them_evenly_and_the_sweep_says_so() -> None:
    pool = Pool(["0", "1"], 3)
    assert f"{pool}" == "on GPUs 0,1, up to 2 jobs on each"
    with pool.taken(1) as one, pool.taken(1) as two, pool.taken(1) as three:
        assert [one, two, three] == [["0"], ["1"], ["0"]]
    assert f"{Pool(['0', '1'], 2)}" == "on GPUs 0,1"


def test_a_job_gets_as_many_gpus_as_its_trainer_wants() -> None:
    names = [str(number) for number in range(8)]
    assert Pool(names, 8).wanted(AUTO) == 1 and Pool(names, 2).wanted(AUTO) == 4
    assert Pool(names, 1).wanted(AUTO) == 8 and Pool(names, 20).wanted(AUTO) == 1
    assert Pool(names, 8).wanted({**AUTO, "devices": 4}) == 4
    assert Pool(names, 8).wanted({**AUTO, "accelerator": "cpu"}) == 0
    with pytest.raises(ValueError, match=r"devices is 9, and there are 8 GPUs \(0,1,2"):
        Pool(names, 1).wanted({**AUTO, "devices": 9})
    with pytest.raises(ValueError, match=r"devices is \[2, 3\]: .* say how many"):
        Pool(names, 1).wanted({**AUTO, "devices": [2, 3]})
