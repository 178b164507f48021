"""`python -m simclr_jax.plan --config=FILE --topology=v3:8x8`: what a run needs and how long it takes at least.

`--doctor` says whether a run can start here.
"""
import json
import sys

from simclr_jax.errors import UsageError
from simclr_jax.plan import environment

OPTIONS = dict(topology="local", examples=0, json=False, search=False, largest=True, compile=True,
               keep="")


def main(argv: list[str]) -> None:
    if "--doctor" in argv:
        from simclr_jax.plan import doctor
        return doctor.main(argv)
    from etils import epath
    from simclr_jax import build, config as configs
    from simclr_jax.plan import largest, measure, report, search, topology
    config, flags = configs.parse(argv, **OPTIONS)
    configs.check(config)
    if flags["examples"] < 0:
        raise UsageError(f"--examples={flags['examples']}: wanted their number, or 0 if it is not known")
    if flags["topology"] == "local":  # the devices that training would have here
        build.start_devices(build.cpu_devices(config))
    devices = topology.devices(flags["topology"])
    given = dict(devices=devices, topology=flags["topology"], examples=flags["examples"])
    say = (lambda line: print(line, file=sys.stderr)) if flags["json"] else lambda line: print(line, flush=True)
    if flags["search"]:
        result = search.run(config, say=say, **given)
    else:
        keep = epath.Path(flags["keep"]) if flags["keep"] else None
        result = measure.run(config, compile=flags["compile"], keep=keep, **given)
        if flags["largest"] and flags["compile"]:
            result |= largest.find(config, result, **given)
    print(json.dumps(result) if flags["json"] else report.text(result), flush=True)


if __name__ == "__main__":
    given = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--topology=")]
    environment.prepare_or_exit(given[-1] if given else OPTIONS["topology"])
    from simclr_jax.life import command  # knows jax
    command(main)
