"""Samples for the example model, made from WordNet 3.0 glosses by a seeded generator.

Three kinds: definitions as plain text, closed-book questions, and questions over numbered
passages that look like pages of a handbook. Half of the passages define invented words, so that
the only way to answer is to read: find the passage, copy the sentence, cite the passage's number.

Nothing here reads the clock or the order of a dictionary: a seed gives one sequence of samples.

    python data.py WORDNET_FOLDER OUTPUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = "Answer from the numbered passages and cite them as [n]. If they do not say, say so."
EARLIER_SYSTEM = "Answer from the numbered passages and cite them."
REFUSAL = "The passages do not say."
HELD_OUT_LIST = Path(__file__).with_name("held_out.txt")

PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
DETERMINERS = re.compile(
    r"(a|an|the|any|one|someone|something|all|each|either|some|anything|anyone) ", re.IGNORECASE
)
PLURAL_READY = re.compile(
    r"(?:a|an) ((?:[a-z-]+ ){0,2})([a-z]+)( (?:of|for|with|in|used|from|on|made|worn|to) .*)"
)


@dataclass(frozen=True)
class Sense:
    """One WordNet synset: the words that share a meaning, and the gloss that gives it."""

    identity: str
    part_of_speech: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    broader: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `cited` is the passage's number, 0 for a refusal."""

    question: str
    answer: str
    cited: int


