"""2. Chat: turns -> token ids and labels, placeholders expanded to their visual tokens.

A template writes a conversation as pieces of text, each with a flag: trained on or not. Labels come
from these flags; they are never recovered by searching the finished text.
"""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import jinja2
from transformers import PreTrainedTokenizerBase

from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.sample import Turn
from llava_lab.data.templates import CHAT_FORMATS, ChatFormat
from llava_lab.data.tokens import (
    IGNORE,
    Encoded,
    Piece,
    adds_bos,
    special_tokens,
    token_id,
    tokenize,
    truncate,
)

Masking = Literal["correct", "released", "all"]


@dataclass(frozen=True, kw_only=True)
class Template(ChatFormat):
    """Chat template: turns -> token ids, and the labels to train on.

    A turn that holds a marker of the template or a special token of the tokenizer is refused,
    because it would be read as a marker and not as text.

    Attributes:
        name: Name in YAML.
        masking: "correct" trains on answers and their ends, "released" on what the released models
            were trained on, with its bugs, "all" on everything but visual tokens.
    """

    name: str
    masking: Masking = "correct"

    def encode(
        self,
        turns: Sequence[Turn],
        tokenizer: PreTrainedTokenizerBase,
        visual_tokens: Sequence[int],
        source: str,
        max_length: int | None = None,
    ) -> Encoded:
        """Build the ids and labels of a whole conversation.

        Args:
            turns: User and assistant in turn; the assistant has the last word.
            tokenizer: The LM's tokenizer.
            visual_tokens: Number of visual tokens of each image, in the order of the placeholders.
            source: File and row of the sample, for messages.
            max_length: Most tokens to keep. The end is truncated, as in the released code, but a
                sample that would lose visual tokens or its last label is refused.
        """
        try:
            whole = self._build(turns, "assistant", tokenizer, visual_tokens)
            kept = whole if max_length is None else truncate(whole, max_length)
            if all(label == IGNORE for label in kept.labels):
                raise ValueError(
                    f"no token to train on in the first {len(kept.ids)} of {len(whole.ids)} tokens"
                    f" (max_length {max_length}); remove the row or raise max_length"
                )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return kept

    def prompt(
        self,
        turns: Sequence[Turn],
        tokenizer: PreTrainedTokenizerBase,
        visual_tokens: Sequence[int],
        source: str,
    ) -> list[int]:
        """Build the ids of a conversation whose last turn is the user's, up to the open answer.

        The arguments are those of `encode`. The ids are a prefix of those of `encode`, except where
        an answer's first character merges with the header's last token (two newlines, for example).
        """
        try:
            return self._build(turns, "user", tokenizer, visual_tokens).ids
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def check(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse turns in a wrong order, and markers in their text, as `encode` does."""
        self._check(turns, "assistant", tokenizer)

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """Write turns as pieces of text; a user's turn ends with the header of the answer."""
        for marker in self.special:
            token_id(marker, tokenizer)
        parts: list[tuple[str, str]] = [("system", self.system)]
        pattern = self.question if self.first_question is None else self.first_question
        for turn in turns:
            text = turn.text.strip() if self.strip else turn.text
            if turn.role == "user":
                if self.images_only:
                    text = IMAGE_PLACEHOLDER * text.count(IMAGE_PLACEHOLDER)
                before, after = _fill(pattern, tokenizer)
                parts += [("user", before), ("question", text + after), ("header", self.header)]
                pattern = self.question
            else:
                before, after = _fill(self.answer, tokenizer)
                parts += [("answer", before + text + after), ("after", self.after)]
        if self.masking != "released":
            return [Piece(text, part == "answer") for part, text in parts]
        marks = "|".join(map(re.escape, self.released_marks)) or "(?!)"
        return [
            Piece(each, part in self.released or each in self.released_marks)
            for part, text in parts
            for each in re.split(f"({marks})", text)
        ]

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Return the tokens that end an answer."""
        ends = [marker for marker in self.special if self.answer.endswith(marker)]
        return {token_id(end, tokenizer) for end in ends} | ({tokenizer.eos_token_id} - {None})

    def _build(
        self,
        turns: Sequence[Turn],
        last: Literal["user", "assistant"],
        tokenizer: PreTrainedTokenizerBase,
        visual_tokens: Sequence[int],
    ) -> Encoded:
        self._check(turns, last, tokenizer)
        pieces = self.pieces(turns, tokenizer)
        if self.masking == "all":
            pieces = [Piece(piece.text, True) for piece in pieces]
        released = self.released_tokens if self.masking == "released" else ()
        always = {token_id(token, tokenizer) for token in released}
        bos = self.bos and adds_bos(tokenizer)
        return tokenize(pieces, tokenizer, visual_tokens, bos, always)

    def _check(self, turns: Sequence[Turn], last: str, tokenizer: PreTrainedTokenizerBase) -> None:
        roles = [turn.role for turn in turns]
        expected = ["user", "assistant"] * len(turns)
        if not roles or roles[-1] != last or roles != expected[: len(roles)]:
            raise ValueError(f"turns are {roles}; user and assistant take turns, {last} is last")
        images = turns[0].text.count(IMAGE_PLACEHOLDER)
        if self.images_only and (len(turns) > 2 or not images):
            raise ValueError(
                f"template {self.name!r} takes one question with an image and one answer, not "
                f"{len(turns)} turns with {images} {IMAGE_PLACEHOLDER} in the first"
            )
        markers = {*special_tokens(tokenizer), *self.special, *self.reserved}
        for number, turn in enumerate(turns, 1):
            if found := [marker for marker in markers if marker in turn.text]:
                raise ValueError(
                    f"turn {number} contains {max(found, key=len)!r}, a mark for template "
                    f"{self.name!r} or its tokenizer and not text; rewrite or remove the row"
                )


@dataclass(frozen=True, kw_only=True)
class TokenizerTemplate(Template):
    """The chat template that comes with the LM's own tokenizer.

    A turn's text is what the rendered conversation gains when the turn is added. Chat templates are
    refused that change earlier turns then, that put something before an answer and not behind its
    prompt, or that ask for the date, which is another one every day. They write the
    beginning-of-sequence token themselves.
    """

    name: str = "tokenizer"
    bos: bool = False

    def pieces(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """Write turns as pieces of text; a user's turn ends with the header of the answer."""
        pieces, written = [], ""
        for number, turn in enumerate(turns, 1):
            text = _render(turns[:number], tokenizer)
            if not text.startswith(written):
                raise ValueError(
                    f"the tokenizer's chat template changes the text before turn {number}, so "
                    f"its answers cannot be found in it; choose one of {', '.join(CHAT_FORMATS)}"
                )
            grown, written = text[len(written) :], text
            end = _end_of_answer(grown, turn, tokenizer) if turn.role == "assistant" else 0
            pieces += [Piece(grown[:end], True), Piece(grown[end:], False)]
        return pieces

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Return the tokens that end an answer."""
        pieces = self.pieces([Turn("user", "?"), Turn("assistant", "!")], tokenizer)
        answer = "".join(piece.text for piece in pieces if piece.target)
        ends = [marker for marker in special_tokens(tokenizer) if answer.endswith(marker)]
        return {token_id(end, tokenizer) for end in ends} | ({tokenizer.eos_token_id} - {None})


TEMPLATES: dict[str, Template] = {
    **{name: Template(name=name, **vars(style)) for name, style in CHAT_FORMATS.items()},
    "tokenizer": TokenizerTemplate(),
}


def get_template(name: str, masking: Masking = "correct") -> Template:
    """Find a template by its name.

    Args:
        name: plain, terse, v0, llava_v0, v1, llava_v1, llava_llama_2, mistral_instruct,
            chatml_direct, qwen_1_5, llava_llama_3, or tokenizer for the LM's own chat template.
        masking: "correct" trains on answers and their ends; "released" also on role names (v0), or
            the markers of all turns (qwen_1_5, llava_llama_3), as the released models were trained;
            "all" on everything.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=3, cutoff=0.4)
        raise ValueError(f"no template {name!r}; nearest: {', '.join(near or TEMPLATES)}")
    if masking not in get_args(Masking):
        raise ValueError(f"no masking {masking!r}; choose {', '.join(get_args(Masking))}")
    if name == "tokenizer" and masking == "released":
        raise ValueError("template 'tokenizer' was never released; choose masking correct")
    return replace(TEMPLATES[name], masking=masking)


