"""`python -m simclr_jax.plan --doctor`: whether a run can start here."""
import sys

from simclr_jax.command import command
from simclr_jax.errors import UsageError
from simclr_jax.plan import doctor


def main(argv: list[str]) -> None:
    if "--doctor" not in argv:
        raise UsageError("nothing asked for; wanted --doctor")
    doctor.main(argv)


if __name__ == "__main__":
    command(main)