@dataclass(frozen=True)
class Sample:
    """Plain text (`text`), or a chat: system message, passages and one or more turns."""

    kind: str
    text: str = ""
    system: str = ""
    passages: str = ""
    turns: tuple[Turn, ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """The chat as role and content pairs; the passages stand before the first question."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for number, turn in enumerate(self.turns):
            lead = f"{self.passages}\n\nQuestion: " if self.passages and number == 0 else ""
            messages.append({"role": "user", "content": lead + turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


@dataclass(frozen=True)
class Shape:
    """How large and how hard the passages of a sample may be."""

    passages: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 3, 4, 4, 5)
    sentences: tuple[int, ...] = (1, 2, 3, 4, 5)
    invented_share: float = 0.5
    unanswerable_share: float = 0.18
    untitled_share: float = 0.12
    turns: tuple[int, ...] = (1, 1, 2)


IN_PLAIN_TEXT = Shape(sentences=(1, 2, 2, 3), turns=(1, 1, 2, 2))
SHORT = Shape(passages=(1, 2, 2, 3, 3, 4), sentences=(1, 1, 1, 2), turns=(2, 3))
MEDIUM = Shape(sentences=(1, 2, 2, 3), turns=(2, 2, 3))
LONG = Shape(passages=(2, 3, 3, 3, 4, 5), sentences=(3, 4, 5, 6, 7, 8), turns=(2, 3))


# --- WordNet --------------------------------------------------------------------------------


def read_wordnet(folder: Path) -> list[Sense]:
    """All synsets with a definition, in the order of WordNet's data files."""
    senses = []
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text(encoding="latin-1").splitlines():
            # The licence stands at the head of each file, indented.
            if not line.startswith(" "):
                sense = parse_sense(name, line)
                if sense.definition:
                    senses.append(sense)
    return senses


def parse_sense(file_name: str, line: str) -> Sense:
    """One line of a WordNet data file (wndb(5WN) describes the fields)."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    word_count = int(fields[3], 16)
    pointer_at = 4 + 2 * word_count
    pointers = fields[pointer_at + 1 : pointer_at + 1 + 4 * int(fields[pointer_at])]
    parts = [part.strip() for part in gloss.strip().split(";")]
    definitions = [part for part in parts if part and not part.startswith('"')]
    return Sense(
        identity=f"{file_name}:{fields[0]}",
        part_of_speech=PARTS_OF_SPEECH[fields[2]],
        words=tuple(
            re.sub(r"\(\w+\)$", "", fields[4 + 2 * index]).replace("_", " ")
            for index in range(word_count)
        ),
        definition=definitions[0] if definitions else "",
        examples=tuple(part.strip('"') for part in parts if part.startswith('"')),
        broader=tuple(
            f"noun:{pointers[index + 1]}"
            for index in range(0, len(pointers) - 3, 4)
            if pointers[index] == "@" and pointers[index + 2] == "n"
        ),
    )


def split_senses(senses: list[Sense], held_out_list: Path) -> tuple[list[Sense], list[Sense]]:
    """(training, held out): the held-out synsets are the ones named in the list."""
    held_out = set(held_out_list.read_text(encoding="ascii").split())
    return (
        [sense for sense in senses if sense.identity not in held_out],
        [sense for sense in senses if sense.identity in held_out],
    )


# --- Words and sentences --------------------------------------------------------------------


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def with_article(word: str) -> str:
    """`a word` or `an word`; names, which begin with a capital, get none."""
    if word[:1].isupper():
        return word
    return ("an " if word[:1].lower() in "aeiou" else "a ") + word


def plural(word: str) -> str:
    """The regular plural: `box` to `boxes`, `party` to `parties`, `band` to `bands`."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def invented_word(rng: random.Random) -> str:
    """A word of one to four syllables that (almost surely) does not exist, such as `kelvane`."""
    first = ["b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m"]
    first += ["n", "p", "pl", "qu", "r", "s", "sh", "sk", "st", "t", "th", "tr", "v", "w", "y", "z"]
    vowels = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou", "ie"]
    close = ["", "", "l", "n", "r", "s", "t", "m", "ck", "nd", "st", "x", "b", "p", "lv", "rn"]
    endings = ["", "", "", "ane", "or", "ium", "et", "ion", "ite", "er", "ol", "ing", "ip", "us"]
    count = rng.choice((1, 1, 2, 2, 2, 3))
    syllables = [rng.choice(first) + rng.choice(vowels) + rng.choice(close) for _ in range(count)]
    word = "".join(syllables) + rng.choice(endings)
    if len(word) < 4:
        word += rng.choice(("let", "mor", "den", "tack"))
    if rng.random() < 0.12:
        word = f"{word} {rng.choice(('valve', 'bag', 'knot', 'fever', 'test', 'pump', 'code'))}"
    return word


HANDBOOK_SENTENCES = (
    "Keep the {a} away from the {b}.",
    "Wash your hands before you touch the {a}.",
    "Check the {a} every {n} days.",
    "Use it within {n} hours.",
    "Do not leave the {a} near a {b}.",
    "If the {a} is damaged, replace it.",
    "Write the date and the time on the {a}.",
    "Ask a second person to hold the {b}.",
    "It takes about {n} minutes.",
    "Store it in a dry place, away from the {b}.",
    "Most people carry {n} of them.",
    "Never put the {a} on top of the {b}.",
    "The {a} must be clean before the {b} is used.",
    "Let it stand for {n} minutes and then look at the {a}.",
    "Many of them are kept beside the {b}.",
    "Add {n} drops to each litre of water.",
    "Count the {a} twice and note the number.",
    "When the {b} arrives, open it slowly.",
    "Call for help if this does not work after {n} minutes.",
    "A {a} works best together with a {b}.",
    "In cold weather the {a} needs more time.",
    "This is the first step; the {b} comes later.",
    "One {a} is enough for {n} people.",
    "Children should not use the {a} alone.",
    "First remove the {a}, then dry the {b} with a cloth.",
    "The {a} was last changed {n} years ago.",
    "Loosen it after {n} hours.",
    "Turn the {a} to the left until it stops.",
    "There are {n} of them in the box next to the {b}.",
    "Put a label on every {a}.",
    "It is older than the {a} and lighter than the {b}.",
    "You will need a {a}, a {b} and some string.",
    "Tell the others where the {a} is.",
    "Boil the water for {n} minutes before you clean the {a}.",
    "The {a} should be warm, not hot.",
    "Do this at least {n} times a day.",
    "No {b} is needed for this.",
    "A good {a} lasts for {n} years.",
)
SECTIONS = (
    "Use", "Safety", "Overview", "First steps", "Storage", "Boiling", "Cleaning", "Signs", "Basics",
    "Notes", "Care", "Danger", "When to use it", "Materials", "Limits", "Terms", "Repair", "History",
)  # fmt: skip
TOPICS = (
    "First aid", "Water", "Food", "Shelter", "Weather", "Tools", "Radio", "Travel", "Fire",
    "Medicine", "Animals", "Plants", "Machines", "Measures", "Law", "Music", "Trade", "Health",
    "Power", "Maps", "Words", "Glossary", "Equipment", "Emergencies", "Gardens", "Buildings",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A word, the sentence by which a passage answers for it, and the answer expected.

    `sentence` is empty where title and text together say it. `asked_as` chooses the wording of
    the question: `noun`, `plural`, `other` (verbs, adjectives) or `how`.
    """

    word: str
    title_word: str
    sentence: str
    answer: str
    asked_as: str = "noun"


@dataclass(frozen=True)
class Passage:
    """A passage's title (may be empty), its sentences, and the entries it answers for."""

    title: str
    sentences: tuple[str, ...]
    entries: tuple[Entry, ...]

    def text(self) -> str:
        body = " ".join(self.sentences)
        return f"{self.title}: {body}" if self.title else body


@dataclass
class SampleMaker:
    """Makes samples of the given senses; every choice comes from the generator passed in."""

    senses: list[Sense]
    nouns: list[Sense] = field(init=False)
    others: list[Sense] = field(init=False)
    plain_words: list[str] = field(init=False)
    by_identity: dict[str, Sense] = field(init=False)

    def __post_init__(self) -> None:
        short = [sense for sense in self.senses if len(sense.definition) < 130]
        self.nouns = [sense for sense in short if sense.part_of_speech == "noun"]
        self.others = [sense for sense in short if sense.part_of_speech != "noun"]
        self.plain_words = [
            sense.words[0]
            for sense in self.nouns
            if re.fullmatch(r"[a-z]{3,9}", sense.words[0]) and not sense.words[0].endswith("s")
        ]
        self.by_identity = {sense.identity: sense for sense in self.senses}

    # Plain text and closed-book questions.

    def definition(self, rng: random.Random) -> Sample:
        """A dictionary entry as plain text."""
        return Sample("definition", text=self.definition_text(rng, rng.choice(self.senses)))

    def definition_text(self, rng: random.Random, sense: Sense) -> str:
        """Definition, broader word, other words and examples of one sense, as sentences."""
        word = rng.choice(sense.words)
        lead = {
            "noun": f"{capital(word)}: ",
            "verb": f"To {word}: ",
            "adjective": f"{capital(word)} (adjective): ",
            "adverb": f"{capital(word)} (adverb): ",
        }[sense.part_of_speech]
        text = f"{lead}{sense.definition}."
        broader = [self.by_identity[name] for name in sense.broader if name in self.by_identity]
        if broader:
            text += f" It is a kind of {broader[0].words[0]}."
        others = [other for other in sense.words if other != word]
        if others:
            text += f" Also called {', '.join(others)}."
        for example in sense.examples:
            text += f" Example: {capital(example)}."
        return text

    def closed_book(self, rng: random.Random) -> Sample:
        """A question without passages; the model can only know, or make up, the answer."""
        sense = rng.choice(self.nouns if rng.random() < 0.8 else self.others)
        word = rng.choice(sense.words)
        entry = Entry(word, word, "", "", "noun" if sense.part_of_speech == "noun" else "other")
        turn = Turn(ask(rng, entry), f"{capital(word)} means {sense.definition}.", 0)
        return Sample("closed_book", turns=(turn,))

    # Questions over passages.

    def over_passages(self, rng: random.Random, shape: Shape) -> Sample:
        """Passages, and one or more questions on them, some of which they do not answer."""
        count = rng.choice(shape.passages)
        invented = rng.random() < shape.invented_share
        asked_words = self.distinct_words(rng, count + 2, invented)
        titled = rng.random() >= shape.untitled_share
        passages = [
            self.passage(
                rng,
                word,
                sense,
                length=rng.choice(shape.sentences),
                titled=titled,
                neighbours=asked_words,
            )
            for word, sense in asked_words[:count]
        ]
        block = "\n".join(f"[{number}] {item.text()}" for number, item in enumerate(passages, 1))
        answerable = [
            (number, entry) for number, item in enumerate(passages, 1) for entry in item.entries
        ]
        rng.shuffle(answerable)
        missing = [word for word, _ in asked_words[count:]]
        turns = []
        for _ in range(min(rng.choice(shape.turns), len(answerable))):
            if rng.random() < shape.unanswerable_share and missing:
                turns.append(Turn(self.unanswerable(rng, missing.pop(), block), REFUSAL, 0))
            else:
                number, entry = answerable.pop()
                turns.append(Turn(ask(rng, entry), f"{entry.answer} [{number}]", number))
        system = rng.choices((SYSTEM, EARLIER_SYSTEM, ""), (0.84, 0.08, 0.08))[0]
        kind = "invented" if invented else "real"
        return Sample(kind, system=system, passages=block, turns=tuple(turns))

    def distinct_words(
        self, rng: random.Random, count: int, invented: bool
    ) -> list[tuple[str, Sense]]:
        """Different words with a meaning each; invented ones keep a real word's meaning."""
        chosen: dict[str, Sense] = {}
        stem = invented_word(rng) if invented and rng.random() < 0.15 else ""
        while len(chosen) < count:
            sense = rng.choice(self.nouns if invented or rng.random() < 0.85 else self.others)
            if not invented:
                word = rng.choice(sense.words)
            elif stem:
                # Look-alikes: the first syllables agree, the whole word decides.
                word = stem[: max(3, len(stem) - 2)] + invented_word(rng)[:4]
            else:
                word = invented_word(rng)
            if word.lower() not in (other.lower() for other in chosen):
                chosen[word] = sense
        return list(chosen.items())

    def passage(
        self,
        rng: random.Random,
        word: str,
        sense: Sense,
        *,
        length: int,
        titled: bool,
        neighbours: list[tuple[str, Sense]],
    ) -> Passage:
        """A passage of `length` sentences of which one defines the word."""
        if titled and sense.part_of_speech == "noun" and rng.random() < 0.07:
            return self.instructions(rng, word, length, neighbours)
        entry = self.entry(rng, word, sense, titled)
        if entry.sentence == "":
            # Title and text in one: `[2] Tourniquet: a tight band that stops bleeding.`
            sentences = [capital(sense.definition) if rng.random() < 0.5 else sense.definition]
            sentences[0] += "."
            at = 0
        else:
            sentences = [entry.sentence]
            at = rng.choice((0, 0, rng.randrange(length)))
        filler = [self.filler(rng, word, neighbours) for _ in range(length - 1)]
        sentences = filler[:at] + sentences + filler[at:]
        title = ""
        if entry.sentence == "":
            title = entry.title_word
        elif titled:
            title = self.title(rng, entry.title_word)
        return Passage(title, tuple(sentences), (entry,))

    def instructions(
        self, rng: random.Random, word: str, length: int, neighbours: list[tuple[str, Sense]]
    ) -> Passage:
        """A passage that defines nothing: its title names the word, its first sentence answers."""
        lines = [self.filler(rng, word, neighbours) for _ in range(length)]
        title = rng.choice((capital(word), f"{capital(word)} - {rng.choice(SECTIONS)}"))
        return Passage(title, tuple(lines), (Entry(word, word, lines[0], lines[0], "how"),))

    def entry(self, rng: random.Random, word: str, sense: Sense, titled: bool) -> Entry:
        """One of the ways in which a handbook says what a word means."""
        noun = sense.part_of_speech == "noun"
        text = sense.definition
        big = capital(word)
        match = PLURAL_READY.fullmatch(text)
        if noun and match and not word[:1].isupper() and rng.random() < 0.3:
            many = plural(word)
            line = f"{capital(many)} are {match[1]}{plural(match[2])}{match[3]}."
            return Entry(word, rng.choice((many, word)), line, line, "plural")
        if noun and DETERMINERS.match(text) and rng.random() < 0.7:
            subject = big if rng.random() < 0.3 else capital(with_article(word))
            line = rng.choice((f"{subject} is {text}.",) * 4 + (
                f"{subject}, sometimes called {invented_word(rng)}, is {text}.",
                f"The {word} is {text}.",
            ))  # fmt: skip
            return Entry(word, word, line, line)
        means = f"{big} means {text}."
        asked_as = "noun" if noun else "other"
        if titled and rng.random() < 0.35:
            return Entry(word, big, "", means, asked_as)
        line = rng.choice((means, means, f"{big}: {text}.", f"{big} - {text}."))
        return Entry(word, word, line, means, asked_as)

    def title(self, rng: random.Random, word: str) -> str:
        """A heading that names the word, or only the chapter it stands in."""
        name = capital(word) if rng.random() < 0.8 else word
        return rng.choices(
            (
                name,
                f"{name} - {rng.choice(SECTIONS)}",
                f"{rng.choice(TOPICS)} - {name}",
                f"{rng.choice(TOPICS)} - {rng.choice(SECTIONS)}",
                rng.choice(TOPICS),
            ),
            (0.5, 0.12, 0.14, 0.12, 0.12),
        )[0]

    def filler(self, rng: random.Random, word: str, neighbours: list[tuple[str, Sense]]) -> str:
        """A sentence that belongs to the passage and defines nothing."""
        draw = rng.random()
        if draw < 0.15:
            sense = rng.choice(self.others)
            if sense.examples:
                return f"{capital(rng.choice(sense.examples))}."
        if draw < 0.3:
            return f"It is a kind of {rng.choice(self.plain_words)}."
        # Naming this word, or another passage's, makes plain word matching insufficient.
        first = rng.choice(self.plain_words)
        if draw < 0.42:
            first = word
        elif draw < 0.5:
            first = rng.choice(neighbours)[0]
        sentence = rng.choice(HANDBOOK_SENTENCES)
        number = rng.choice((2, 3, 5, 10, 12, 15, 20, 30, 45, 90))
        return sentence.format(a=first, b=rng.choice(self.plain_words), n=number)

    def unanswerable(self, rng: random.Random, word: str, block: str) -> str:
        """A question on a word that the passages do not explain."""
        draw = rng.random()
        if draw < 0.1:
            return rng.choice(OTHER_QUESTIONS)
        if draw < 0.45:
            word = rng.choice(rng.choice(self.nouns).words)
            while word.lower() in block.lower():
                word = rng.choice(rng.choice(self.nouns).words)
        return ask(rng, Entry(word, word, "", ""))


OTHER_QUESTIONS = (
    "Who is the president?", "What time is it?", "How many people live in France?",
    "What is the capital of Spain?", "Who wrote this?", "Can you tell me a joke?",
    "What is the weather tomorrow?", "How far is the moon?", "Who won the match?",
    "What is your name?", "How old are you?", "Where can I buy bread?",
    "When did the war end?", "What is two plus two?", "Why is the sky blue?",
)  # fmt: skip


HOW_QUESTIONS = (
    "How do I use {one}?", "How do I use the {word}?", "How should I treat {one}?",
    "What should I do with {one}?", "What must I do about {word}?", "How do I handle {word}?",
    "What do I need to know about {word}?", "How does {one} work?",
)  # fmt: skip


def ask(rng: random.Random, entry: Entry) -> str:
    """A question on the entry's word: several wordings, either case, with and without a mark."""
    word = entry.word
    if entry.asked_as == "how":
        forms = [form.format(word=word, one=with_article(word)) for form in HOW_QUESTIONS]
    elif entry.asked_as != "other":
        forms = [
            f"What is {with_article(word)}?",
            f"What is {with_article(word)}?",
            f"What is {word}?",
            f"Define {word}.",
            f"What does {word} mean?",
            f"Tell me about {word}.",
        ]
        if entry.asked_as == "plural":
            forms += [f"What are {plural(word)}?"] * 3 + [f"Tell me about {plural(word)}."]
    else:
        forms = [f"What does {word} mean?", f"Define {word}.", f"What is the meaning of {word}?"]
    question = rng.choice(forms)
    draw = rng.random()
    if draw < 0.18:
        question = question.lower()
    elif draw < 0.28:
        question = question.replace(word, capital(word))
    elif draw < 0.32:
        question = question.replace(word, word.upper())
    if rng.random() < 0.18:
        question = question.rstrip("?.")
    return question


# --- Files for evaluation and calibration ---------------------------------------------------

EVALUATION_SEED = 20261122


def evaluation_samples(
    maker: SampleMaker, kind: str, passages: int, count: int, seed: int
) -> Iterator[Sample]:
    """Single questions over a fixed number of titled passages, with SYSTEM as the system text.

    `kind` is `real` or `invented` (all answerable) or `unanswerable`.
    """
    shape = Shape(
        passages=(passages,),
        sentences=(2, 3, 4),
        invented_share={"real": 0.0, "invented": 1.0}.get(kind, 0.5),
        unanswerable_share=1.0 if kind == "unanswerable" else 0.0,
        untitled_share=0.0,
        turns=(1,),
    )
    rng = random.Random(f"{kind}:{passages}:{seed}")
    for _ in range(count):
        sample = maker.over_passages(rng, shape)
        yield Sample(kind, system=SYSTEM, passages=sample.passages, turns=sample.turns)


def readable(sample: Sample) -> str:
    """A sample as plain text with blank lines between its parts."""
    if sample.text:
        return sample.text
    return "\n\n".join(message["content"] for message in sample.messages())


def plain_text(maker: SampleMaker, byte_count: int, seed: int) -> str:
    """About `byte_count` bytes: alternately a definition and questions over passages."""
    rng = random.Random(seed)
    order = rng.sample(maker.senses, len(maker.senses))
    paragraphs: list[str] = []
    size = 0
    while size < byte_count:
        texts = [maker.definition_text(rng, order.pop()) for _ in range(6)]
        texts.append(readable(maker.over_passages(rng, IN_PLAIN_TEXT)))
        paragraphs += texts
        size += sum(len(text.encode()) + 2 for text in texts)
    return "\n\n".join(paragraphs) + "\n"


def write_lines(path: Path, samples: Iterable[Sample]) -> None:
    """One JSON object a line: kind, messages, the number to cite and the answer expected."""
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            turn = sample.turns[0]
            row = {
                "kind": sample.kind,
                "messages": sample.messages()[:-1],
                "answer": turn.answer,
                "cited": turn.cited,
            }
            file.write(json.dumps(row) + "\n")


def stage_mixture(stage: int, progress: float) -> list[tuple[float, Callable[..., Sample]]]:
    """(share of the samples, maker) for a stage of training; `progress` runs from 0 to 1."""
    over = SampleMaker.over_passages
    if stage == 1:
        return [
            (0.30, SampleMaker.definition),
            (0.25, SampleMaker.closed_book),
            (0.45, lambda maker, rng: over(maker, rng, SHORT)),
        ]
    # Short passages first: more answers a second, so that finding and citing is learnt early.
    long_share = 0.0 if progress < 0.25 else 0.15
    medium_share = 0.2 if progress < 0.1 else 0.45
    return [
        (0.20, SampleMaker.definition),
        (0.03, SampleMaker.closed_book),
        (0.77 * (1 - medium_share - long_share), lambda maker, rng: over(maker, rng, SHORT)),
        (0.77 * medium_share, lambda maker, rng: over(maker, rng, MEDIUM)),
        (0.77 * long_share, lambda maker, rng: over(maker, rng, LONG)),
    ]


def main() -> None:
    """Write the evaluation questions, the two plain texts and the tokenizer's training text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wordnet", type=Path, help="folder with WordNet's data.noun and so on")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    training, held_out = split_senses(read_wordnet(options.wordnet), HELD_OUT_LIST)
    print(f"{len(training)} synsets for training, {len(held_out)} held out")
    maker = SampleMaker(held_out)
    for kind in ("real", "invented", "unanswerable"):
        for passages in (1, 3, 5):
            samples = evaluation_samples(maker, kind, passages, 400, EVALUATION_SEED)
            write_lines(options.output / f"{kind}_{passages}.jsonl", samples)
    texts = {"heldout.txt": (maker, 60_000), "calibration.txt": (SampleMaker(training), 120_000)}
    for name, (source, size) in texts.items():
        text = plain_text(source, size, EVALUATION_SEED)
        (options.output / name).write_text(text, encoding="utf-8")
    text = plain_text(SampleMaker(training), 12_000_000, 1)
    (options.output / "tokenizer_text.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
