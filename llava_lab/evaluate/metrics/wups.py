"""11. WUPS: NExT-QA's open answers -> how near their words are to the right ones in WordNet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_lab.data.questions import Question
from llava_lab.evaluate.metrics.whole import WholeQuestionMetric
from llava_lab.model.weights import locate

EXACT = ("DB", "DC")  # types of questions whose answers are yes or no, and numbers
DATA = "wordnet punkt punkt_tab averaged_perceptron_tagger averaged_perceptron_tagger_eng"


@dataclass(frozen=True)
class Lexicon:
    """What the score knows of words.

    Attributes:
        lemmas: Words of a sentence, each in its basic form.
        tokens: Words of a text.
        similarity: Similarity of Wu and Palmer of two words' first meanings, 0 to 1; 0 for a word
            that WordNet does not have.
    """

    lemmas: Callable[[str], list[str]]
    tokens: Callable[[str], list[str]]
    similarity: Callable[[str, str], float]


class Wups(WholeQuestionMetric):
    """NExT-QA's open questions: `accuracy` is WUPS at a threshold of 0, which tables print.

    doc-doc/NExT-OE@a83f8f5, eval_oe.py and metrics.py, as EvolvingLMMs-Lab/lmms-eval@75571cf has it
    in lmms_eval/tasks/nextqa. Both answers lose inflections and NExT-QA's stopwords. Each word's
    similarity to the nearest one of the other answer is multiplied over words that have one, and
    the smaller of both directions counts; of two right answers, the better. Yes-or-no questions
    (DB) and numbers (DC) have to be equal. A question's category is its type behind the first
    letter: "C/CW".

    Needs nltk, pywsd and nltk's WordNet.
    """

    @cached_property
    def lexicon(self) -> Lexicon:
        """The words' forms and meanings."""
        return _wordnet()

    @cached_property
    def stopwords(self) -> frozenset[str]:
        """Words that do not count."""
        path = Path(locate("asset:nextqa_stopwords.txt"))
        return frozenset(path.read_text(encoding="utf-8").split())

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse to begin, too, without what knows words."""
        _ = self.lexicon
        super().check(questions)

    def rate(self, question: Question, prediction: str) -> float:
        """Score one answer."""
        if not question.answers:
            raise ValueError("has no answer")
        said = self._plain(prediction)
        told = [self._plain(answer) for answer in question.answers]
        if (question.category or "").rpartition("/")[2] in EXACT:
            return float(said in told)
        return max(self._both_ways(said, each) for each in told)

    def _plain(self, sentence: str) -> str:
        words = self.lexicon.lemmas(sentence)
        return " ".join(word for word in words if word not in self.stopwords)

    def _both_ways(self, said: str, told: str) -> float:
        one, other = self.lexicon.tokens(said), self.lexicon.tokens(told)
        return min(self._one_way(one, other), self._one_way(other, one))

    def _one_way(self, words: Sequence[str], others: Sequence[str]) -> float:
        nearest = [max((self._near(word, each) for each in others), default=0.0) for word in words]
        product, found = 1.0, False
        for similarity in nearest:
            if similarity:
                product, found = product * similarity, True
        return product if found else 0.0

    def _near(self, word: str, other: str) -> float:
        return 1.0 if word == other else self.lexicon.similarity(word, other)


def _wordnet() -> Lexicon:
    """WordNet, by the libraries of the published script."""
    try:
        from nltk.corpus import wordnet  # pyrefly: ignore[missing-import]
        from nltk.tokenize import word_tokenize  # pyrefly: ignore[missing-import]
        from pywsd.utils import lemmatize_sentence  # pyrefly: ignore[missing-import]

        lemmatize_sentence("two dogs ran")
        word_tokenize("two dogs")
        wordnet.synsets("dog")
    except (ImportError, LookupError):
        raise ValueError(
            "WUPS needs nltk, pywsd and nltk's data: pip install nltk pywsd, then "
            f"python -m nltk.downloader {DATA}"
        ) from None

    def similarity(one: str, other: str) -> float:
        meanings: list[Any] = [wordnet.synsets(word) for word in (one, other)]
        if not all(meanings):
            return 0.0
        return meanings[0][0].wup_similarity(meanings[1][0]) or 0.0

    return Lexicon(lemmatize_sentence, word_tokenize, similarity)
