"""Short real runs of the training command, for the tests that need one."""
import pathlib

from simclr_jax.train.__main__ import main
from simclr_jax.train.log import read_rows

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ["--config.batch=64", "--config.steps=6", "--config.nets.backbone.channels=(4,8)", "--config.optim.name=sgd",
         "--config.optim.lr=0.1", "--config.optim.warmup_epochs=0.1", "--config.log_every=1",
         "--config.checkpoint.every=2", "--config.evals.every=0", "--config.pictures=false"]


def train(workdir, *more, small=SMALL):
    main(["train", f"--config={ROOT}/configs/simclr_digits.py", f"--workdir={workdir}", *small, *more])


def numbers(workdir):
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "data_wait")}
            for row in read_rows(workdir / "metrics.jsonl")]
