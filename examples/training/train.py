"""Train the example model on samples made as it goes; stops by the clock and can be resumed.

Stage 1 counts every token, on definitions, closed-book questions and short passages. Stage 2
starts from a trained model, counts the answers and a part of the context, and goes from short
to long passages. Muon updates the matrices, AdamW the embedding and the norms.

Stage 2 also teaches where things stand, for which the answers alone give few signals: a probe on
a middle layer must tell for each token of a passage the passage's number, and one on a later
layer for each token of an answer the number that it will cite. The probes are thrown away.

    python train.py --wordnet FOLDER --tokenizer FILE --checkpoint FILE --stage 1 --minutes 30
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import data
import torch
from model import FAMILIES, Config, Decoder
from tokenizer import Encoded, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

MUON_MOMENTUM = 0.95
CONTEXT_SHARE = 0.15
CONTEXT_WEIGHT = 0.3
DEFINITION_ROW_TOKENS = 160
POOL_ROWS = 256
PADDING = 2
LARGEST_NUMBER = 9
READING_LAYER, ANSWERING_LAYER = 1, 3


@dataclass(frozen=True)
class Stage:
    """What differs between the two stages."""

    matrix_rate: float
    vector_rate: float
    count_context_fully: bool
    steady_share: float
    probe_weight: float


STAGES = {
    1: Stage(
        matrix_rate=0.02,
        vector_rate=4e-3,
        count_context_fully=True,
        steady_share=0.4,
        probe_weight=0.0,
    ),
    2: Stage(
        matrix_rate=0.008,
        vector_rate=1e-3,
        count_context_fully=False,
        steady_share=0.35,
        probe_weight=0.5,
    ),
}


@dataclass(frozen=True)
class Batch:
    """Token numbers [rows, tokens]; weights, marks and places (see Encoded) of the same shape."""

    tokens: Tensor
    weights: Tensor
    citations: Tensor
    places: Tensor
    answers: Tensor


class Orthogonaliser:
    """Muon: momentum made orthogonal by five Newton-Schulz steps (Jordan et al., 2024)."""

    def __init__(self, matrices: dict[str, torch.nn.Parameter]) -> None:
        self.matrices = matrices
        self.momentum = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix by its gradient, and clear the gradient."""
        for name, matrix in self.matrices.items():
            if matrix.grad is None:
                continue
            momentum = self.momentum[name].mul_(MUON_MOMENTUM).add_(matrix.grad)
            update = orthogonal(matrix.grad + MUON_MOMENTUM * momentum)
            tall = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - 0.01 * rate).add_(update, alpha=-rate * tall)
            matrix.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with singular values of one; same shape."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    result: Tensor = wide.T if matrix.shape[0] > matrix.shape[1] else wide
    return result


def training_row(
    rng: random.Random, maker: data.SampleMaker, tokenizer: Tokenizer, stage: int, progress: float
) -> Encoded:
    """One row of a batch: a chat, or definitions up to DEFINITION_ROW_TOKENS."""
    mixture = data.stage_mixture(stage, progress)
    make = rng.choices([maker for _, maker in mixture], [share for share, _ in mixture])[0]
    row = tokenizer.encode(make(maker, rng))
    while not row.citations and len(row.tokens) < DEFINITION_ROW_TOKENS and row.weights[1] == 1.0:
        row = row.joined(tokenizer.encode(make(maker, rng)))
    return row


def batches(
    rows: list[Encoded], tokens_per_batch: int, rng: random.Random, stage: Stage
) -> Iterator[Batch]:
    """Rows of about equal length together, in random order of the batches."""
    groups: list[list[Encoded]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if (len(groups[-1]) + 1) * len(row.tokens) > tokens_per_batch and groups[-1]:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        yield padded(group, rng, stage)


def padded(rows: list[Encoded], rng: random.Random, stage: Stage) -> Batch:
    """Rows as tensors; context tokens (weight -1) are counted by chance, and for less."""
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), longest), PADDING, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    citations = torch.zeros(len(rows), longest, dtype=torch.bool)
    places = torch.full((len(rows), longest), -1, dtype=torch.long)
    answers = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        weights[index, : len(row.tokens)] = torch.tensor(row.weights)
        citations[index, row.citations] = True
        places[index, : len(row.places)] = torch.tensor(row.places)
        answers[index, : len(row.answers)] = torch.tensor(row.answers)
    if stage.count_context_fully:
        weights[weights < 0] = 1.0
    else:
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        chosen = torch.rand(weights.shape, generator=generator) < CONTEXT_SHARE
        weights = torch.where(weights < 0, chosen * CONTEXT_WEIGHT, weights)
    return Batch(tokens, weights, citations, places, answers)


