import copy
import random
from collections.abc import Sequence

import pytest
from tokenizers import AddedToken, processors

from llava_lab.data.chat import TEMPLATES, Template, get_template, place_image
from llava_lab.data.sample import Turn
from llava_lab.data.tokens import IGNORE, VISUAL, Encoded

CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content"
    " that the user provides, and assist the user with a variety of tasks using natural language."
)
# What each template writes before the first answer, between the two, and at the end.
WRITTEN = {
    "terse": ("<image>\nQ", " A; Q2", " A2;"),
    "v0": (
        CURIOUS_HUMAN + "###Human: <image>\nQ###Assistant:",
        " A###Human: Q2###Assistant:",
        " A2###",
    ),
    "llava_v0": (
        CURIOUS_HUMAN + "###Human: <image>\nQ###Assistant:",
        " A###Human: Q2###Assistant:",
        " A2###",
    ),
    "v1": (CURIOUS_USER + " USER: <image>\nQ ASSISTANT:", " A</s>USER: Q2 ASSISTANT:", " A2</s>"),
    "llava_v1": (
        CURIOUS_HUMAN + " USER: <image>\nQ ASSISTANT:",
        " A</s>USER: Q2 ASSISTANT:",
        " A2</s>",
    ),
    "llava_llama_2": (
        f"[INST] <<SYS>>\n{HELPFUL}\n<</SYS>>\n\n<image>\nQ [/INST]",
        " A </s><s>[INST] Q2 [/INST]",
        " A2 </s>",
    ),
    "mistral_instruct": ("[INST] <image>\nQ [/INST]", " A </s>[INST] Q2 [/INST]", " A2 </s>"),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|>"
        "<|im_start|>assistant\n",
        "A<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
        "A2<|im_end|>",
    ),
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ"
        "<|im_end|>\n<|im_start|>assistant\n",
        "A<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        "A2<|im_end|>\n",
    ),
    "llava_llama_3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{HELPFUL}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "A<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "A2<|eot_id|>",
    ),
}
BYTE_LEVEL = ("chatml_direct", "qwen_1_5", "llava_llama_3")


@pytest.fixture
def tokenizer_of(llama_tokenizer, byte_tokenizer):
    return lambda name: byte_tokenizer if name in BYTE_LEVEL else llama_tokenizer


def talk(*texts: str) -> list[Turn]:
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def spell(tokens: Sequence[int], tokenizer) -> str:
    """Join tokens as text; the "▁" or "Ġ" of a first word shows as a space."""
    text = "".join(tokenizer.convert_ids_to_tokens(list(tokens)))
    for token, meaning in {"▁": " ", "Ġ": " ", "<0x0A>": "\n", "Ċ": "\n"}.items():
        text = text.replace(token, meaning)
    return text


