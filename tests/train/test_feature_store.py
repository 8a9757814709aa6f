"""Features are kept by picture: whatever list it stands in, and whoever computes them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from llava_lab.core.lock import lock
from llava_lab.data.geometry import ViewSpec
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.views.pad import Pad
from llava_lab.train import feature_store
from llava_lab.train.feature_store import VIEWS, FeatureStore


class Counting(torch.nn.Module):
    """An encoder that counts the views that it is given at once."""

    view_spec = ViewSpec(8, (2, 2), False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 5))
        self._seen: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self._seen.append(len(pixels))
        patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
        return patches.permute(0, 2, 3, 1) @ self.weight


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "pictures" / f"{number}.png" for number in range(5)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        Image.new("RGB", (20 + number, 30), (number * 40, 9, 99)).save(path)
    return paths


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[list[Path]], FeatureStore]:
    def make(images: list[Path]) -> FeatureStore:
        return FeatureStore(tmp_path / "store", Counting(), Pad(), images)  # type: ignore[arg-type]

    return make


def features(store: FeatureStore) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Features and sizes by the pictures' names, in memory of their own."""
    found = {path.name: store[path] for path in store.names}
    return {name: (each.clone(), size) for name, (each, size) in found.items()}


def same(left: dict, right: dict) -> bool:
    return all(left[n][0].equal(right[n][0]) and left[n][1] == right[n][1] for n in left)


def test_another_list_of_pictures_computes_those_alone_that_are_new(
    pictures: list[Path], stored: Callable[[list[Path]], FeatureStore], tmp_path: Path
) -> None:
    few, every = stored(pictures[1:3]), stored(pictures[::-1])
    assert few.folder == every.folder
    few.fill()
    files = {path: path.stat().st_mtime_ns for path in few.folder.glob("*.safetensors")}
    before = features(few)
    every.fill()
    found = features(every)
    assert [size for _, size in found.values()] == [(20 + n, 30) for n in range(5)]
    assert same(before, found)
    assert all(path.stat().st_mtime_ns == files[path] for path in files)
    assert len(list(few.folder.glob("*.safetensors"))) == 2
    again = stored(pictures[:4])
    again.fill()
    assert again.encoder._seen == [] and same(features(again), found)  # type: ignore[attr-defined]
    alone = FeatureStore(tmp_path / "other", every.encoder, Pad(), pictures)
    alone.fill()
    assert same(features(alone), found), "their company does not show"


def test_every_group_of_views_has_the_same_size(
    pictures: list[Path],
    stored: Callable[[list[Path]], FeatureStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_store, "VIEWS", 3)
    store = stored(pictures)
    store.fill()
    assert store.encoder._seen == [3, 3] and VIEWS > 3  # type: ignore[attr-defined]


def test_a_moved_picture_is_found_and_a_changed_one_computed(
    pictures: list[Path], stored: Callable[[list[Path]], FeatureStore]
) -> None:
    store = stored(pictures)
    store.fill()
    moved = pictures[0].with_name("moved.png")
    moved.write_bytes(pictures[0].read_bytes())
    Image.new("RGB", (7, 7)).save(pictures[1])
    again = stored([moved, pictures[1], *pictures[2:]])
    again.fill()
    assert again[moved][0].equal(store[pictures[0]][0])
    assert again[pictures[1]][1] == (7, 7)
    assert again.encoder._seen == [VIEWS]  # type: ignore[attr-defined]


def test_a_picture_and_a_video_of_the_same_bytes_have_features_of_their_own(
    pictures: list[Path], stored: Callable[[list[Path]], FeatureStore]
) -> None:
    names = [stored([path]).names[path] for path in (pictures[0], VideoPath(pictures[0]))]
    assert len(set(names)) == 2


@pytest.mark.parametrize("harm", [lambda data: data[:-4], lambda data: data[:-1] + b"\xff", None])
def test_what_is_damaged_is_computed_anew_and_the_rest_is_kept(
    harm: Callable[[bytes], bytes] | None,
    pictures: list[Path],
    stored: Callable[[list[Path]], FeatureStore],
) -> None:
    stored(pictures[:2]).fill()
    store = stored(pictures)
    store.fill()
    wanted = features(store)
    (one, two) = store.folder.glob("*.safetensors")
    if harm is None:  # a file under another's name
        two.write_bytes(one.read_bytes())
    else:
        two.write_bytes(harm(two.read_bytes()))
    again = stored(pictures)
    with pytest.warns(UserWarning, match=f"{two.name}: .*; computed anew"):
        again.fill()
    assert same(features(again), wanted) and len(again.encoder._seen) == 1  # type: ignore[attr-defined]


def test_a_second_process_waits_and_finds_what_the_first_has_computed(
    pictures: list[Path],
    stored: Callable[[list[Path]], FeatureStore],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = stored(pictures), stored(pictures)
    waiting = threading.Thread(target=second.fill)
    with lock(first.folder / "lock", "features"):
        waiting.start()
        waiting.join(1.2)
        assert waiting.is_alive() and not second.encoder._seen  # type: ignore[attr-defined]
        first._fill()
    waiting.join()
    assert second.encoder._seen == [] and same(features(second), features(first))  # type: ignore[attr-defined]
    assert "features: waiting" in capsys.readouterr().out


def test_a_whole_store_is_read_where_nothing_can_be_written(
    pictures: list[Path],
    stored: Callable[[list[Path]], FeatureStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(pictures).fill()
    monkeypatch.setattr(feature_store, "lock", None)
    store = stored(pictures[1:])
    store.fill()
    assert len(features(store)) == 4


def test_an_encoder_without_weights_has_features(pictures: list[Path], tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        view_spec = Counting.view_spec

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).permute(0, 2, 3, 1)

    store = FeatureStore(tmp_path / "store", Means(), Pad(), pictures)  # type: ignore[arg-type]
    store.fill()
    assert {each.shape for each, _ in features(store).values()} == {(1, 4, 3)}
