"""2. Tokens: pieces of text, each trained on or not -> token ids and labels.

The text between two images is tokenized once and as a whole, as in the released code, so that a
model trained elsewhere sees the ids that it knows. A token belongs to the piece where its first
character other than a space is, since " A" is one token; its label follows from that piece. Nothing
is tokenized twice or searched for.
"""

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llava_lab.data.fields import IMAGE_PLACEHOLDER

VISUAL = -200
IGNORE = -100


class Piece(NamedTuple):
    """Part of a conversation's text, and whether it is trained on."""

    text: str
    target: bool


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one conversation.

    Attributes:
        ids: Token ids, with `VISUAL` for each visual token.
        labels: The token's id if it is trained on, else `IGNORE`; not shifted.
    """

    ids: list[int]
    labels: list[int]


def tokenize(
    pieces: Sequence[Piece],
    tokenizer: PreTrainedTokenizerBase,
    visual_tokens: Sequence[int],
    bos: bool,
    always: Set[int] = frozenset(),
) -> Encoded:
    """Turn pieces into ids and labels.

    Args:
        pieces: The conversation, in order.
        tokenizer: The LM's tokenizer.
        visual_tokens: Number of visual tokens of each image, in the order of the placeholders.
        bos: Whether to open with the beginning-of-sequence token.
        always: Token ids that are trained on in every piece.
    """
    text = "".join(piece.text for piece in pieces)
    targets = [piece.target for piece in pieces for _ in piece.text]
    chunks = text.split(IMAGE_PLACEHOLDER)
    if len(chunks) - 1 != len(visual_tokens):
        raise ValueError(
            f"{len(chunks) - 1} {IMAGE_PLACEHOLDER} in the text, but {len(visual_tokens)} image(s)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not give the places of its tokens in the text, which "
            "labels need; load a fast tokenizer"
        )
    tokenized = tokenizer(
        chunks, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    encoded = Encoded([tokenizer.bos_token_id], [IGNORE]) if bos else Encoded([], [])
    place = 0
    for number, chunk in enumerate(chunks):
        if number:
            encoded.ids.extend([VISUAL] * visual_tokens[number - 1])
            encoded.labels.extend([IGNORE] * visual_tokens[number - 1])
        end = 0
        for token, (start, stop) in zip(
            tokenized["input_ids"][number], tokenized["offset_mapping"][number], strict=True
        ):
            # Byte-level tokenizers may exclude a token's spaces from its span; it takes the gap.
            begin, end = min(start, end), stop
            spaces = len(chunk[begin:end]) - len(chunk[begin:end].lstrip(" "))
            begin += spaces if begin + spaces < end else 0
            target = targets[place + begin] or token in always
            encoded.ids.append(token)
            encoded.labels.append(token if target else IGNORE)
        place += len(chunk) + len(IMAGE_PLACEHOLDER)
    return encoded


def truncate(encoded: Encoded, length: int) -> Encoded:
    """Truncate the end, as the released code does, but never visual tokens."""
    visual = [place for place, token in enumerate(encoded.ids, 1) if token == VISUAL]
    if visual and visual[-1] > length:
        raise ValueError(
            f"the visual tokens reach to token {visual[-1]}, but max_length is {length}; raise it "
            "or choose views with fewer visual tokens"
        )
    return Encoded(encoded.ids[:length], encoded.labels[:length])


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before a text."""
    return tokenizer("a").input_ids[0] == tokenizer.bos_token_id


def token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of a string that must be a single token."""
    ids = tokenizer(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(
            f"{token!r} has to be one token and the tokenizer makes {len(ids)} of it; choose a "
            "template that fits the LM, such as tokenizer"
        )
    return ids[0]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the tokenizer's special tokens, without the image placeholder."""
    return _special_tokens(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> frozenset[str]:
    # Used for every turn, and slow to collect; `size` changes when a token is added.
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added.union(tokenizer.all_special_tokens) - {IMAGE_PLACEHOLDER})