def trained(encoded: Encoded, tokenizer) -> list[str]:
    """Spell each run of tokens that are trained on."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        assert label in (IGNORE, token)
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(label)
    return [spell(run, tokenizer) for run in runs if run]


def released_ids(text: str, tokenizer, visual_tokens: Sequence[int] = ()) -> list[int]:
    """Tokenize chunk by chunk around the images, with the BOS of the first chunk only."""
    first, *chunks = text.split("<image>")
    ids = list(tokenizer(first).input_ids)
    for count, chunk in zip(visual_tokens, chunks, strict=True):
        ids += [VISUAL] * count + tokenizer(chunk, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize("name", WRITTEN)
def test_written_text_and_its_ids(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    first, second, third = WRITTEN[name]
    template = get_template(name)
    turns = talk("<image>\nQ", "A", "Q2", "A2")
    for count, text in {1: first, 3: first + second, 4: first + second + third}.items():
        pieces = template.pieces(turns[:count], tokenizer)
        assert "".join(piece.text for piece in pieces) == text
    encoded = template.encode(turns, tokenizer, [3], "row")
    assert encoded.ids == released_ids(first + second + third, tokenizer, [3])
    assert template.prompt(turns[:1], tokenizer, [3], "row") == released_ids(first, tokenizer, [3])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_prompt_is_how_the_conversation_begins(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    template = get_template(name)
    turns = talk("<image>\nWhat is it?", "A red car.", "How many dogs?", "two")
    ids = template.encode(turns, tokenizer, [4], "row").ids
    for count in (1, 3):
        prompt = template.prompt(turns[:count], tokenizer, [4], "row")
        assert prompt == ids[: len(prompt)]
        assert template.encode(turns, tokenizer, [4], "row").labels[len(prompt)] != IGNORE
        assert len(prompt) < len(ids)


CORRECT = {
    "v0": [" A red car.###", " two###"],
    "llava_v0": [" A red car.###", " two###"],
    "v1": [" A red car.</s>", " two</s>"],
    "llava_v1": [" A red car.</s>", " two</s>"],
    "llava_llama_2": [" A red car. </s>", " two </s>"],
    "mistral_instruct": [" A red car. </s>", " two </s>"],
    "chatml_direct": ["A red car.<|im_end|>", "two<|im_end|>"],
    "qwen_1_5": ["A red car.<|im_end|>", "two<|im_end|>"],
    "llava_llama_3": ["A red car.<|eot_id|>", "two<|eot_id|>"],
}
# The words between two runs, such as "system" and the questions, are what is left out.
RELEASED = {
    "v0": ["Human: ", "Assistant: A red car.###Human:", "Assistant: two###"],
    "qwen_1_5": [
        "<|im_start|>",
        "<|im_end|>\n<|im_start|>",
        "<|im_end|>\n<|im_start|>",
        "A red car.<|im_end|>\n<|im_start|>",
        "<|im_end|>\n<|im_start|>",
        "two<|im_end|>\n",
    ],
    "llava_llama_3": [
        "<|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>",
        "<|end_header_id|>\n\n",
        "\n",
        "<|eot_id|><|start_header_id|>",
        "<|end_header_id|>\n\nA red car.<|eot_id|><|start_header_id|>",
        "<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>",
        "<|end_header_id|>\n\ntwo<|eot_id|>",
    ],
}


@pytest.mark.parametrize("name", CORRECT)
def test_correct_masking_is_the_answers_and_their_ends(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    turns = talk("<image>\nWhat is it?", "A red car.", "How many dogs are there?", "two")
    encoded = get_template(name).encode(turns, tokenizer, [2], "row")
    assert trained(encoded, tokenizer) == CORRECT[name]


@pytest.mark.parametrize("name", CORRECT)
def test_released_masking_has_the_released_faults(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    turns = talk("<image>\nWhat is it?", "A red car.", "How many dogs are there?", "two")
    encoded = get_template(name, "released").encode(turns, tokenizer, [2], "row")
    expected = RELEASED["v0"] if name == "llava_v0" else RELEASED.get(name, CORRECT[name])
    assert trained(encoded, tokenizer) == expected
    assert encoded.ids == get_template(name).encode(turns, tokenizer, [2], "row").ids


def test_v1_token_by_token(llama_tokenizer):
    turns = talk("What is <image> it?", "two cars", "How?", "A dog")
    encoded = get_template("v1").encode(turns, llama_tokenizer, [2], "row")
    spelled = [
        "*" if token == VISUAL else llama_tokenizer.convert_ids_to_tokens(token)
        for token in encoded.ids
    ]
    assert spelled[0] == "<s>" and "<s>" not in spelled[1:]
    assert " ".join(spelled[spelled.index("▁USER:") :]) == (
        "▁USER: ▁What ▁is ▁ * * ▁i t ? ▁ASSISTANT: ▁two ▁car s </s> "
        "USER : ▁How ? ▁ASSISTANT: ▁A ▁d o g </s>"
    )
    targets = [
        place - len(spelled) for place, label in enumerate(encoded.labels) if label != IGNORE
    ]
    assert targets == [-14, -13, -12, -11, -5, -4, -3, -2, -1]


def conversations(count: int = 40) -> list[tuple[list[Turn], list[int]]]:
    """Make up conversations of one to three rounds with no, one or two images in the first."""
    rng = random.Random(0)
    words = [
        "A",
        "red",
        "car",
        "dogs,",
        "two",
        "it's",
        "é",
        "漢字",
        "foo\nbar",
        "",
        "(12)",
        "many?",
    ]

    def say() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 8))).strip() or "A"

    made = []
    for _ in range(count):
        turns = talk(*(say() for _ in range(2 * rng.randint(1, 3))))
        form = rng.choice(["{}", "<image>\n{}", "{}\n<image>", "<image> or <image>? {}"])
        turns[0] = Turn("user", form.format(turns[0].text))
        made.append((turns, [rng.randint(1, 5) for _ in range(form.count("<image>"))]))
    return made


def written(template: Template, turns: Sequence[Turn], tokenizer) -> str:
    return "".join(piece.text for piece in template.pieces(turns, tokenizer))


def labels_by_rounds(text: str, tokenizer, visual_tokens: Sequence[int], header: str) -> list[int]:
    """Mask as `preprocess_v1` and `preprocess_llama_2` do: by the lengths of rounds and questions.

    Each round is tokenized anew; its BOS makes up for the `</s>` that it lost. A question with its
    header has two tokens too many: that BOS, and the space that is in the answer's first token.
    """
    images = iter(visual_tokens)
    ids = released_ids(text, tokenizer, visual_tokens)
    labels, place = [IGNORE] * len(ids), 1
    for turn in text.removesuffix("</s>").split("</s>"):
        counts = [next(images) for _ in range(turn.count("<image>"))]
        asked, _ = turn.split(header)
        begin = place + len(released_ids(asked + header, tokenizer, counts)) - 2
        place += len(released_ids(turn, tokenizer, counts))
        labels[begin:place] = ids[begin:place]
    assert place == len(ids), "the released code would drop the sample"
    return labels


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("v1", " ASSISTANT: "),
        ("llava_v1", " ASSISTANT: "),
        ("llava_llama_2", "[/INST] "),
        ("mistral_instruct", "[/INST] "),
    ],
)
def test_labels_as_released_by_rounds(name, header, legacy_llama_tokenizer):
    template = get_template(name)
    for turns, visual_tokens in conversations():
        text = written(template, turns, legacy_llama_tokenizer)
        labels = labels_by_rounds(text, legacy_llama_tokenizer, visual_tokens, header)
        encoded = template.encode(turns, legacy_llama_tokenizer, visual_tokens, "row")
        assert encoded.ids == released_ids(text, legacy_llama_tokenizer, visual_tokens)
        assert encoded.labels == labels


def test_labels_of_chatml_direct_as_released(llama_tokenizer):
    """As `preprocess_mpt` of LLaVA-NeXT does: BOS and a round's lost `<|im_end|>` cancel out."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.add_tokens([AddedToken(m, special=True) for m in ("<|im_start|>", "<|im_end|>")])
    template, end = get_template("chatml_direct"), "<|im_end|>"
    for turns, visual_tokens in conversations():
        text = written(template, turns, tokenizer)
        images = iter(visual_tokens)
        ids = released_ids(text, tokenizer, visual_tokens)
        labels, place = [IGNORE] * len(ids), 1
        system, *messages = text.removesuffix(end).split(end)
        messages[0] = system + end + messages[0]
        for asked, answered in zip(messages[::2], messages[1::2], strict=True):
            counts = [next(images) for _ in range(asked.count("<image>"))]
            header = asked + end + "<|im_start|>assistant\n"
            begin = place + len(released_ids(header, tokenizer, counts)) - 1
            place += len(released_ids(asked + end + answered, tokenizer, counts))
            labels[begin:place] = ids[begin:place]
        assert place == len(ids), "the released code would drop the sample"
        assert template.encode(turns, tokenizer, visual_tokens, "row") == Encoded(ids, labels)


