"""Train six steps on 1, 2 and 4 simulated devices and print losses, norms and layout as JSON.

This is a separate process because the number of devices is set before JAX is imported.
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from headway.jax import gpt, sharding
from headway.jax.train import Trainer
from headway.models.gpt import preset
from headway.training.settings import TrainingConfig

TEXT = np.tile([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 5, 3, 1], 40)
SIZES = {"vocabulary": 12, "context": 8, "width": 16, "layers": 1, "attention": {"heads": 4}}
CONFIG = preset("modern", SIZES, dropout=0.1)


def main():
    # 8 windows per step, in micro-batches of 4
    training = TrainingConfig(
        *(6, 8, 4), learning_rate=0.01, optimizer="muon", evaluate_every=3, precision="float32"
    )
    model = gpt.Model(gpt.init(CONFIG, 0), CONFIG)
    layouts = {"devices": len(jax.devices())}
    for devices, full in ((1, False), (2, True), (4, False), (4, True)):
        layout = sharding.over(jax.devices()[:devices], full=full)
        trainer = Trainer(model, TEXT[:450], TEXT[450:], training, layout)
        steps = [trainer.advance() for _ in range(6)]
        name = "blocks.0.mlp.up.weight"
        state = trainer._state
        momentum = state.optimizer.inner_states["muon"].inner_state[0].momentum
        layouts[f"{devices} {'full' if full else 'copied'}"] = {
            "losses": [step.loss for step in steps],
            "validation": [step.validation for step in steps],
            "norms": [step.gradient_norm for step in steps],
            "share": {
                name_: array.addressable_shards[0].data.size / array.size
                for name_, array in (("weights", state.params[name]), ("momentum", momentum[name]))
            },
            "device": trainer.device,
            "weights": float(sum(np.abs(a).sum() for a in trainer.state()["model"].values())),
        }
    print(json.dumps(layouts))


if __name__ == "__main__":
    main()
