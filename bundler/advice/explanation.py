"""Why a plan is as it is, as values: what `plan --explain` says and `plan --json` carries."""

from __future__ import annotations

from typing import Literal

from bundler.value import Value

EVERY_LIMIT = "every limit"
"""What `More.limit` says of all limits together."""
GiveUpKind = Literal["leave-out", "fewer-users", "kv-cache", "take-turns", "shorter-context"]
RemedyKind = Literal[
    "more-memory", "larger-stick", "more-download", "shorter-context", "fewer-users", "kv-cache",
    "take-turns", "smaller-quant", "placement", "slower", "leave-out", "leave-out-corpus",
]  # fmt: skip


class Taken(Value):
    """One way to have a model."""

    quant: str
    kv_cache: str
    gpu_layers: int
    """Layers on the accelerator; -1 for all."""
    residency: Literal["resident", "on-demand"]
    context_tokens: int
    parallel: int
    damage: float
    """Expected mean KL divergence in nats, unweighted; 0 as published."""
    memory_bytes: int
    """Of all memories of its machine together."""
    disk_bytes: int
    tokens_per_second: float
    """Predicted; 0 when unknown."""


class Shortage(Value):
    """A limit that is exceeded."""

    limit: str
    """`VRAM`, `VRAM 2`, `RAM`, `disk`, `download`."""
    tier: str = ""
    """The machine whose memory it is; empty for what all share, and for the only machine."""
    missing_bytes: int


class Changed(Value):
    """What would be another way for one model; `before` or `after` is None where it is left out."""

    model: str
    tier: str = ""
    before: Taken | None
    after: Taken | None


class RunnerUp(Value):
    """The nearest way that was not taken, and why not."""

    taken: Taken
    better: bool
    """Whether it would do less damage; otherwise it is the next worse one."""
    missing: tuple[Shortage, ...]
    """What it would exceed beside the other models as they are; empty where it would fit."""
    instead: tuple[Changed, ...] = ()
    """What the other models would have to give up for it; empty where even that is not enough."""
    costs: float | None = None
    """Weighted damage that taking it would add over all models; None where it cannot be had."""


class Bought(Value):
    """A step between two ways to have a model."""

    limit: str
    """What `more_bytes` are of: the tightest limit where it binds this model, else `memory`."""
    worse: Taken
    better: Taken
    more_bytes: int
    less_damage: float
    less_damage_per_gib: float


class ModelExplanation(Value):
    """One model on one machine."""

    model: str
    tier: str = ""
    role: str
    taken: Taken
    runner_up: RunnerUp | None
    last_step: Bought | None
    """What the last of its memory bought: the step up to what was taken."""
    next_step: Bought | None
    """What more memory would buy: the step up from it."""


class LimitUse(Value):
    """One limit and how much of it is taken."""

    limit: str
    tier: str = ""
    used_bytes: int
    capacity_bytes: int | None

    @property
    def free_bytes(self) -> int | None:
        """What is left, None where there is no limit."""
        return None if self.capacity_bytes is None else self.capacity_bytes - self.used_bytes


class More(Value):
    """What more of one limit would change; nothing where `changes` is empty."""

    limit: str
    """`every limit` for all of them together, which is asked where none buys anything alone."""
    tier: str = ""
    more_bytes: int
    changes: tuple[Changed, ...]
    less_damage: float
    """Weighted, over all models. A model that comes back counts as a change, not here."""


class GiveUp(Value):
    """Something the recipe could do without, and what the other models would gain by it."""

    kind: GiveUpKind
    model: str
    edit: str
    """As it would stand in the recipe: `models.chat.parallel = 2`."""
    changes: tuple[Changed, ...]
    less_damage: float
    """Weighted, over the models that stay."""


class Remedy(Value):
    """One change with which a recipe that did not fit does; found by solving it anew."""

    kind: RemedyKind
    edits: tuple[str, ...]
    """As they would stand in the recipe, or in words where it is the machine that must change."""
    size: float
    """How much is asked, for ranking: 0 is nothing, 1 is a whole model given up."""
    more_bytes: int = 0
    """Of a limit that is raised, the least that helps."""


class TierExplanation(Value):
    """One machine."""

    tier: str
    machine: str
    models: tuple[ModelExplanation, ...]
    limits: tuple[LimitUse, ...]
    """Its memories; what all machines share stands in the explanation itself."""


class Explanation(Value):
    """Why the plan is as it is, and what would change it."""

    tiers: tuple[TierExplanation, ...]
    shared: tuple[LimitUse, ...]
    """Limits of all machines together: disk and download."""
    tightest: LimitUse | None
    """The limit of which 1 GiB more buys most; where none buys anything, the fullest."""
    more: tuple[More, ...]
    """What 1, 2 and 4 GiB more of each limit would buy."""
    give_up: tuple[GiveUp, ...]
    """What helps most first."""
    unasked: tuple[str, ...] = ()
    """Models that were not asked to give anything up: in a large recipe, the small ones."""
    left_out: tuple[Changed, ...] = ()
    """Optional models that the plan does without."""
    proved_best: bool = True
    """Whether no other choice is better; False where the search stopped at a small gap."""