@pytest.mark.parametrize(
    ("name", "system", "role", "end", "newlines"),
    [
        (
            "qwen_1_5",
            "You are a helpful assistant.",
            [("<|im_start|>", True), ("{}\n", False)],
            "<|im_end|>\n",
            False,
        ),
        (
            "llava_llama_3",
            HELPFUL,
            [("<|start_header_id|>", True), ("{}", False), ("<|end_header_id|>\n\n", True)],
            "<|eot_id|>",
            True,
        ),
    ],
)
def test_labels_as_released_by_messages(name, system, role, end, newlines, byte_tokenizer):
    """As `preprocess_qwen` and `preprocess_llama3` of LLaVA-VL/LLaVA-NeXT@b46e496 do."""
    (newline,) = byte_tokenizer("\n").input_ids
    for turns, visual_tokens in conversations():
        images = iter(visual_tokens)
        ids, labels = [], []
        for turn in [Turn("system", system), *turns]:
            counts = [next(images) for _ in range(turn.text.count("<image>"))]
            parts = [(part.format(turn.role), trained) for part, trained in role]
            for part, trained in [*parts, (turn.text, turn.role == "assistant"), (end, True)]:
                new = released_ids(part, byte_tokenizer, counts if part == turn.text else [])
                also = newline if newlines and turn.role == "user" else None
                ids += new
                labels += [token if trained or token == also else IGNORE for token in new]
        encoded = get_template(name, "released").encode(turns, byte_tokenizer, visual_tokens, "row")
        assert encoded == Encoded(ids, labels)


