"""Small releases of training data, in the exact forms in which they are published.

File names, keys and layouts are those of the releases; texts and pictures are made up. Sources:

- LLaVA-CC3M-Pretrain-595K, LLaVA-Pretrain (LCS-558K), LLaVA-Instruct-150K with its kinds and the
  665K mix: docs/Data.md and README.md of haotian-liu/LLaVA@c121f04 and the data sets' cards; a text
  row of the mix: issue 835 there; OCR-VQA's .gif pictures: issue 1618.
- LLaVA-NeXT-Data and LLaVA-OneVision-Data (lmms-lab), FineVision (HuggingFaceM4): the features of
  the data sets' cards; HF's writer makes a row group of 100 rows with pictures, here it is 2.
- VideoInstruct-100K: scripts/convert_instruction_json_to_training_format.py of
  mbzuai-oryx/Video-ChatGPT@69ea1db, which reads it.
- ShareGPTVideo: setup/setup_train_data.sh of RifleZhang/LLaVA-Hound-DPO@23d05ed and
  llava/train/train_dpo.py of LLaVA-VL/LLaVA-NeXT@b46e496; names of frames are made up.
- ShareGPT4V (Lin-Chen/ShareGPT4V): from memory, its rows have LLaVA's keys.
- Shards: webdataset's rule that members of one name are a sample; img2dataset writes .jpg, .txt and
  .json.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from test_video import video

Write = Callable[[Path], dict[str, Any]]
# Name of each release -> what writes it to a folder and says what a source needs to read it.
RELEASES: dict[str, Write] = {}


def release(write: Write) -> Write:
    RELEASES[write.__name__] = write
    return write


def picture(number: int, kind: str = "jpeg") -> bytes:
    """A small picture of its own color."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (number * 40 % 256, 90, 200 - number * 20 % 200)).save(file, kind)
    return file.getvalue()