def place_image(
    turns: Sequence[Turn],
    position: Literal["keep", "first", "last", "first_or_last"],
    rng: random.Random | None = None,
) -> tuple[Turn, ...]:
    r"""Move the image of the first user turn, if it is the turn's only one.

    Args:
        turns: User and assistant in turn.
        position: "keep" leaves it; "first" writes "<image>\nQ", as `preprocess_multimodal` does;
            "last" writes "Q\n<image>"; "first_or_last" either at random (LLaVA paper, section 4).
        rng: Decides for "first_or_last".
    """
    if position not in ("keep", "first", "last", "first_or_last"):
        raise ValueError(f"no position {position!r}; choose keep, first, last or first_or_last")
    first, *others = turns
    if position == "keep" or first.text.count(IMAGE_PLACEHOLDER) != 1:
        return tuple(turns)
    lines = [IMAGE_PLACEHOLDER, first.text.replace(IMAGE_PLACEHOLDER, "").strip()]
    if position == "first_or_last":
        if rng is None:
            raise ValueError("first_or_last needs a random number generator")
        position = "last" if rng.random() < 0.5 else "first"
    if position == "last":
        lines.reverse()
    return (replace(first, text="\n".join(lines).strip()), *others)


def _fill(pattern: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Fill a pattern with the tokenizer's tokens; return its parts before and after `{text}`."""
    if "{eos}" in pattern and tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no end-of-sequence token to end an answer with")
    if "{bos}" in pattern:
        pattern = pattern.replace("{bos}", tokenizer.bos_token if adds_bos(tokenizer) else "")
    pattern = pattern.replace("{eos}", tokenizer.eos_token or "")
    before, _, after = pattern.partition("{text}")
    return before, after


def _render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer has no chat template; choose one of {', '.join(CHAT_FORMATS)}"
        )
    if "strftime_now" in tokenizer.get_chat_template():
        raise ValueError(
            "the tokenizer's chat template writes today's date (strftime_now), so that a row reads "
            "otherwise on another day; write a fixed date into it, or choose one of "
            f"{', '.join(CHAT_FORMATS)}"
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        asked = {"tokenize": False, "add_generation_prompt": turns[-1].role == "user"}
        return str(tokenizer.apply_chat_template(messages, **asked))
    except jinja2.TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the turns: {error}") from error


def _end_of_answer(grown: str, turn: Turn, tokenizer: PreTrainedTokenizerBase) -> int:
    """Index where an answer ends: after the first special token behind its text, or at the end."""
    text = turn.text.strip()  # many chat templates strip
    if text not in grown:
        raise ValueError("the tokenizer's chat template does not write answers as they are")
    if (before := grown[: grown.index(text)]).strip():  # which would be trained on, and answered
        raise ValueError(
            f"the tokenizer's chat template writes {before!r} between a prompt and its answer; "
            f"choose one of {', '.join(CHAT_FORMATS)}"
        )
    behind = len(before) + len(text)
    marks = [mark for mark in special_tokens(tokenizer) if mark in grown[behind:]]
    return min((grown.index(mark, behind) + len(mark) for mark in marks), default=len(grown))
