"""10. Parts: keys such as `encoder.blocks.20-23` -> the weights of a model that they choose.

A key is a part of the model - any of its children by name, or `loss` - and words that stand below
it. The words are those of a weight's name in their order; words between them may be left out, but
a number, or a range of numbers, directly follows the word before it. A key chooses a weight and
all that is below: `llm.layers.0-3` are four whole layers, `llm.self_attn` the attention of all.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import nn

from llava_lab.core.numbers import at_least

LOSS = "loss"
ADAPTER = ".lora_"  # in the names of the weights of adapters
RANGE = re.compile(r"(\d+)-(\d+)")
MOST_NEAR = 3


class PartKeys:
    """Keys, and which of them decides about a weight: of those that choose it, the longest.

    Args:
        keys: The keys.
        place: Where they stand, for messages: "lr".

    Raises:
        ValueError: If a key is not made of words with dots between them.
    """

    def __init__(self, keys: Iterable[str], place: str):
        self.place = place
        self.words = {key: key.split(".") for key in keys}
        for key, words in self.words.items():
            ranges = [found for word in words if (found := RANGE.fullmatch(word))]
            if not all(words) or any(int(found[1]) > int(found[2]) for found in ranges):
                raise ValueError(
                    f"{place}: {key!r} is no key; keys are a part and words below it, such as llm "
                    "or encoder.blocks.20-23"
                )

    def of(self, *names: str) -> str | None:
        """The key that decides about a weight, or None.

        Args:
            names: Its names, from the part on; a tied weight has several.

        Raises:
            ValueError: If two keys of as many words choose it.
        """
        split = [name.split(".") for name in names]
        found = [key for key, words in self.words.items() if any(chooses(words, n) for n in split)]
        found.sort(key=lambda key: -len(self.words[key]))
        if len(found) > 1 and len(self.words[found[0]]) == len(self.words[found[1]]):
            raise ValueError(
                f"{self.place}: {found[0]!r} and {found[1]!r} both choose {names[0]}, with as many "
                "words; add a word to the one that is to decide"
            )
        return found[0] if found else None

    def check(self, names: Sequence[str], parts: Sequence[str], idle: Collection[str] = ()) -> None:
        """Refuse keys that choose nothing.

        Args:
            names: Names of all weights of the model.
            parts: Its parts.
            idle: Keys that may choose a part without weights: those that freeze it.

        Raises:
            ValueError: Names the key, and what is near.
        """
        split = [name.split(".") for name in names]
        for key, words in self.words.items():
            if any(chooses(words, name) for name in split):
                continue
            if words[0] not in parts:
                near = difflib.get_close_matches(words[0], parts, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{self.place}: unknown part {words[0]!r}. Parts are {', '.join(parts)}.{hint}"
                )
            below = [name for name in split if name[0] == words[0]]
            if not below and key in idle:
                continue
            if not below:
                raise ValueError(
                    f"{self.place}: the model has no {words[0]} to train; give it one, or leave "
                    f"{words[0]} out"
                )
            known = {".".join(name[:end]): None for name in below for end in range(2, len(name))}
            near = difflib.get_close_matches(key, known, MOST_NEAR, 0.4) or list(known)[:MOST_NEAR]
            raise ValueError(
                f"{self.place}: {key!r} chooses no weight of the model; near are {', '.join(near)}"
            )


class Selection:
    """The weights of a model that a stage trains, and the key that decides the rate of each.

    Args:
        lr: Peak learning rates by key; null freezes.
        frozen: Keys of weights that stay frozen whatever their rate is.
        adapted: Keys of weights beside which adapters train in their place.
        scale: Factor of all rates.

    Raises:
        ValueError: If a key is none, or nothing is left to train.
    """

    def __init__(
        self,
        lr: Mapping[str, float | None],
        frozen: Iterable[str] = (),
        adapted: Iterable[str] = (),
        scale: float = 1.0,
    ):
        self.keys, self.frozen = PartKeys(lr, "lr"), PartKeys(frozen, "frozen")
        self.adapted = PartKeys(adapted, "lora.parts")
        for key, rate in lr.items():
            at_least(0, "lr.", **{key: rate})
        self.rated = [key for key, rate in lr.items() if rate]
        self.lr = {
            key: scale * rate
            for key, rate in lr.items()
            if rate is not None and self.frozen.of(key) is None
        }
        if not self.lr:
            raise ValueError("lr: no part trains; name one with its rate, such as connector: 1e-3")
        for key, words in self.adapted.words.items():
            if words[0] not in self.parts:
                raise ValueError(f"lora: lr has no {key}, at whose rate the adapters would train")

    @property
    def parts(self) -> set[str]:
        """The parts of which weights train."""
        return {key.split(".")[0] for key in self.lr}

    def key(self, *names: str) -> str | None:
        """The key in `lr` at whose rate a weight trains, or adapters beside it; None if frozen.

        Args:
            names: The weight's names, from the part on.
        """
        key = self.keys.of(*names)
        return key if key in self.lr and self.frozen.of(*names) is None else None

    def adapts(self, *names: str) -> bool:
        """Whether adapters train in place of a weight."""
        return self.adapted.of(*names) is not None and self.key(*names) is not None

    def trains(self, *names: str) -> bool:
        """Whether a weight trains itself; that of an adapter does."""
        own = not self.adapts(*names) or any(ADAPTER in name for name in names)
        return own and self.key(*names) is not None

    def weights_by_key(
        self, model: nn.Module, loss: nn.Module
    ) -> dict[str, list[tuple[nn.Parameter, list[str]]]]:
        """Of each key with a rate above zero the weights whose rate it is, with their names."""
        found: dict[str, list[tuple[nn.Parameter, list[str]]]] = {key: [] for key in self.rated}
        for weight, names in names_of(weights_of(model, loss)):
            if (key := self.keys.of(*names)) in found:
                found[key].append((weight, names))
        return found

    def check(self, model: nn.Module, loss: nn.Module) -> None:
        """Refuse keys that choose nothing, and two that decide about one weight.

        Raises:
            ValueError: Names the key.
        """
        weights, parts = weights_of(model, loss), [*parts_of(model), LOSS]
        self.keys.check(list(weights), parts, self.keys.words.keys() - self.lr.keys())
        self.frozen.check(list(weights), parts, self.frozen.words)
        self.adapted.check(list(weights), parts)
        if not any([self.key(*names) for _, names in names_of(weights)]):
            raise ValueError("lr: no weight trains; all that have a rate are frozen")


def chooses(words: Sequence[str], name: Sequence[str]) -> bool:
    """Whether a key chooses a weight, both as lists of words."""
    return words[0] == name[0] and _below(words[1:], name[1:])


def _below(words: Sequence[str], name: Sequence[str]) -> bool:
    if not words:
        return True
    numbers = words[0].isdigit() or RANGE.fullmatch(words[0])
    places = range(min(1, len(name)) if numbers else len(name))
    return any(_fits(words[0], name[at]) and _below(words[1:], name[at + 1 :]) for at in places)


def _fits(word: str, other: str) -> bool:
    if (found := RANGE.fullmatch(word)) and other.isdigit():
        return int(found[1]) <= int(other) <= int(found[2])
    return word == other


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """A model's parts: its children by name, without the loss that a stage brings."""
    return {name: part for name, part in model.named_children() if name != LOSS}