def save(path: Path, content: Any) -> Path:
    """Write bytes, or a JSON value, or JSON lines of a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in content))
    else:
        path.write_text(json.dumps(content))
    return path


def zipped(path: Path, members: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tabled(path: Path, rows: Sequence[dict], schema: pa.Schema) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path, row_group_size=2)
    return path


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TALK = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
LMMS_LAB = pa.schema(
    [("id", pa.string()), ("image", IMAGE), ("conversations", TALK), ("data_source", pa.string())]
)


@release
def cc3m_595k(root: Path) -> dict[str, Any]:
    folder = root / "LLaVA-CC3M-Pretrain-595K"
    names = [f"GCC_train_00258258{number}" for number in range(4)]
    asked = ["Provide a brief description of the given image.\n<image>", "<image>\nDescribe it."]
    rows = [
        {"id": name, "image": f"{name}.jpg", "conversations": talk(asked[at % 2], f"a cat {at}")}
        for at, name in enumerate(names)
    ]
    pictures = {f"{name}.jpg": picture(at) for at, name in enumerate(names)}
    images = zipped(folder / "images.zip", pictures, zipfile.ZIP_DEFLATED)
    return {"path": save(folder / "chat.json", rows), "images": images, "template": "plain"}


@release
def lcs_558k(root: Path) -> dict[str, Any]:
    folder = root / "LLaVA-Pretrain"
    names = [f"0045{number}/00453937{number}" for number in range(4)]
    rows = [
        {"id": name[6:], "image": f"{name}.jpg", "conversations": talk("Render it.\n<image>", "a")}
        for name in names
    ]
    images = zipped(folder / "images.zip", {f"{name}.jpg": picture(3) for name in names})
    path = save(folder / "blip_laion_cc_sbu_558k.json", rows)
    return {"path": path, "images": images, "template": "plain"}


def coco(root: Path, folder: str = "coco/train2017") -> Path:
    for number in range(4):
        save(root / folder / f"00000003347{number}.jpg", picture(number))
    return root / folder


def instruct(root: Path, name: str) -> dict[str, Any]:
    """A file of LLaVA-Instruct-150K: its kinds have the same rows."""
    rows = [
        {
            "id": f"00000003347{number}",
            "image": f"00000003347{number}.jpg",
            "conversations": talk("<image>\nWhat is it?", "A bus.", "And its color?", "Red."),
        }
        for number in range(4)
    ]
    path = save(root / "LLaVA-Instruct-150K" / f"{name}.json", rows)
    return {"path": path, "images": coco(root)}


@release
def instruct_150k(root: Path) -> dict[str, Any]:
    return instruct(root, "llava_instruct_150k")


@release
def conversation_58k(root: Path) -> dict[str, Any]:
    return instruct(root, "conversation_58k")


@release
def detail_23k(root: Path) -> dict[str, Any]:
    return instruct(root, "detail_23k")


@release
def complex_reasoning_77k(root: Path) -> dict[str, Any]:
    return instruct(root, "complex_reasoning_77k")


@release
def mix_665k(root: Path) -> dict[str, Any]:
    coco(root)
    save(root / "ocr_vqa" / "images" / "0198727356.gif", picture(5, "gif"))
    short = "\nAnswer the question using a single word or phrase."
    shown = ["coco/train2017/000000033471.jpg", "ocr_vqa/images/0198727356.jpg"]
    rows: list[dict[str, Any]] = [
        {"id": at, "image": image, "conversations": talk(f"<image>\nWho?{short}", "No one")}
        for at, image in enumerate(shown)
    ]
    rows.append({"id": "wgByO4Y_0", "model": "", "conversations": talk("Who are you?", "An LM.")})
    begun = [{"from": "gpt", "value": "Hello."}, *talk("Why?", "So."), *talk("How?", "Thus.")]
    rows.append({"id": "sNuWfxr_0", "model": "", "conversations": begun})
    path = root / "LLaVA-Instruct-150K" / "llava_v1_5_mix665k.json"
    return {"path": save(path, rows), "images": root}


@release
def sharegpt4v(root: Path) -> dict[str, Any]:
    names = ["coco/train2017/000000033470.jpg", "sam/images/sa_545504.jpg"]
    coco(root)
    save(root / names[1], picture(2))
    rows = [
        {"id": Path(name).stem, "image": name, "conversations": talk("<image>\nTell.", "A hill.")}
        for name in names
    ]
    path = root / "ShareGPT4V" / "sharegpt4v_instruct_gpt4-vision_cap100k.json"
    return {"path": save(path, rows), "images": root}


@release
def llava_next_data(root: Path) -> dict[str, Any]:
    rows = [
        {
            "id": f"{number:012d}",
            "image": {"bytes": picture(number % 3), "path": f"{number:012d}.jpg"},
            "conversations": talk("<image>\nWhat is it?", f"It is {number}."),
            "data_source": "llava_1_6",
        }
        for number in range(6)
    ]
    rows[4] |= {"image": None, "conversations": talk("Who are you?", "An LM.")}
    folder = root / "LLaVA-NeXT-Data" / "data"
    for shard in range(2):
        name = f"train-0000{shard}-of-00002.parquet"
        tabled(folder / name, rows[3 * shard : 3 * shard + 3], LMMS_LAB)
    return {"path": folder}


@release
def llava_onevision_data(root: Path) -> dict[str, Any]:
    folder = root / "LLaVA-OneVision-Data" / "ai2d(cauldron,llava_format)"
    rows = [
        {
            "id": f"ai2d-{number}",
            "image": {"bytes": picture(number, "png"), "path": None},
            "conversations": talk("<image>\nWhich?\nA. One\nB. Two", "B"),
            "data_source": "ai2d(cauldron,llava_format)",
        }
        for number in range(3)
    ]
    rows[1] |= {"image": {"bytes": None, "path": None}, "conversations": talk("Who?", "An LM.")}
    return {"path": tabled(folder / "train-00000-of-00001.parquet", rows, LMMS_LAB)}


@release
def finevision(root: Path) -> dict[str, Any]:
    rated = [
        f"{name}_{what}"
        for name in ("relevance", "image_correspondence", "visual_dependency", "formatting")
        for what in ("ratings", "min")
    ]
    kinds = {"ratings": pa.list_(pa.int64()), "min": pa.int64()}
    schema = pa.schema(
        [
            ("images", pa.list_(IMAGE)),
            ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
            ("source", pa.string()),
            *((name, kinds[name.rpartition("_")[2]]) for name in rated),
        ]
    )
    rows = [
        {
            "images": [{"bytes": picture(at), "path": None} for at in range(number)],
            "texts": [{"user": "Which?", "assistant": "B"}, {"user": "Why?", "assistant": "So."}],
            "source": "ai2d_merged",
            **{name: [5, 4] if name.endswith("ratings") else 4 for name in rated},
        }
        for number in (1, 2, 0)
    ]
    folder = root / "FineVision" / "ai2d_merged"
    tabled(folder / "train-00000-of-00001.parquet", rows, schema)
    return {"path": folder}


@release
def plain_bytes(root: Path) -> dict[str, Any]:
    schema = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("conversations", TALK)])
    rows = [
        {"id": at, "image": picture(at), "conversations": talk("<image>\nWhat?", "A hill.")}
        for at in range(3)
    ]
    rows.append({"id": 3, "image": None, "conversations": talk("Who?", "An LM.")})
    return {"path": tabled(root / "rows.parquet", rows, schema)}


@release
def captions_in_tar(root: Path) -> dict[str, Any]:
    for shard in range(2):
        members = []
        for number in range(2):
            key = f"{shard:05d}{number:04d}"
            about = {"caption": "a hill", "url": "http://a.b/c.jpg", "key": key, "width": 40}
            members += [
                (f"{key}.jpg", picture(2 * shard + number)),
                (f"{key}.json", json.dumps(about).encode()),
                (f"{key}.txt", f"a hill {key}".encode()),
            ]
        tarred(root / "cc12m" / f"{shard:05d}.tar", members)
    return {"path": root / "cc12m", "template": "plain"}


@release
def conversations_in_tar(root: Path) -> dict[str, Any]:
    members = []
    for number in range(3):
        row = {
            "id": f"c{number}",
            "image": f"coco/{number}.png",
            "conversations": talk("<image>?", "B"),
        }
        members += [
            (f"./mix/{number:06d}.json", json.dumps(row).encode()),
            (f"./mix/{number:06d}.png", picture(number, "png")),
        ]
    return {"path": tarred(root / "mix-000000.tar", members)}


@release
def videoinstruct_100k(root: Path) -> dict[str, Any]:
    folder = root / "activitynet"
    folder.mkdir(parents=True)
    names = ["v_k_ZXmr8pmrs", "v_b-2.5"]
    for name, ending in zip(names, ("mp4", "mkv"), strict=True):
        video(folder / f"{name}.{ending}", 4)
    rows = [
        {"q": "What is done?", "a": "A dance.", "video_id": name} for name in [*names, names[0]]
    ]
    path = root / "VideoInstruct-100K" / "VideoInstruct100K.json"
    return {"path": save(path, rows), "images": folder}


def frames(root: Path) -> Path:
    for name in ("v_abc-scene-0", "12345"):
        for number in range(3):
            save(root / "train_300k" / name / f"c01_000{number + 1}.jpeg", picture(number))
    return root / "train_300k"


@release
def sharegptvideo_sft(root: Path) -> dict[str, Any]:
    rows = [
        {"id": f"{name}_0", "video": name, "conversations": talk("<video>\nWhat?", "A hill.")}
        for name in ("v_abc-scene-0", "12345")
    ]
    path = root / "video_instruction" / "train" / "sft" / "video_240k_caption_15k.jsonl"
    return {"path": save(path, rows), "images": frames(root)}


@release
def sft_dpo_17k(root: Path) -> dict[str, Any]:
    rows = [
        {
            "id": f"{name}_{at}",
            "video": name,
            "prompt": "<video>\nWhat is seen?",
            "answer": "A hill.",
            "chosen": "A green hill.",
            "rejected": "A dog.",
            "chosen_score": 5,
            "rejected_score": 2,
        }
        for at, name in enumerate(("v_abc-scene-0", "12345"))
    ]
    path = root / "shareVideoGPTV" / "dpo" / "sft_dpo_17k.jsonl"
    return {"path": save(path, rows), "images": frames(root)}
