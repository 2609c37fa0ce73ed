"""A child's job for tests: a model's logits as numbers."""

from pathlib import Path

import numpy as np

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.session import open_context, open_model


def logits_job(arguments, report):
    """Child job: leave the logits behind each token, [tokens, vocabulary]; say what ran where.

    Arguments: model, gpu, tokens (ids), output (a .npy file).
    """
    tokens = arguments["tokens"]
    with (
        open_model(Path(arguments["model"]), gpu=arguments["gpu"]) as model,
        open_context(model, context_tokens=256, batch_tokens=len(tokens)) as context,
    ):
        context.decode(tokens, logits_from=0)
        np.save(arguments["output"], context.logits(len(tokens)))
        devices = [device._asdict() for device in native.devices()]
        return {"offloaded": model.layers_offloaded, "devices": devices}