@pytest.mark.parametrize("name", [*WRITTEN])
def test_masking_all_trains_on_everything_but_what_is_seen(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    for turns, visual_tokens in conversations():
        encoded = get_template(name, "all").encode(turns, tokenizer, visual_tokens, "row")
        correct = get_template(name).encode(turns, tokenizer, visual_tokens, "row")
        assert encoded.ids == correct.ids
        labelled = zip(encoded.ids, encoded.labels, strict=True)
        silent = [token for token, label in labelled if label == IGNORE]
        assert set(silent) <= {VISUAL, tokenizer.bos_token_id}
        assert silent.count(VISUAL) == sum(visual_tokens)


@pytest.mark.parametrize("masking", ["correct", "released"])
def test_plain_is_images_caption_and_newline(masking, llama_tokenizer):
    template = get_template("plain", masking)
    turns = talk("What is it?\n<image> <image>", "two dogs")
    encoded = template.encode(turns, llama_tokenizer, [2, 1], "row")
    caption = llama_tokenizer("two dogs\n", add_special_tokens=False).input_ids
    assert spell(caption, llama_tokenizer) == " two dogs\n"
    bos = llama_tokenizer.bos_token_id
    assert encoded.ids == [bos, VISUAL, VISUAL, VISUAL, *caption]
    assert encoded.labels == [IGNORE] * 4 + caption
    assert template.prompt(turns[:1], llama_tokenizer, [2, 1], "row") == encoded.ids[:4]
    assert template.stop_string == "\n"


@pytest.mark.parametrize(
    "turns",
    [
        talk("What is it?", "A car"),
        talk("<image>", "A car", "two?", "two"),
    ],
)
def test_plain_takes_one_image_question_and_one_answer(turns, llama_tokenizer):
    visual_tokens = [1] * turns[0].text.count("<image>")
    with pytest.raises(ValueError, match=r"mix.json, row 7: .*one question with an image"):
        get_template("plain").encode(turns, llama_tokenizer, visual_tokens, "mix.json, row 7")


def test_text_only_and_no_bos(byte_tokenizer, llama_tokenizer):
    turns = talk("Hi", "A car")
    text = written(get_template("qwen_1_5"), turns, byte_tokenizer)
    encoded = get_template("qwen_1_5").encode(turns, byte_tokenizer, [], "row")
    assert encoded.ids == byte_tokenizer(text).input_ids
    encoded = get_template("v1").encode(turns, llama_tokenizer, [], "row")
    assert encoded.ids == llama_tokenizer(CURIOUS_USER + " USER: Hi ASSISTANT: A car</s>").input_ids


def test_v1_ends_answers_as_the_tokenizer_does(byte_tokenizer):
    encoded = get_template("v1").encode(talk("Hi", "A car"), byte_tokenizer, [], "row")
    assert trained(encoded, byte_tokenizer) == [" A car<|endoftext|>"]
    no_front = copy.deepcopy(byte_tokenizer)
    no_front.bos_token = "<|endoftext|>"  # GPT-2 names one, and does not put it before a text
    llama_2 = get_template("llava_llama_2").encode(talk("a", "b", "c", "d"), no_front, [], "r")
    assert spell(llama_2.ids, byte_tokenizer).endswith(
        "a [/INST] b <|endoftext|>[INST] c [/INST] d <|endoftext|>"
    )
    no_end = copy.deepcopy(byte_tokenizer)
    no_end.eos_token = None
    with pytest.raises(ValueError, match=r"row: .*no end-of-sequence"):
        get_template("v1").encode(talk("Hi", "A car"), no_end, [], "row")


def test_spans_without_their_spaces_change_nothing(byte_tokenizer):
    trimmed = copy.deepcopy(byte_tokenizer)
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    offsets = trimmed("A car", return_offsets_mapping=True)["offset_mapping"]
    assert (1, 5) not in offsets, "the spaces were to be left out"
    for name in ("v0", "v1", "mistral_instruct", "qwen_1_5"):
        for turns, visual_tokens in conversations():
            for masking in ("correct", "released"):
                template = get_template(name, masking)
                expected = template.encode(turns, byte_tokenizer, visual_tokens, "row")
                assert template.encode(turns, trimmed, visual_tokens, "row") == expected


def test_llama_3_strips_as_its_chat_template_does(byte_tokenizer):
    template = get_template("llava_llama_3")
    bare = template.encode(talk("<image>\nQ", "two"), byte_tokenizer, [2], "row")
    assert template.encode(talk(" <image>\nQ\n", " two "), byte_tokenizer, [2], "row") == bare
    bare = get_template("qwen_1_5").encode(talk("Q", "two"), byte_tokenizer, [], "row")
    assert get_template("qwen_1_5").encode(talk("Q", " two "), byte_tokenizer, [], "row") != bare


def test_a_template_of_another_lm_is_refused(llama_tokenizer):
    with pytest.raises(
        ValueError, match=r"row: '<\|im_start\|>' has to be one token.*makes 1[01] of it"
    ):
        get_template("qwen_1_5").encode(talk("Hi", "A car"), llama_tokenizer, [], "row")


@pytest.mark.parametrize(
    ("name", "text", "mark"),
    [
        ("v1", "what is </s>?", "</s>"),
        ("v1", "<unk>", "<unk>"),
        ("v0", "### Title", "###"),
        ("llava_llama_2", "a [/INST] b", "[/INST]"),
        ("chatml_direct", "a<|im_end|>", "<|im_end|>"),
        ("v1", "<s>old</s>", "</s>"),
    ],
)
def test_marks_in_a_turn_are_refused(name, text, mark, tokenizer_of):
    for turns, number in ((talk(text, "A"), 1), (talk("Q", text), 2)):
        with pytest.raises(ValueError) as error:
            get_template(name).encode(turns, tokenizer_of(name), [], "mix.json, row 3")
        assert f"mix.json, row 3: turn {number} contains {mark!r}" in str(error.value)
    with pytest.raises(ValueError, match=r"mix\.json, row 3: turn 1"):
        get_template(name).prompt(talk(text), tokenizer_of(name), [], "mix.json, row 3")


def test_marks_added_later_and_the_placeholder(llama_tokenizer):
    tokenizer, template = copy.deepcopy(llama_tokenizer), get_template("v1")
    template.encode(talk("<new>", "A"), tokenizer, [], "row")
    tokenizer.add_tokens([AddedToken("<new>", special=True), AddedToken("<image>", special=True)])
    with pytest.raises(ValueError, match="'<new>'"):
        template.encode(talk("<new>", "A"), tokenizer, [], "row")
    assert VISUAL in template.encode(talk("<image>", "A"), tokenizer, [1], "row").ids
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])  # tokens, but not special ones
    with pytest.raises(ValueError, match="im_end"):
        get_template("chatml_direct").encode(talk("<|im_end|>", "A"), tokenizer, [], "row")


