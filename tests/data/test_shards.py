"""Rows of shards are rows like all others: checked, split, ordered, kept and loaded as those."""

import hashlib
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from releases import IMAGE, LMMS_LAB, RELEASES, TALK, picture, save, tabled, talk, tarred, zipped
from test_preference import tiny
from test_video import video

from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.loader import StageLoader, StepPart
from llava_lab.data.media import clip
from llava_lab.data.media.clip import image_digest, load_clip
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.preference import PreferenceDataModule
from llava_lab.data.official import read_official
from llava_lab.data.rows import BadRows, Refused
from llava_lab.data.sample import Sample
from llava_lab.data.source import Source
from llava_lab.data.split import hold_out
from llava_lab.data.table import read_table
from llava_lab.data.views.pad import Pad
from llava_lab.model.llava import Llava
from llava_lab.report.check_rows import look_at

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def model() -> Llava:
    return tiny()


def lmms(number: int, shown: Any = 0, **changes: Any) -> dict[str, Any]:
    """A row as lmms-lab's releases have it, with the picture of a number, or none."""
    image = {"bytes": picture(shown), "path": f"{number}.jpg"} if isinstance(shown, int) else shown
    asked = talk("<image>\nWhat?" if image else "What?", f"It is {number}.")
    return {"id": f"r{number}", "image": image, "conversations": asked, **changes}


def stage(*sources: Source, **options: Any) -> ImageDataModule:
    data = ImageDataModule(list(sources), Pad(), 2, **options)
    data.name = "stage"
    return data


def as_files(shards: Sequence[Path], root: Path) -> Source:
    """The same rows as JSON, their pictures as files, one for all rows that show it."""
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    for row in rows:
        if row["image"] is not None:
            name = f"{image_name(row)}.jpg"
            save(root / "pictures" / name, row["image"]["bytes"])
            row["image"] = name
    return Source(save(root / "rows.json", rows), root / "pictures")


def image_name(row: dict[str, Any]) -> str:
    return str(abs(hash(row["image"]["bytes"])))


def told(sample: Sample) -> Any:
    return sample.id, sample.messages, [image_digest(path) for path in sample.images]


def test_rows_are_those_of_files_in_order_and_content(tmp_path: Path, model: Llava) -> None:
    folder = RELEASES["llava_next_data"](tmp_path)["path"]
    files = as_files(sorted(folder.iterdir()), tmp_path)
    shards, plain = stage(Source(folder)), stage(files)
    for data in (shards, plain):
        data.check(model)
    assert [told(each) for each in shards.samples] == [told(each) for each in plain.samples]
    assert shards.order() == plain.order() and shards.lengths() == plain.lengths()
    places = [Path(sample.source).name for sample in shards.samples]
    assert places == [f"train-0000{n // 3}-of-00002.parquet, row {n % 3 + 1}" for n in range(6)]
    again = pickle.loads(pickle.dumps(shards.samples))
    assert list(again) == list(shards.samples)
    assert {image.parent.parent for image in shards.stored_images()} == {folder}
    assert len(shards.stored_images()) == 3, "a picture that several rows have is one picture"


def test_a_shard_that_moves_to_a_source_of_another_weight_is_other_content(tmp_path: Path) -> None:
    for shard in range(3):
        folder = tmp_path / ("one" if shard < 2 else "two")
        tabled(folder / f"{shard}.parquet", [lmms(shard, shard)], LMMS_LAB)
    seen = []
    for _ in range(2):
        data = stage(Source(tmp_path / "one", weight=2.0), Source(tmp_path / "two"))
        data.read()
        seen.append((data.content(), sum(map(len, data.order()))))
        if len(seen) < 2:
            (tmp_path / "one" / "1.parquet").rename(tmp_path / "two" / "1.parquet")
    assert seen[0][0] != seen[1][0] and [rows for _, rows in seen] == [5, 4]


def assert_apart(data: ImageDataModule | PreferenceDataModule) -> None:
    """No picture is on both sides of a hold-out, and both have some."""
    trained, held = (
        {image_digest(path) for row in rows for path in row.images}
        for rows in (data.samples, data.held)
    )
    assert trained and held and not trained & held


