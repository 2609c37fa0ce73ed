"""The tokenizer: SentencePiece BPE of 4096 pieces, and samples as token numbers.

Digits stand alone, so that a citation is one token, and bytes are the fallback, so that any text
can be read.

    python tokenizer.py OUTPUT_FOLDER      (which holds data.py's tokenizer_text.txt)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from data import Sample

VOCABULARY_SIZE = 4096
BEGIN, END_OF_TEXT = 1, 2
ROLE_TOKENS = {"system": 3, "user": 4, "assistant": 5}
END_OF_TURN = 6
CONTROL_SYMBOLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CITATION_WEIGHT = 6.0
FIRST_WORD_WEIGHT = 4.0


@dataclass(frozen=True)
class Encoded:
    """Token numbers, and for each the weight that predicting it has in the loss.

    A weight of -1 marks context: passages and questions, which are there to be read. `places`
    holds for each token of a passage the passage's number, for each token of an answer the
    number to be cited, 0 where the passages are silent, and -1 elsewhere.
    """

    tokens: list[int]
    weights: list[float]
    citations: list[int]
    places: list[int]
    answers: list[bool]

    def joined(self, other: Encoded) -> Encoded:
        """Both, one after the other."""
        shifted = [position + len(self.tokens) for position in other.citations]
        return Encoded(
            self.tokens + other.tokens,
            self.weights + other.weights,
            self.citations + shifted,
            self.places + other.places,
            self.answers + other.answers,
        )


class Tokenizer:
    """SentencePiece with the chat template's control tokens around each message."""

    def __init__(self, path: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.line_end = self.encode_text("\n")[-1]
        self.bracket = self.encode_text("[1]")[0]
        self.digits = {self.encode_text(f"[{number}]")[1]: number for number in range(1, 10)}

    def encode_text(self, text: str) -> list[int]:
        """Token numbers of plain text, without a beginning or an end."""
        numbers: list[int] = self.pieces.encode(text)
        return numbers

    def decode(self, tokens: list[int]) -> str:
        """The text of token numbers; control tokens are empty."""
        text: str = self.pieces.decode(tokens)
        return text

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token numbers up to the place where the assistant's answer begins."""
        tokens = [BEGIN]
        for message in messages:
            tokens += [ROLE_TOKENS[message["role"]], *self.encode_text(message["content"])]
            tokens.append(END_OF_TURN)
        return [*tokens, ROLE_TOKENS["assistant"]]

    def encode(self, sample: Sample) -> Encoded:
        """A sample with its weights: text counts everywhere, a chat only in its answers."""
        if sample.text:
            tokens = [BEGIN, *self.encode_text(sample.text), END_OF_TEXT]
            count = len(tokens)
            return Encoded(tokens, [0.0] + [1.0] * (count - 1), [], [-1] * count, [False] * count)
        tokens, weights, citations, places, answers = [BEGIN], [0.0], [], [-1], [False]
        turns = iter(sample.turns)
        for message in sample.messages():
            body = self.encode_text(message["content"])
            tokens += [ROLE_TOKENS[message["role"]], *body, END_OF_TURN]
            if message["role"] == "assistant":
                counted = [FIRST_WORD_WEIGHT] + [1.0] * (len(body) - 1)
                cited = next(turns).cited
                if cited:
                    # The answer ends in "[", the number, "]".
                    counted[-2] = CITATION_WEIGHT
                    citations.append(len(tokens) - 3)
                weights += [-1.0, *counted, 1.0]
                places += [cited if sample.passages else -1] * (len(body) + 1) + [-1]
                answers += [True] * (len(body) + 1) + [False]
            else:
                weights += [-1.0] * (len(body) + 2)
                places += [-1, *self.passage_numbers(body), -1]
                answers += [False] * (len(body) + 2)
        return Encoded(
            [*tokens, END_OF_TEXT], [*weights, 0.0], citations, [*places, -1], [*answers, False]
        )

    def passage_numbers(self, body: list[int]) -> list[int]:
        """For each token of a user's message the number of the passage it stands in, else -1."""
        numbers, current = [], -1
        for index, token in enumerate(body):
            if token == self.line_end:
                current = -1
            elif token in self.digits and index > 0 and body[index - 1] == self.bracket:
                starts_line = index == 1 or body[index - 2] == self.line_end
                current = self.digits[token] if starts_line else current
            numbers.append(current)
        return numbers


def train_tokenizer(text: Path, folder: Path) -> None:
    """Write tokenizer.model into the folder."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.9999,
        split_digits=True,
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        unk_id=0,
        bos_id=BEGIN,
        eos_id=END_OF_TEXT,
        control_symbols=list(CONTROL_SYMBOLS),
        num_threads=2,
        minloglevel=2,
    )


def main() -> None:
    """Train the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    train_tokenizer(options.folder / "tokenizer_text.txt", options.folder)


if __name__ == "__main__":
    main()
