"""Tokenizer: the world's texts -> a byte-level BPE tokenizer that behaves like Llama's."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.templates import CHAT_FORMATS
from llava_lab.tiny_world.generate import ALBUMS, ALIGN_15, INSTRUCT_10, INSTRUCT_15

UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
# Markers that some templates need as single tokens, <|im_start|> and <|im_end|> among them.
CHAT_TOKENS = tuple(
    dict.fromkeys(marker for style in CHAT_FORMATS.values() for marker in style.special)
)
# Text that the templates put around turns: it is in every sample, but not in the rows.
PROMPTS = tuple(
    dict.fromkeys(
        part.format(text="", bos="")
        for style in CHAT_FORMATS.values()
        for part in (style.system, style.first_question, style.question, style.header)
        if part
    )
)
PROMPT_REPEATS = 500
# Units that no token crosses: a word or compound ("top-left"), a digit, or punctuation, each with
# the space before it; line breaks.
WORDS = r" ?\p{L}+(?:-\p{L}+)*| ?\d| ?[^\s\p{L}\d]+|\s+"


def world_texts(root: Path) -> Iterator[str]:
    """Yield every conversation that a tiny world trains on; evaluation questions stay unseen.

    Each is written twice: in the template v1, where words follow spaces as in training, and as
    plain lines.
    """
    style = CHAT_FORMATS["v1"]
    for name in (ALIGN_15, INSTRUCT_10, INSTRUCT_15, ALBUMS):
        for row in json.loads((root / name).read_text(encoding="utf-8")):
            messages = [
                turn["value"].replace(IMAGE_PLACEHOLDER, "").strip()
                for turn in row["conversations"]
            ]
            pairs = zip(messages[::2], messages[1::2], strict=True)
            yield "".join(
                style.question.format(text=question) + style.header + f" {answer}"
                for question, answer in pairs
            )
            yield "\n".join(messages)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train byte-level BPE: any text round-trips, and the same texts give the same ids.

    The templates' prompts are added to the texts.

    Args:
        texts: Texts to train on, usually `world_texts`.
        vocab_size: Largest vocabulary, at least the bytes and the special tokens.
    """
    specials = [UNKNOWN, BEGIN, END, PAD, *CHAT_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(specials) + len(alphabet):
        least = len(specials) + len(alphabet)
        raise ValueError(f"vocab_size must be at least {least}, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, PROMPTS * PROMPT_REPEATS), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS),
        clean_up_tokenization_spaces=False,
    )