def test_images_are_counted(llama_tokenizer):
    for turns, visual_tokens in (
        (talk("<image> and <image>", "A"), [3]),
        (talk("<image>", "<image>"), [3, 3, 3]),
    ):
        with pytest.raises(ValueError, match=rf"row 9: 2 <image>.*{len(visual_tokens)} image"):
            get_template("v1").encode(turns, llama_tokenizer, visual_tokens, "row 9")
    encoded = get_template("v1").encode(talk("Q", "A <image> red"), llama_tokenizer, [2], "row")
    assert encoded.ids.count(VISUAL) == 2 and VISUAL not in encoded.labels


@pytest.mark.parametrize(
    "turns",
    [[], talk("Q"), talk("Q", "A", "Q"), [Turn("assistant", "A")], [Turn("user", "Q")] * 2],
)
def test_roles_take_turns(turns, llama_tokenizer):
    with pytest.raises(ValueError, match="row 4: turns are"):
        get_template("v1").encode(turns, llama_tokenizer, [], "row 4")
    with pytest.raises(ValueError, match="row 4: turns are"):
        get_template("v1").prompt([*turns, *talk("Q", "A")], llama_tokenizer, [], "row 4")


def test_truncation_cuts_the_end(llama_tokenizer):
    turns, template = talk("Q <image>", "A red car and two dogs"), get_template("v1")
    whole = template.encode(turns, llama_tokenizer, [5], "row 2")
    prompt = template.prompt(turns[:1], llama_tokenizer, [5], "row 2")
    for length in (len(whole.ids) + 1, len(whole.ids)):
        assert template.encode(turns, llama_tokenizer, [5], "row 2", length) == whole
    length = len(prompt) + 1
    cut = template.encode(turns, llama_tokenizer, [5], "row 2", length)
    assert cut == Encoded(whole.ids[:length], whole.labels[:length])
    with pytest.raises(ValueError, match=rf"row 2: no token.*{len(prompt)} of {len(whole.ids)}"):
        template.encode(turns, llama_tokenizer, [5], "row 2", len(prompt))
    end = whole.ids.index(VISUAL) + 5
    with pytest.raises(ValueError, match=rf"row 2: .*token {end},.*max_length is {end - 1}"):
        template.encode(turns, llama_tokenizer, [5], "row 2", end - 1)
    with pytest.raises(ValueError, match="row 2: no token"):
        template.encode(turns, llama_tokenizer, [5], "row 2", end)