def test_a_picture_of_several_rows_is_on_one_side_of_the_hold_out(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [lmms(6 * shard + n, shown=n % 5) for n in range(6)]
        tabled(tmp_path / "shards" / f"{shard}.parquet", rows, LMMS_LAB)
    data = stage(Source(tmp_path / "shards"), hold_out=0.4)
    data.read()
    assert_apart(data)
    assert len(data.samples) + len(data.held) == 12


def test_a_picture_of_two_sources_is_on_one_side_of_the_hold_out(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tabled(tmp_path / name / f"{name}.parquet", [lmms(n, n) for n in range(12)], LMMS_LAB)
    data = stage(Source(tmp_path / "one"), Source(tmp_path / "two"), hold_out=0.4)
    data.read()
    assert_apart(data)


def test_a_picture_of_a_shard_and_of_a_file_is_on_one_side_of_the_hold_out(tmp_path: Path) -> None:
    shard = tabled(tmp_path / "s" / "0.parquet", [lmms(n, n) for n in range(24)], LMMS_LAB)
    data = stage(Source(tmp_path / "s"), as_files([shard], tmp_path), hold_out=0.4)
    data.read()
    assert_apart(data)
    digests = [{told(row)[2][0] for row in rows} for rows in (data.samples, data.held)]
    assert len(data.samples) + len(data.held) == 48 == 2 * sum(map(len, digests))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_picture_of_two_sources_of_answers_is_on_one_side_of_the_hold_out(
    kind: str, tmp_path: Path
) -> None:
    said = {"prompt": "<image>\nWhat?", "chosen": "A hill.", "rejected": "No."}
    schema = pa.schema([("image", IMAGE), *((key, pa.string()) for key in said)])
    for name in ("one", "two"):
        shown = [{"image": {"bytes": picture(n), "path": None}, **said} for n in range(12)]
        members = {f"{name}{n}.json": json_of(**said) for n in range(12)}
        members |= {f"{name}{n}.jpg": picture(n) for n in range(12)}
        if kind == "parquet":
            tabled(tmp_path / name / f"{name}.parquet", shown, schema)
        else:
            tarred(tmp_path / name / f"{name}.tar", list(members.items()))
    sources = [Source(tmp_path / name) for name in ("one", "two")]
    data = PreferenceDataModule(sources, Pad(), 2, hold_out=0.4)
    data.read()
    assert_apart(data)
    assert len(data.samples) + len(data.held) == 24


def test_pictures_of_rows_in_files_of_their_own_are_split_by_name(tmp_path: Path) -> None:
    zipped(tmp_path / "images.zip", {f"{n}.jpg": picture(0) for n in range(10)})
    images = [tmp_path / "images.zip" / f"{n}.jpg" for n in range(10)]
    rows = [Sample(str(n), (), (each,), "a.parquet, row 1") for n, each in enumerate(images)]
    assert [row.id for row in hold_out(rows, 0.4)[1]] == ["0", "5", "6", "8"]


def alike(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


@pytest.mark.parametrize("name", ["finevision", "conversations_in_tar"])
def test_workers_load_the_same_rows_and_a_stage_goes_on_at_any_step(
    name: str, tmp_path: Path, model: Llava
) -> None:
    data = stage(Source(**RELEASES[name](tmp_path)), max_steps=4, epochs=4)
    data.check(model)
    rows = data.encoded(data.samples, model)
    steps = [[StepPart(step, False, step, 0, 1)] for step in data.order()]

    def batches(workers: int, start: int = 0) -> list[Any]:
        loader = StageLoader(rows, steps, data.collate, workers)
        loader.load_state_dict({"steps": start})
        return list(loader)

    whole = batches(0)
    assert len(whole) == 4
    for start, others in ((0, batches(1)), (2, batches(0, 2))):
        for one, other in zip(whole[start:], others, strict=True):
            assert one.batch.sources == other.batch.sources
            assert alike(one.batch.views, other.batch.views)


@pytest.mark.slow  # a process that imports all anew
def test_a_spawned_worker_loads_the_same_rows(tmp_path: Path, model: Llava) -> None:
    data = stage(Source(**RELEASES["llava_next_data"](tmp_path)))
    data.check(model)
    rows = data.encoded(data.samples, model)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    for mine, theirs in zip([rows[n] for n in range(len(rows))], loader, strict=True):
        assert mine.source == theirs.source
        assert alike(mine.views, theirs.views)


def test_a_second_start_reads_no_picture_and_a_changed_shard_is_read_anew(
    tmp_path: Path, model: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tabled(tmp_path / "rows.parquet", [lmms(n, n) for n in range(3)], LMMS_LAB)
    stage(Source(path)).check(model)
    read: list[Path] = []
    real = clip.content
    monkeypatch.setattr(clip, "content", lambda path: read.append(path) or real(path))
    data = stage(Source(path))
    data.check(model)
    before = data.content()
    assert not read
    tabled(path, [lmms(0, 0), lmms(1, 7), lmms(2, 2)], LMMS_LAB)
    changed = stage(Source(path))
    changed.check(model)
    assert changed.content() != before and read


CUT = picture(1)[:300]
PARQUET = {
    2: (lmms(2, {"bytes": b"no picture", "path": None}), "not an image"),
    3: (lmms(3, {"bytes": CUT, "path": None}), "rows.parquet/3.image: "),
    4: (lmms(4, conversations=talk("What?", "A.")), "1 image(s), but no <image> placeholder"),
    5: (lmms(5, None, conversations=talk("<image>?", "A.")), "no 'image', but a literal <image>"),
    6: (lmms(6, conversations=talk("<image>?", "")), "an answer, is empty"),
}


def json_of(**row: Any) -> bytes:
    return json.dumps(row).encode()


# Members of each sample of a .tar, and what is said of it.
TAR: dict[int, tuple[dict[str, bytes], str]] = {
    2: ({"jpg": picture(2)}, "has neither .json nor .txt; its members are jpg"),
    3: ({"jpg": CUT, "txt": b"a hill"}, "rows.tar/3.jpg: "),
    4: ({"jpg": picture(3), "json": b"{"}, "not JSON"),
    5: ({"jpg": picture(3), "json": b"[]"}, "holds a list, not an object"),
    6: (
        {"json": json_of(image="a.jpg", conversations=talk("<image>?", "A."))},
        "names 'a.jpg', but the shard holds no picture for it",
    ),
    7: ({"jpg": picture(3), "txt": b"\xff"}, "codec can't decode"),
    8: ({"jpg": picture(3), "json": json_of(url="a")}, "'conversations' must be a list"),
}


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_bad_rows_are_found_by_check_and_left_out_where_they_may_be(
    kind: str, tmp_path: Path, model: Llava
) -> None:
    bad = PARQUET if kind == "parquet" else TAR
    path, last = tmp_path / f"rows.{kind}", len(bad) + 2
    if kind == "parquet":
        good = {1: lmms(1), last: lmms(9, 4)}
        rows = {**good, **{number: row for number, (row, _) in PARQUET.items()}}
        tabled(path, [rows[number] for number in sorted(rows)], LMMS_LAB)
    else:
        fine = {"jpg": picture(1), "txt": b"a hill"}
        samples = {1: fine, last: fine, **{number: each for number, (each, _) in TAR.items()}}
        named = [(f"{n}.{end}", samples[n][end]) for n in sorted(samples) for end in samples[n]]
        tarred(path, named)
    looked = look_at(stage(Source(path)), model, Source(path))
    found = {int(row.source.rpartition(" ")[2]): row.reason for row in looked.bad}
    assert found.keys() == bad.keys() and looked.total == last
    assert all(reason in found[number] for number, (_, reason) in bad.items()), found
    with pytest.raises(BadRows, match=f"rows.{kind}: "):
        stage(Source(path)).check(model)
    kept = stage(Source(path, on_bad_row="skip"))
    with pytest.warns(UserWarning, match=f"{len(bad)} of {last} rows are left out"):
        kept.check(model)
    assert len(kept.samples) == 2 and kept.skipped == {str(path): len(bad)}
    for _ in range(2):  # read, and found again
        assert len(read_table(Source(path, on_bad_row="skip"), 0, False).bad) < last


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def encrypted(folder: Path) -> Path:
    path = zipped(folder / "a.zip", {"a.jpg": picture(1)})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    return path


def packed_tar(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w:gz") as archive:
        archive.add(save(folder / "a.txt", b"a"), "a.txt")
    return folder / "a.tar"


def by_name(folder: Path) -> Path:
    row = lmms(1, {"bytes": None, "path": "a.jpg"})
    return tabled(folder / "a.parquet", [row], LMMS_LAB)


def both_kinds(folder: Path) -> Path:
    tabled(folder / "both" / "a.parquet", [lmms(1)], LMMS_LAB)
    tarred(folder / "both" / "b.tar", [("a.txt", b"a")])
    return folder / "both"


def harmed(folder: Path, how: Callable[[bytes, int], bytes]) -> Path:
    """A .tar of three rows, changed at the byte where its third one begins."""
    path = tarred(folder / "a.tar", [(f"{n}.{e}", b"a") for n in range(3) for e in ("txt", "jpg")])
    with tarfile.open(path) as archive:
        at = archive.getmember("2.txt").offset
    path.write_bytes(how(path.read_bytes(), at))
    return path


def linked(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = tarfile.SYMTYPE, "b.txt"
        archive.addfile(member)
    return folder / "a.tar"


def folder_of(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for number, name in enumerate(names):
            tabled(folder / f"{name}.parquet", [lmms(number)], LMMS_LAB)
        return folder

    return make


HARM: dict[str, Callable[[bytes, int], bytes]] = {
    "tar cut between rows": lambda whole, at: whole[:at],
    "tar cut in a header": lambda whole, at: whole[: at + 100],
    "tar of a damaged header": lambda whole, at: whole[:at] + b"?" + whole[at + 1 :],
    "tar with zeros within": lambda whole, at: whole[:at] + bytes(512) + whole[at + 512 :],
}
two = [("a.jpg", picture(1)), ("a.txt", b"a hill")]
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut parquet": (lambda f: cut(tabled(f / "a.parquet", [lmms(1)], LMMS_LAB)), "as parquet"),
    "no parquet": (lambda f: save(f / "a.parquet", b"PAR1"), "cannot be read as parquet"),
    "cut tar": (
        lambda f: cut(tarred(f / "a.tar", [("a.jpg", b"1" * 19968)])),
        "damaged, or no .tar",
    ),
    **{
        case: (lambda f, how=how: harmed(f, how), r"at byte 4096 of \d+, behind member '1.jpg'; fe")
        for case, how in HARM.items()
    },
    "tars together": (lambda f: harmed(f, lambda whole, at: whole * 2), "one behind another"),
    "a link in a tar": (linked, "'a.txt' is a link or has holes; write it whole"),
    "packed tar": (packed_tar, "compressed as a whole, gunzip it"),
    "a name twice": (lambda f: tarred(f / "a.tar", two + two), "holds 'a.jpg' twice"),
    "empty tar": (lambda f: tarred(f / "a.tar", []), "holds no rows"),
    "no rows": (lambda f: tabled(f / "a.parquet", [], LMMS_LAB), "holds no rows"),
    "both kinds": (both_kinds, "holds .parquet and .tar files; name one"),
    "a shard missing": (
        folder_of(*(f"train-0000{n}-of-00004" for n in (0, 1, 3))),
        r"train-\*: 3 files, whose names say that they are 4; number 2 is not: fetch",
    ),
    "shards of two uploads": (
        folder_of("train-00000-of-00001-0a1b", "train-00000-of-00001-2c3d"),
        r"train-\*: 2 files, whose names say that they are 1; some are twice",
    ),
    "shards of two totals": (
        folder_of("a-00000-of-00001", *(f"a-0000{n}-of-00002" for n in range(2))),
        r"a-\*: 3 files, whose names say that they are 2; some are twice",
    ),
    "two splits": (
        folder_of("train-00000-of-00001", "test-00000-of-00001"),
        "the splits test, train, as test-00000-of-00001.parquet and train-0",
    ),
    "two splits in folders": (folder_of("train/0", "val/0"), "the splits train, val, as train/0"),
    "two splits behind a name": (
        folder_of("cc3m-train-0000", "cc3m-validation-0000"),
        "the splits train, validation, as cc3m-train-0000.parquet and cc3m-val",
    ),
    "empty folder": (lambda f: f, "a folder without .parquet or .tar files"),
    "gone": (lambda f: f / "gone.parquet", "gone.parquet: no such file"),
    "pictures by name": (by_name, "the first 'a.jpg', but does not hold them; set images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_by_one_message(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        stage(Source(path)).read()
    assert str(path) in str(caught.value)


def test_a_folder_may_hold_parts_that_are_no_splits(tmp_path: Path) -> None:
    names = [*(f"train-0000{n}-of-00002" for n in (1, 2)), "more/trains", "more/a-of-b", "test_a"]
    data = stage(Source(folder_of(*names)(tmp_path)))
    data.read()
    assert len(data.samples) == 5


def test_a_benchmark_of_several_files_is_whole(tmp_path: Path) -> None:
    folder_of("test-00001-of-00002", "val-00000-of-00001")(tmp_path)
    assert len(list(read_official(str(tmp_path / "val-*.parquet")))) == 1
    assert len(list(read_official(str(tmp_path / "test-00001-of-00002.parquet")))) == 1
    with pytest.raises(
        ValueError, match=r"test-\*: 1 files, whose names say that they are 2; numb"
    ):
        list(read_official(str(tmp_path / "test-*.parquet")))


def test_pictures_by_name_are_found_in_their_folder(tmp_path: Path) -> None:
    path = by_name(tmp_path)
    save(tmp_path / "images" / "a.jpg", picture(1))
    data = stage(Source(path, tmp_path / "images"))
    data.read()
    assert data.samples[0].images == (tmp_path / "images" / "a.jpg",)
    shards = tarred(tmp_path / "a.tar", two)
    with pytest.raises(ValueError, match="has its pictures inside; leave images out"):
        stage(Source(shards, tmp_path / "images")).read()


def test_shards_that_are_links_into_a_cache_of_the_hub_are_read(tmp_path: Path) -> None:
    real = tabled(tmp_path / "blobs" / "0a1b", [lmms(1)], LMMS_LAB)
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    (tmp_path / "snapshot" / "data" / "train.parquet").symlink_to(real)
    data = stage(Source(tmp_path / "snapshot"))
    data.read()
    assert image_digest(data.samples[0].images[0])


def finevision(path: Path, *images: list[Any], texts: Any = None) -> Path:
    schema = pa.schema(
        [
            ("images", pa.list_(IMAGE)),
            ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ]
    )
    texts = texts or [{"user": "Q?", "assistant": "A."}]
    return tabled(path, [{"images": each, "texts": texts} for each in images], schema)


KINDS = {
    "list of two": (pa.list_(IMAGE, 2), lambda n: [{"bytes": picture(n), "path": None}] * 2, 2),
    "view": (pa.binary_view(), picture, 1),
    "bytes of one size": (pa.binary(len(picture(1))), lambda n: picture(1), 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_found_in_columns_of_every_kind(kind: str, tmp_path: Path) -> None:
    column, cell, count = KINDS[kind]
    schema = pa.schema([("image", column), ("conversations", TALK)])
    rows = [{"image": cell(n), "conversations": talk("<image>" * count, "A")} for n in range(3)]
    data = stage(Source(tabled(tmp_path / "a.parquet", rows, schema)))
    data.read()
    assert [len(row.images) for row in data.samples] == [count] * 3
    assert image_digest(data.samples[1].images[0]) == hashlib.sha256(picture(1)).hexdigest()


@pytest.mark.parametrize(
    ("key", "column", "value"),
    [
        ("image", pa.int64(), 3),
        ("images", pa.list_(pa.struct([("file", pa.string())])), [{"file": "a.jpg"}]),
    ],
)
def test_a_column_of_pictures_that_is_none_is_refused_by_row(
    key: str, column: pa.DataType, value: Any, tmp_path: Path
) -> None:
    schema = pa.schema([(key, column), ("conversations", TALK)])
    path = tabled(tmp_path / "a.parquet", [{key: value, "conversations": talk("Q", "A")}], schema)
    with pytest.raises(BadRows, match=rf"a\.parquet, row 1.*'{key}'"):
        stage(Source(path)).read()


def test_a_caption_without_a_picture_is_no_row_of_text(tmp_path: Path) -> None:
    members = [("1.txt", b"a hill"), ("1.xyz", b"1"), ("2.jfif", picture(2)), ("2.txt", b"a lake")]
    path = tarred(tmp_path / "a.tar", members)
    with pytest.raises(BadRows, match=r"row 1.*a caption and no picture.*txt, xyz"):
        stage(Source(path)).read()
    assert [
        len(row.images) for row in read_table(Source(path, on_bad_row="skip"), 0, False).items
    ] == [1]


def test_texts_of_finevision_lose_placeholders_that_they_hold_by_chance(tmp_path: Path) -> None:
    texts = [{"user": "Is <image> a tag?", "assistant": "<image> is."}]
    images = [{"bytes": picture(1), "path": None}] * 2
    data = stage(Source(finevision(tmp_path / "a.parquet", images, texts=texts)))
    data.read()
    assert data.samples[0].messages == [
        ["user", "<image>\n<image>\nIs  a tag?"],
        ["assistant", " is."],
    ]
    assert data.samples[0].id == "a-1" and len(set(data.samples[0].images)) == 1


def test_a_picture_of_a_list_that_is_not_there_never_makes_a_row_of_text(tmp_path: Path) -> None:
    held, gone = {"bytes": picture(1), "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}
    with pytest.raises(ValueError, match=r"the first '2\.jpg', but does not hold them"):
        stage(Source(finevision(tmp_path / "a.parquet", [gone]))).read()
    path = finevision(tmp_path / "b.parquet", [], [held], [held, gone], [None, held], [None])
    whole = read_table(Source(path, on_bad_row="skip"), 0, False)
    assert [(bad.source.rpartition(" ")[2], bad.reason) for bad in whole.bad] == [
        (row, f"picture {number} of 'images' has no bytes in the shard")
        for row, number in (("3", 2), ("4", 1), ("5", 1))
    ]
    data = stage(Source(path, on_bad_row="skip"))
    for _ in range(2):  # read, and found again
        with pytest.warns(UserWarning, match="row 3 .*: picture 2 of 'images' has no bytes in the"):
            data.read()
        assert [len(sample.images) for sample in data.samples] == [0, 1]
        data = stage(Source(path, on_bad_row="skip"))
    save(tmp_path / "images" / "1.jpg", picture(1))
    path = finevision(tmp_path / "c.parquet", [{"bytes": picture(1), "path": None}])
    with pytest.raises(BadRows, match=r"'image' must be a path or a list of paths, not \[''\]"):
        stage(Source(path, tmp_path / "images")).read()


def test_pictures_of_a_sample_are_in_the_order_of_numbers_or_of_its_json(tmp_path: Path) -> None:
    asked = talk("<image>" * 12, "A.")
    files = [(f"0.{n}.png", picture(n, "png")) for n in range(12)]
    path = tarred(tmp_path / "a.tar", [("0.json", json_of(conversations=asked)), *files])
    (sample,) = read_table(Source(path), 0, False).items
    assert [image.name for image in sample.images] == [name for name, _ in files]
    row = {"image": [f"x/0.{n}.png" for n in (9, 2, 9)], "conversations": talk("<image>" * 3, "A.")}
    path = tarred(tmp_path / "b.tar", [("0.json", json_of(**row)), files[2], files[9]])
    (sample,) = read_table(Source(path), 0, False).items
    assert [image.name for image in sample.images] == ["0.9.png", "0.2.png", "0.9.png"]


def compared(path: Path, *listed: str) -> Path:
    row = {"image": listed, "conversations": talk("<image><image>What changed?", "It.")}
    files = [(f"0.{name}.png", picture(n, "png")) for n, name in enumerate(("after", "before"))]
    return tarred(path, [("0.json", json_of(**row)), *files])


def test_pictures_of_a_sample_are_those_that_its_json_lists(tmp_path: Path) -> None:
    for number, names in enumerate((["before.png", "x/after.png"], ["0.before.png", "after.png"])):
        path = compared(tmp_path / f"{number}.tar", *names)
        (sample,) = read_table(Source(path), 0, False).items
        assert [image.name for image in sample.images] == ["0.before.png", "0.after.png"]
    path = compared(tmp_path / "a.tar", "1.png", "2.png")
    told = r"lists \['1.png', '2.png'\], and the pictures of the sample are 0.after.png, 0.before.p"
    with pytest.raises(BadRows, match=told):
        read_table(Source(path), 0, False)
    row = {"image": ["coco/1.jpg"], "conversations": talk("<image>?", "A.")}
    path = tarred(tmp_path / "b.tar", [("0.json", json_of(**row)), ("0.jpg", picture(1))])
    assert len(read_table(Source(path), 0, False).items) == 1, "one picture has no order"


def test_a_name_without_its_ending_is_found_and_an_ambiguous_one_refused(tmp_path: Path) -> None:
    video(tmp_path / "v_a-1.5.mkv", 2)
    folder = ImageFolder(tmp_path)
    assert folder.find("v_a-1.5", "video").name == "v_a-1.5.mkv"
    with pytest.raises(Refused, match="video 'v_a' is not in"):
        folder.find("v_a", "video")
    shutil.copy(tmp_path / "v_a-1.5.mkv", tmp_path / "v_a-1.5.webm")
    with pytest.raises(Refused, match=r"may be v_a-1.5.mkv or v_a-1.5.webm; keep one"):
        ImageFolder(tmp_path).find("v_a-1.5", "video")
    save(tmp_path / "cover.gif", picture(1, "gif"))
    save(tmp_path / "mask.png", picture(1, "png"))
    assert folder.find("v_a-1.5.mkv", "video")
    again = ImageFolder(tmp_path)
    assert again.find("cover.jpg").name == "cover.gif"
    with pytest.raises(Refused, match=r"image 'mask\.jpg' is not in"):
        again.find("mask.jpg")


def test_videos_and_folders_in_an_archive_are_found(tmp_path: Path) -> None:
    film = video(tmp_path / "a.mp4", 4)
    path = zipped(tmp_path / "a.zip", {"films/a.mp4": film.read_bytes()}, zipfile.ZIP_DEFLATED)
    film.unlink()
    found = ImageFolder(path / "films").find("a", "video")
    assert found == path / "films" / "a.mp4"
    assert len(load_clip(found, lambda count, fps: [0, 3]).frames) == 2
    with pytest.raises(Refused, match=r"'a.mp4' is not in .*; its files are under .*a.zip/films"):
        ImageFolder(path).find("a.mp4", "video")
    with pytest.raises(FileNotFoundError, match="in that archive; it has films"):
        ImageFolder(path / "clips")
    with pytest.raises(ValueError, match=r"'a\.jpg' is encrypted"):
        ImageFolder(encrypted(tmp_path))


def test_a_damaged_picture_in_a_zip_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.jpg": picture(1)})
    content = path.read_bytes()
    at = content.index(picture(1)) + 200
    path.write_bytes(content[:at] + b"\x00\x01" + content[at + 2 :])
    with pytest.raises(ValueError, match=r"a.zip/a.jpg: damaged or cut short in its archive"):
        image_digest(path / "a.jpg")


def test_schema_of_rows_may_lack_what_is_not_read(tmp_path: Path) -> None:
    schema = pa.schema([("conversations", TALK)])
    data = stage(
        Source(tabled(tmp_path / "a.parquet", [{"conversations": talk("Q?", "A.")}], schema))
    )
    data.read()
    assert [sample.id for sample in data.samples] == ["a-1"]