def weights_of_part(name: str, part: nn.Module) -> dict[str, nn.Parameter]:
    """A part's weights by name; tied ones by all names."""
    return dict(part.named_parameters(prefix=name, remove_duplicate=False))


def weights_of(model: nn.Module, loss: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a model's parts, and of a stage's loss."""
    weights: dict[str, nn.Parameter] = {}
    for name, part in {**parts_of(model), LOSS: loss}.items():
        weights |= weights_of_part(name, part)
    return weights


def names_of(weights: Mapping[str, nn.Parameter]) -> Iterator[tuple[nn.Parameter, list[str]]]:
    """Each weight once, with its names."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, weight in weights.items():
        found.setdefault(id(weight), (weight, []))[1].append(name)
    return iter(found.values())


def train_only(module: nn.Module, training: bool = True) -> None:
    """Set what holds a weight that trains to training mode, and all else to evaluation mode.

    Modules without weights, such as dropout, follow the module that they are in.

    Args:
        module: A part.
        training: Mode of the module that it is in.
    """
    weights = list(module.parameters())
    if weights:
        training = any(weight.requires_grad for weight in weights)
    module.training = training
    for child in module.children():
        train_only(child, training)


def hold_statistics(model: nn.Module, selection: Selection) -> None:
    """Set what has saved buffers, none of which the stage chooses, to evaluation mode.

    Statistics that moved there would be in no file of the stage's weights.
    """
    for name, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        saved = [each for each, _ in module.named_buffers(recurse=False) if each not in passing]
        if name and saved and not any(selection.trains(f"{name}.{each}") for each in saved):
            module.training = False