class Probes(nn.Module):
    """Tell a place from the vectors of a middle and of a later layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, elementwise_affine=False)
        self.reading = nn.Linear(config.hidden_size, LARGEST_NUMBER + 1)
        self.answering = nn.Linear(config.hidden_size, LARGEST_NUMBER + 1)

    def forward(self, states: list[Tensor], batch: Batch) -> Tensor:
        """The sum of both mean losses, in nats."""
        places, answers = batch.places[:, :-1], batch.answers[:, :-1]
        loss = torch.zeros(())
        for probe, layer, among in (
            (self.reading, READING_LAYER, ~answers),
            (self.answering, ANSWERING_LAYER, answers),
        ):
            chosen = (places >= 0) & among
            if chosen.any():
                guesses = probe(self.norm(states[layer][chosen]))
                loss = loss + functional.cross_entropy(guesses, places[chosen])
        return loss


def weighted_loss(model: Decoder, states: list[Tensor], batch: Batch) -> Tensor:
    """Nats a token, weighted; only positions with a weight go through the output matrix."""
    hidden = model.norm(states[-1])
    weights = batch.weights[:, 1:]
    counted = weights > 0
    losses = functional.cross_entropy(
        model.logits(hidden[counted]), batch.tokens[:, 1:][counted], reduction="none"
    )
    return (losses * weights[counted]).sum() / weights[counted].sum()


@torch.no_grad()
def check(model: Decoder, held_out: dict[str, list[Batch]]) -> str:
    """One line: for each kind the loss of the answers, and the share of right citations.

    The citation is predicted after the true answer, so this flatters; evaluate.py does not.
    """
    parts = []
    for kind, kind_batches in held_out.items():
        loss, count, right, citations = 0.0, 0, 0, 0
        for batch in kind_batches:
            hidden, _ = model(batch.tokens[:, :-1])
            counted = batch.weights[:, 1:] > 0
            marks = batch.citations[:, 1:][counted]
            targets = batch.tokens[:, 1:][counted]
            logits = model.logits(hidden[counted])
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
            right += int((logits.argmax(-1) == targets)[marks].sum())
            citations += int(marks.sum())
        cited = f" cites {right}/{citations}" if citations else ""
        parts.append(f"{kind} {loss / count:.3f}{cited}")
    return "; ".join(parts)


def held_out_batches(held_out: list[data.Sense], tokenizer: Tokenizer) -> dict[str, list[Batch]]:
    """Fixed batches for `check`: definitions, and questions of each kind over three passages."""
    maker = data.SampleMaker(held_out)
    rng = random.Random(0)
    samples = {"definition": [maker.definition(rng) for _ in range(150)]}
    for kind in ("real", "invented", "unanswerable"):
        samples[kind] = list(data.evaluation_samples(maker, kind, 3, 64, seed=0))
    quiet = Stage(0.0, 0.0, count_context_fully=False, steady_share=0.0, probe_weight=0.0)
    found = {}
    for kind, kind_samples in samples.items():
        rows = []
        for sample in kind_samples:
            row = tokenizer.encode(sample)
            answers = [max(weight, 0.0) for weight in row.weights]
            rows.append(replace(row, weights=answers))
        found[kind] = list(batches(rows, 4096, rng, quiet))
    return found


def rate_share(progress: float, step: int, steady_share: float) -> float:
    """Warm up over 30 steps, hold, then fall in a straight line to almost nothing."""
    warm_up = min(1.0, (step + 1) / 30)
    if progress < steady_share:
        return warm_up
    return warm_up * max(0.01, (1 - progress) / (1 - steady_share))


@dataclass
class Progress:
    """How far the run is; saved with the weights."""

    step: int = 0
    pool: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Run:
    """A model, its optimisers and how far they are; saved and resumed as one file."""

    def __init__(self, model: Decoder, stage: Stage, checkpoint: Path) -> None:
        self.model = model
        self.probes = Probes(model.config)
        self.stage = stage
        self.checkpoint = checkpoint
        self.progress = Progress()
        named = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        matrices = {
            name: parameter
            for name, parameter in named.items()
            if parameter.dim() > 1 and not name.startswith(("embed", "lm_head"))
        }
        self.muon = Orthogonaliser(matrices)
        vectors = [parameter for name, parameter in named.items() if name not in matrices]
        vectors += self.probes.parameters()
        self.adam = torch.optim.AdamW(vectors, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)

    def save(self) -> None:
        """Write beside, then rename: a stopped run leaves a whole checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "probes": self.probes.state_dict(),
            "momentum": self.muon.momentum,
            "adam": self.adam.state_dict(),
            "progress": asdict(self.progress),
            "config": asdict(self.model.config),
        }
        beside = self.checkpoint.with_suffix(".partial")
        torch.save(state, beside)
        beside.replace(self.checkpoint)

    def resume(self) -> None:
        """Continue from the checkpoint."""
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        self.muon.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])
        self.progress = Progress(**state["progress"])

    def step(self, batch: Batch, share: float) -> tuple[float, float]:
        """One update; returns the loss and the probes' loss, in nats."""
        states, _ = self.model.states(batch.tokens[:, :-1])
        loss = weighted_loss(self.model, states, batch)
        probe_loss = self.probes(states, batch)
        (loss + self.stage.probe_weight * probe_loss).backward()
        self.muon.step(self.stage.matrix_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self.stage.vector_rate * share
        self.adam.step()
        self.adam.zero_grad()
        self.progress.step += 1
        self.progress.tokens += batch.tokens.numel()
        return float(loss.detach()), float(probe_loss.detach())


def train(
    run: Run,
    maker: data.SampleMaker,
    tokenizer: Tokenizer,
    held_out: dict[str, list[Batch]],
    options: argparse.Namespace,
) -> None:
    """Until the minutes are over: make a pool of rows, learn from it, report now and then."""
    limit = options.minutes * 60
    last = time.monotonic()
    print(check(run.model, held_out), flush=True)
    while run.progress.seconds < limit:
        rng = random.Random(f"{options.seed}:{options.stage}:{run.progress.pool}")
        share = run.progress.seconds / limit
        rows = [training_row(rng, maker, tokenizer, options.stage, share) for _ in range(POOL_ROWS)]
        rows = [row for row in rows if len(row.tokens) <= run.model.config.context_tokens]
        run.progress.pool += 1
        for batch in batches(rows, options.batch_tokens, rng, run.stage):
            share = min(1.0, run.progress.seconds / limit)
            losses = run.step(batch, rate_share(share, run.progress.step, run.stage.steady_share))
            now = time.monotonic()
            run.progress.seconds += now - last
            last = now
            if run.progress.step % 20 == 0:
                report(run.progress, losses)
            if run.progress.step % options.check_every == 0:
                print(check(run.model, held_out), flush=True)
                run.save()
    run.save()
    print(check(run.model, held_out), flush=True)


def report(progress: Progress, losses: tuple[float, float]) -> None:
    """One line of progress."""
    minutes = progress.seconds / 60
    rate = progress.tokens / max(progress.seconds, 1e-9)
    print(
        f"step {progress.step}, {minutes:.1f} min, {progress.tokens / 1e6:.2f} M tokens, "
        f"{rate:.0f} tokens/s, loss {losses[0]:.3f}, probes {losses[1]:.3f}",
        flush=True,
    )


def main() -> None:
    """Start, or resume, and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed if it exists")
    parser.add_argument("--start-from", type=Path, help="Hugging Face folder to begin with")
    parser.add_argument("--stage", type=int, choices=sorted(STAGES), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--begin-at", type=float, default=0.0, help="share of the schedule")
    parser.add_argument("--frozen-layers", type=int, default=0, help="lowest layers to keep")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--check-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    training, held_out = data.split_senses(data.read_wordnet(options.wordnet), data.HELD_OUT_LIST)
    tokenizer = Tokenizer(options.tokenizer)
    model = Decoder(FAMILIES[options.family])
    model.freeze(options.frozen_layers)
    run = Run(model, STAGES[options.stage], options.checkpoint)
    if options.checkpoint.exists():
        run.resume()
    else:
        run.progress.seconds = options.begin_at * options.minutes * 60
        if options.start_from:
            run.model.load_exported(options.start_from)
    train(
        run, data.SampleMaker(training), tokenizer, held_out_batches(held_out, tokenizer), options
    )


if __name__ == "__main__":
    main()
