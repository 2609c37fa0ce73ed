"""What proofs measured, held against what engines offer. Pure: values in, values out.

What is measured is believed as far as it carries:

- **Quality** belongs to the model, whatever device it ran on. A quant that was measured has its
  measured mean KL divergence; the model's other quants keep the order of their predictions and are
  scaled by how this model took quantization (geometric mean of measured by predicted), since models
  differ by a factor of two or three and quants of one model do not.
- **Memory** belongs to a backend. A larger peak than was predicted is believed on the same kind of
  device; a smaller one only from the driver's own account on the target's own card, with every
  context full, and only as far as it concerns what the backend takes for itself: weights, caches
  and buffers are arithmetic. No plan becomes bolder by a proof on another kind of device.
- **Speed** belongs to a card. It replaces the prediction on the target's own card only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log

from bundler.feedback.device_names import is_own_device
from bundler.feedback.measurements import Known, runs_alike
from bundler.hardware import Target
from bundler.lock import Measurement
from bundler.plan import Memory, Offer

# Below it a mean KL divergence is rounding (F16 against itself: 0.00055 in llama-perplexity, whose
# reference has 16 bits; ours are whole); it keeps logarithms finite.
_LEAST_NATS = 1e-6
# A model is believed to take quantization this much better or worse than the table's, not more:
# published models lie within a factor of three; a figure beyond eight is a fault of one quant.
_MOST_TIMES = 8.0
# Of the bandwidth bound, real engines reach between a tenth and all.
_LEAST_EFFICIENCY = 0.1
# How far an unmeasured quant keeps from its measured neighbours, as a power of the predictions'
# ratio: just enough for the order to stay strict.
_HAIR = 0.01


# -- what follows for offers -----------------------------------------------------------------------


def informed(offers: Sequence[Offer], known: Known, target: Target) -> list[Offer]:
    """Return the offers with what was measured in place of what was predicted, both to be seen.

    See the module's text for what is believed; `Offer.measured`, `predicted_quality`,
    `predicted_memory` and `predicted_tokens_per_second` say where it was.
    """
    if not known.measurements:
        return list(offers)
    made = [known.making_of(offer) for offer in offers]
    exact = [
        [one for one in known.of_making(made_by) if runs_alike(one, offer)]
        for made_by, offer in zip(made, offers, strict=True)
    ]
    qualities = _qualities(offers, made, known)
    speeds = _speeds(offers, exact, target)
    return [
        _informed(offer, own, quality, speed, target)
        for offer, own, quality, speed in zip(offers, exact, qualities, speeds, strict=True)
    ]


def _informed(
    offer: Offer, own: Sequence[Measurement], quality: float, speed: float, target: Target
) -> Offer:
    update: dict[str, object] = {}
    if own:
        update["measured"] = max(
            own,
            key=lambda one: (is_own_device(one.device, target), one.asked_tokens, one.key),
        )
    if quality != offer.quality:
        update |= {"quality": quality, "predicted_quality": offer.quality}
    memory = measured_memory(offer, own, target)
    if memory != offer.memory:
        update |= {"memory": memory, "predicted_memory": offer.memory}
    if speed != offer.tokens_per_second:
        update |= {
            "tokens_per_second": speed,
            "predicted_tokens_per_second": offer.tokens_per_second,
        }
    return offer.model_copy(update=update) if update else offer


# -- quality ---------------------------------------------------------------------------------------


def _qualities(offers: Sequence[Offer], made: Sequence[str], known: Known) -> list[float]:
    """Return each offer's damage: measured, or predicted and scaled to this model."""
    best = _quality_by_making(known)
    if not best:
        return [offer.quality for offer in offers]
    predicted = {
        made_by: max(one.predicted_quality - one.predicted_kv_cache_quality, 0.0)
        for made_by, one in best.items()
    } | {made_by: _weights_part(offer) for made_by, offer in zip(made, offers, strict=True)}
    points = [
        (predicted[made_by], max(_measured_weights(one), _LEAST_NATS))
        for made_by, one in sorted(best.items())
        if predicted[made_by] > _LEAST_NATS
    ]
    found = []
    for made_by, offer in zip(made, offers, strict=True):
        own = [one for one in known.of_making(made_by) if one.kv_cache == offer.kv_cache]
        exact = _best_quality(own, known)
        if exact is not None and exact.quality is not None:
            found.append(max(exact.quality.kld_mean, 0.0))
        elif made_by in best:
            found.append(_measured_weights(best[made_by]) + offer.kv_cache_quality)
        else:
            found.append(scaled(_weights_part(offer), points) + offer.kv_cache_quality)
    return found


def _weights_part(offer: Offer) -> float:
    return max(offer.quality - offer.kv_cache_quality, 0.0)


def _quality_by_making(known: Known) -> dict[str, Measurement]:
    found = {}
    for made_by in sorted({one.made_by for one in known.measurements}):
        best = _best_quality(known.of_making(made_by), known)
        if best is not None:
            found[made_by] = best
    return found


