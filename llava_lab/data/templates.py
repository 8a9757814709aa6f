"""2. Templates: the conversation formats of the LLaVA family, as data.

Strings and rules as in `llava/conversation.py` and `llava/train/train.py` of haotian-liu/LLaVA
c121f04 and LLaVA-VL/LLaVA-NeXT df17966; what the released models were trained on, as in the code of
their time: haotian-liu/LLaVA 8959d5c (v0) and LLaVA-VL/LLaVA-NeXT b46e496 (Qwen1.5, Llama-3).
"""

from dataclasses import dataclass
from typing import Literal

TemplatePart = Literal["system", "user", "question", "header", "answer", "after"]


@dataclass(frozen=True)
class ChatFormat:
    r"""Strings that a conversation is written with, in the order of the first five attributes.

    In a pattern, `{text}` is the turn's text, `{eos}` the tokenizer's end-of-sequence token (Vicuna
    and Mistral: `</s>`), `{bos}` its beginning-of-sequence token if it puts one before a text.

    Attributes:
        system: Text that opens a conversation.
        question: Pattern of a user's turn; up to the text it is the part `user`.
        header: Text that opens an answer; a prompt for generation ends with it.
        answer: Pattern of the text that is trained on: the answer, its end, and the space before
            it, which is part of its first token.
        after: Text after an answer that is not trained on.
        first_question: Pattern of the first user's turn, if it differs.
        strip: Whether white space around a turn's text is removed.
        images_only: Whether a user's turn is reduced to its images, and there is only one.
        bos: Whether the tokenizer's beginning-of-sequence token, if it puts one, opens the text.
        special: Markers that must be single tokens of the tokenizer.
        reserved: Other markers, which are ordinary text to the tokenizer.
        stop_string: Text that ends an answer, if no single token does.
        released: The parts that the released models were trained on.
        released_marks: Texts of the format that they were trained on as well, in every part.
        released_tokens: Tokens that they were trained on as well, in every part.
    """

    system: str = ""
    question: str = "{text}"
    header: str = ""
    answer: str = "{text}"
    after: str = ""
    first_question: str | None = None
    strip: bool = False
    images_only: bool = False
    bos: bool = True
    special: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    stop_string: str | None = None
    released: frozenset[TemplatePart] = frozenset({"answer"})
    released_marks: tuple[str, ...] = ()
    released_tokens: tuple[str, ...] = ()

    def as_correct(self, masking: str) -> bool:
        """Whether another masking trains on the very tokens that `correct` trains on.

        Args:
            masking: As in `llava_lab.data.chat.Template`.
        """
        if masking == "all":
            return self.images_only and not self.system + self.header + self.after
        marks = (*self.released_marks, *self.released_tokens)
        return self.released == frozenset({"answer"}) and not marks

    def check_asks(self) -> None:
        """Refuse to ask in a format that shows of a question its images alone.

        Raises:
            ValueError: Names the options.
        """
        if self.images_only:
            raise ValueError(
                "the template shows the images of a question and not what is asked: take one that "
                "does, such as v1 (--template; of an experiment data.template, or where it is null "
                "model.llm.template)"
            )


_CHAT = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
_VISUAL = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_INSTRUCT = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA_3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# One format for both names: the example round that the released v0 puts into its prompts was never
# in its training text. That text also had other markers ("### Human: Q\n### Assistant: A\n",
# after a blank line) than the prompts do; here both are as in the prompts. Released masking trains
# on the role names too.
_V0 = ChatFormat(
    system=_CHAT.format("human") + "###",
    question="Human: {text}###",
    header="Assistant:",
    answer=" {text}###",
    reserved=("###",),
    stop_string="###",
    released=frozenset({"user", "header", "answer"}),
)
_V1 = ChatFormat(
    system=_CHAT.format("user") + " ",
    question="USER: {text} ",
    header="ASSISTANT:",
    answer=" {text}{eos}",
)

CHAT_FORMATS: dict[str, ChatFormat] = {
    # As the projectors were trained: on caption and newline, without an end token.
    "plain": ChatFormat(answer="{text}\n", images_only=True, stop_string="\n"),
    # Questions in key words, each with its answer right behind it: the tiny LM's first texts.
    "terse": ChatFormat(
        first_question="{text}", question=" {text}", answer=" {text};", stop_string=";"
    ),
    "v0": _V0,
    "llava_v0": _V0,
    "v1": _V1,
    "llava_v1": ChatFormat(_CHAT.format("human") + " ", _V1.question, _V1.header, _V1.answer),
    "llava_llama_2": ChatFormat(
        first_question=f"[INST] <<SYS>>\n{_VISUAL}\n<</SYS>>\n\n{{text}} [/INST]",
        question="{bos}[INST] {text} [/INST]",
        answer=" {text} {eos}",
        reserved=_INSTRUCT,
    ),
    "mistral_instruct": ChatFormat(
        question="[INST] {text} [/INST]",
        answer=" {text} {eos}",
        reserved=_INSTRUCT,
    ),
    "chatml_direct": ChatFormat(
        system="<|im_start|>system\nAnswer the questions.<|im_end|>",
        question="<|im_start|>user\n{text}<|im_end|>",
        header="<|im_start|>assistant\n",
        answer="{text}<|im_end|>",
        special=_CHATML,
    ),
    "qwen_1_5": ChatFormat(
        system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        question="<|im_start|>user\n{text}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        answer="{text}<|im_end|>",
        after="\n",
        special=_CHATML,
        released=frozenset({"answer", "after"}),
        released_marks=("<|im_start|>", "<|im_end|>\n"),
    ),
    # That code wrote the empty line behind a header as two tokens, as no prompt does; here it is
    # the one that the vocabulary has.
    "llava_llama_3": ChatFormat(
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{_VISUAL}<|eot_id|>",
        question="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{text}<|eot_id|>",
        strip=True,
        special=_LLAMA_3,
        released_marks=("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
        released_tokens=("\n",),
    ),
}