def test_a_slow_tokenizer_is_refused(llama_tokenizer, monkeypatch):
    monkeypatch.setattr(type(llama_tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="load a fast tokenizer"):
        get_template("v1").encode(talk("Q", "A"), llama_tokenizer, [], "row")


def test_stops(llama_tokenizer, byte_tokenizer):
    def ids(*tokens: str) -> set[int]:
        return set(byte_tokenizer.convert_tokens_to_ids(list(tokens)))

    assert get_template("v1").stop_ids(llama_tokenizer) == {llama_tokenizer.eos_token_id}
    assert get_template("qwen_1_5").stop_ids(byte_tokenizer) == ids("<|im_end|>", "<|endoftext|>")
    assert get_template("llava_llama_3").stop_ids(byte_tokenizer) == ids(
        "<|eot_id|>", "<|endoftext|>"
    )
    assert {name: t.stop_string for name, t in TEMPLATES.items() if t.stop_string} == {
        "plain": "\n",
        "terse": ";",
        "v0": "###",
        "llava_v0": "###",
    }


def test_names():
    assert list(TEMPLATES) == ["plain", *WRITTEN, "tokenizer"]
    assert all(template.name == name for name, template in TEMPLATES.items())
    with pytest.raises(ValueError, match=r"'llava_lama_2'; nearest: llava_llama_2"):
        get_template("llava_lama_2")
    with pytest.raises(ValueError, match="no masking 'none'; choose correct, released, all"):
        get_template("v1", "none")
    with pytest.raises(ValueError, match="never released"):
        get_template("tokenizer", "released")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip()"
    " + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}A: "
    "{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
HEADERLESS = CHATML.partition("{% if add")[0]  # add_generation_prompt does nothing
THINKING = (  # Qwen3's writes its last answer so
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = "{{ messages[-1].content }}{% if not add_generation_prompt %}<|im_end|>{% endif %}"


def with_chat_template(tokenizer, chat_template: str):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    return tokenizer


def test_the_tokenizers_own_template(byte_tokenizer, llama_tokenizer):
    turns = talk("<image>\nQ", " A ", "Q2", "two\n")
    template = get_template("tokenizer")

    tokenizer = with_chat_template(byte_tokenizer, CHATML)
    encoded = template.encode(turns, tokenizer, [2], "row")
    assert trained(encoded, tokenizer) == [" A <|im_end|>", "two\n<|im_end|>"]
    bare = get_template("qwen_1_5").encode(turns, tokenizer, [2], "row")
    system = len(
        tokenizer("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n").input_ids
    )
    assert (encoded.ids, encoded.labels) == (bare.ids[system:], bare.labels[system:])
    prompt = template.prompt(turns[:3], tokenizer, [2], "row")
    assert prompt == encoded.ids[: len(prompt)] and encoded.labels[len(prompt)] != IGNORE
    assert template.stop_ids(tokenizer) == get_template("qwen_1_5").stop_ids(tokenizer)

    tokenizer = with_chat_template(llama_tokenizer, LLAMA_2)
    encoded = template.encode(turns, tokenizer, [2], "row")
    assert trained(encoded, tokenizer) == [" A </s>", " two </s>"]
    assert encoded.ids[0] == tokenizer.bos_token_id != encoded.ids[1]
    assert template.stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_an_answer_whose_first_token_holds_the_headers_space(llama_tokenizer):
    tokenizer = with_chat_template(llama_tokenizer, VICUNA)
    encoded = get_template("tokenizer").encode(talk("Q", "two", "Q", "A"), tokenizer, [], "row")
    assert trained(encoded, tokenizer) == [" two\n", " A\n"]


@pytest.mark.parametrize(
    ("chat_template", "turns", "message"),
    [
        (FORGETFUL, talk("Q", "A", "Q", "A"), "row 5: .*changes the text before turn 2"),
        ("{{ raise_exception('no way') }}", talk("Q", "A"), "row 5: .*refuses the turns: no way"),
        ("x{{ messages | length }}", talk("Q", "A"), "row 5: .*changes|row 5: .*as they are"),
        ("x{% for m in messages %}y{% endfor %}", talk("Q", "A"), "row 5: .*as they are"),
        (HEADERLESS, talk("Q", "A"), "row 5: .*writes '<.im_start.>assistant.n' between"),
        (THINKING, talk("Q", "A"), "row 5: .*writes '<think></think>' between"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, talk("Q", "A"), "row 5: .*writes today's date"),
        (None, talk("Q", "A"), "row 5: the tokenizer has no chat template; choose one of plain"),
    ],
)
def test_chat_templates_without_pieces_are_refused(chat_template, turns, message, byte_tokenizer):
    tokenizer = with_chat_template(byte_tokenizer, chat_template)
    with pytest.raises(ValueError, match=message):
        get_template("tokenizer").encode(turns, tokenizer, [], "row 5")


def test_place_image():
    rest = talk("", "A", "and <image>?", "A")[1:]
    middle = [Turn("user", "Is <image> red?"), *rest]
    assert place_image(middle, "keep") == tuple(middle)
    assert place_image(middle, "first") == (Turn("user", "<image>\nIs  red?"), *rest)
    assert place_image(talk("Q\n<image>", "A"), "first")[0].text == "<image>\nQ"
    assert place_image(talk("<image>\nQ", "A"), "first")[0].text == "<image>\nQ"
    assert place_image(talk("<image>", "A"), "first")[0].text == "<image>"
    for text in ("<image> or <image>?", "Q"):
        assert place_image(talk(text, "A"), "first")[0].text == text
    rng = random.Random(0)
    placed = [
        place_image(talk("<image>\nQ", "A"), "first_or_last", rng)[0].text for _ in range(400)
    ]
    assert set(placed) == {"<image>\nQ", "Q\n<image>"}
    assert 150 < placed.count("Q\n<image>") < 250
    rng = random.Random(0)
    again = [place_image(talk("<image>\nQ", "A"), "first_or_last", rng)[0].text for _ in range(400)]
    assert placed == again
    with pytest.raises(ValueError, match="random number generator"):
        place_image(middle, "first_or_last")
    assert place_image(talk("<image>\nQ", "A"), "last")[0].text == "Q\n<image>"
    with pytest.raises(ValueError, match="no position 'middle'"):
        place_image(middle, "middle")