def _best_quality(given: Iterable[Measurement], known: Known) -> Measurement | None:
    """Return the measurement of quality over the most tokens, none when there is none to compare."""
    usable = [one for one in given if one.quality is not None and known.tells_quality(one)]
    return max(usable, key=lambda one: (one.asked_tokens, one.key), default=None)


def _measured_weights(one: Measurement) -> float:
    """Return what a model's weights lost: all that was measured less what its cache was to cost.

    The reference runs with an F16 cache, so a quantized one is part of what was measured.
    """
    total = max(one.quality.kld_mean, 0.0) if one.quality is not None else 0.0
    return max(total - one.predicted_kv_cache_quality, min(total, _LEAST_NATS))


def scaled(predicted: float, points: Sequence[tuple[float, float]]) -> float:
    """Return a prediction scaled to a model of which other quants were measured.

    Args:
        predicted: damage predicted for a quant that was not measured.
        points: (predicted, measured) of quants that were; both positive.

    The factor is the geometric mean of measured by predicted. Measured quants stay where they are:
    one that was predicted to be better than a measured one stays (a hair) better than it, and one
    that was predicted worse stays worse. So the order of predictions is kept.
    """
    if not points:
        return predicted
    mean = sum(log(measured / foreseen) for foreseen, measured in points) / len(points)
    value = predicted * exp(min(max(mean, -log(_MOST_TIMES)), log(_MOST_TIMES)))
    for foreseen, measured in points:
        if foreseen < predicted:
            value = max(value, measured * (predicted / foreseen) ** _HAIR)
    for foreseen, measured in points:
        if foreseen > predicted > 0:
            value = min(value, measured * (predicted / foreseen) ** _HAIR)
    return value


# -- memory ----------------------------------------------------------------------------------------


def measured_memory(offer: Offer, own: Iterable[Measurement], target: Target) -> Memory:
    """Return an offer's memory with what measurements of it add, or the driver's word for it.

    Args:
        offer: as the engine predicts it.
        own: measurements of exactly this offer.
        target: the machine it is for.
    """
    memory = offer.memory
    alike = [one for one in own if _placed_alike(one, offer, target)]
    certain = [
        _needed_bytes(one, memory)
        for one in alike
        if one.device.peak_memory_source == "nvml"
        and one.context_filled
        and len(memory.by_device) <= 1
        and is_own_device(one.device, target)
    ]
    if certain:
        return _with_total(memory, max(*certain, _arithmetic_bytes(memory)))
    peak = max((_needed_bytes(one, memory) for one in alike), default=0)
    return _with_total(memory, peak) if peak > memory.total_bytes else memory


def _placed_alike(one: Measurement, offer: Offer, target: Target) -> bool:
    """Tell whether a proof ran where the offer would: the same backend, as many layers on it."""
    device = one.device
    if target.accelerator == "none" or offer.gpu_layers == 0:
        return device.kind == "cpu"
    layers = device.total_layers
    wanted = layers if offer.gpu_layers < 0 else min(offer.gpu_layers, layers)
    return device.kind == target.accelerator and layers > 0 and device.offloaded_layers == wanted


def _needed_bytes(one: Measurement, memory: Memory) -> int:
    """Return what a peak means for a plan: a backend's own account leaves out what it is itself."""
    source = one.device.peak_memory_source
    own = 0 if source.startswith("nvml") else memory.overhead_bytes
    return one.device.peak_memory_bytes + own if one.device.peak_memory_bytes else 0


def _arithmetic_bytes(memory: Memory) -> int:
    return memory.total_bytes - memory.overhead_bytes


def _with_total(memory: Memory, total_bytes: int) -> Memory:
    """Return memory of another total: what is not weights, cache or buffers is the backend's."""
    more = total_bytes - memory.total_bytes
    update: dict[str, object] = {"overhead_bytes": memory.overhead_bytes + more}
    if memory.by_device:
        share, rest = divmod(more, len(memory.by_device))
        update["by_device"] = tuple(
            size + share + (index < rest) for index, size in enumerate(memory.by_device)
        )
    return memory.model_copy(update=update)


# -- speed -----------------------------------------------------------------------------------------


def _speeds(
    offers: Sequence[Offer], exact: Sequence[Sequence[Measurement]], target: Target
) -> list[float]:
    """Return each offer's speed: measured on the target's own card, or as predicted, scaled."""
    own = [
        max((_speed_there(one, offer, target) for one in found), default=0.0)
        for offer, found in zip(offers, exact, strict=True)
    ]
    reached = [
        log(speed / offer.tokens_per_second)
        for speed, offer in zip(own, offers, strict=True)
        if speed > 0 and offer.tokens_per_second > 0
    ]
    mean = exp(sum(reached) / len(reached)) if reached else 1.0
    # The prediction is an upper bound: no measurement makes others faster than it.
    efficiency = min(max(mean, _LEAST_EFFICIENCY), 1.0)
    return [
        speed or offer.tokens_per_second * efficiency
        for speed, offer in zip(own, offers, strict=True)
    ]


def _speed_there(one: Measurement, offer: Offer, target: Target) -> float:
    fits = _placed_alike(one, offer, target) and is_own_device(one.device, target)
    return one.speed.generation_tokens_per_second if fits and one.speed.generated_tokens else 0.0
