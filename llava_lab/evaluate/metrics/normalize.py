"""11. Normalize: a generated or annotated answer -> the form in which it is compared.

Three rules, one per family of benchmarks. Odd behaviour of the released scorers is kept, because
published numbers contain it; each such place names its source:
[M4C] haotian-liu/LLaVA@c121f04 llava/eval/m4c_evaluator.py, which came from facebookresearch/mmf;
[POPE] haotian-liu/LLaVA@c121f04 llava/eval/eval_pope.py.
"""

import re

# [M4C] lists ',' and '?' as well, but both are gone before punctuation is looked at.
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'

# [M4C] A period before a digit stays. Quirk 1: the pattern also means to spare a period after a
# digit, but writes a lookahead for the text "<=" where a lookbehind was meant, so "2." loses its
# period.
PERIOD = re.compile(r"\.(?!\d)")
# [M4C] Quirk 2: a regular-expression flag is handed over where the number of replacements goes,
# and that flag's value is 32: the 33rd period of an answer stays.
MAX_PERIODS = 32

WORDS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
ARTICLES = frozenset({"a", "an", "the"})

# Right spellings; what is restored are the forms that lack one of their apostrophes.
CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
'ow's'at
"""


def misspelt(contraction: str) -> list[str]:
    """Every way to leave out exactly one apostrophe: he'd've -> hed've, he'dve."""
    marks = [at for at, character in enumerate(contraction) if character == "'"]
    return [contraction[:at] + contraction[at + 1 :] for at in marks]


CONTRACTIONS = {wrong: right for right in CONTRACTED.split() for wrong in misspelt(right)}
# [M4C] Quirk 3: this one entry of the table is the wrong way round.
CONTRACTIONS["somebody'd"] = "somebodyd"


def vqa_answer(text: str) -> str:
    """Apply the VQA evaluation server's processing of answers.

    "The two dogs." -> "2 dogs", "dont know" -> "don't know", "black/white" -> "black white".
    Articles are removed as there: "A" becomes the empty text, which an empty prediction equals.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    # Trimmed before the marks are looked at: one at the very end has no space beside it.
    text = text.replace("\n", " ").replace("\t", " ").strip()
    processed = text
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        processed = processed.replace(sign, "" if beside_space else " ")
    processed = PERIOD.sub("", processed, count=MAX_PERIODS)
    words = [WORDS.get(word, word) for word in processed.split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def exact_answer(text: str) -> str:
    """Apply GQA's rule: lower case, no space around, no period at the end."""
    return text.strip().rstrip(".").strip().lower()


def says_yes(text: str) -> bool:
    """Read a yes or no as POPE does: yes, unless a word before the first period says no.

    [POPE] Only "No", "not" and "no" count, only single spaces part words, and whatever is not a
    no is a yes: "NO", "no!" and an empty text are all read as yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)
