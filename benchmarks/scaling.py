"""What a CLP step needs of TPU v5e slices of 1 to 256 chips: memory per chip and estimated seconds.

  python benchmarks/scaling.py --rows=rows.jsonl            # compiles; hours for all rows
  python benchmarks/scaling.py --rows=rows.jsonl --tables   # prints what is there, as Markdown

Needs libtpu (`pip install -e '.[tpu]'`) and no TPU. Arrays are counted at full depth. Compiling an
update of many layers takes a quarter of an hour, and all layers are alike: each program is compiled
with 2 + 2 and 4 + 4 layers, and its memory, FLOPs and seconds are continued along the line through
both, which is right for seconds within some percent and can be far too little for the memory of
`update` (docs/scaling.md). `--layers=full` compiles all layers instead.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

GIB = 2**30
DEPTHS = (2, 4)
NUMBERS = ("working_bytes", "code_bytes", "flops", "compute_seconds", "communication_seconds")
BINDINGS = (
    "TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 64}",
    "ACTIVATION_DTYPE='bfloat16'",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row: what is trained, and on how many chips."""

    policy: str
    reward: str
    subset: str
    objectives: int
    topology: str
    remat_policy: str = "none"


def settings() -> Iterator[Setting]:
    """The rows, the most informative first."""
    yield Setting("base", "large", "attn", 2, "v5e:4x4")
    yield Setting("base", "large", "attn", 2, "v5e:2x2")
    yield Setting("large", "large", "attn", 2, "v5e:4x4")
    yield Setting("base", "large", "full", 2, "v5e:4x4")
    yield Setting("base", "large", "attn", 3, "v5e:4x4")
    yield Setting("base", "large", "attn", 2, "v5e:8x8")
    yield Setting("base", "large", "logit", 2, "v5e:4x4")
    yield Setting("large", "large", "attn", 2, "v5e:8x8")
    yield Setting("base", "large", "attn", 2, "v5e:16x16")
    yield Setting("base", "large", "attn", 2, "v5e:1x1")
    for policy, reward, remat in (
        ("base", "large", "none"),
        ("large", "large", "none"),
        ("xl", "xxl", "full"),
    ):
        for subset in ("attn", "full", "logit"):
            for objectives in (2, 3):
                for shape in ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"):
                    yield Setting(policy, reward, subset, objectives, f"v5e:{shape}", remat)


def configured(setting: Setting, layers: int | None = None):
    """The run of a row; with fewer layers, rewards included, where a number is given."""
    from clp_jax.planning import stand_ins
    from clp_jax.settings import gin_config

    rewards = ("nli", "tldr", "third")[: setting.objectives]
    bindings = [
        *BINDINGS,
        f"REWARDS={rewards!r}",
        f"t5.T5Config.remat_policy={setting.remat_policy!r}",
    ]
    files = [f"gin/clp_{setting.subset}.gin", "gin/xsum.gin", f"gin/models/{setting.policy}.gin"]
    gin_config.load(files, bindings)
    stand_ins.bind([f"{name}={setting.reward}" for name in rewards], without_files=True)
    run = gin_config.configured_run()
    if layers is None:
        return run
    for entry in run.model.rewards.rewards:
        model = entry.reward.model
        entry.reward.model = dataclasses.replace(model, module=shallow(model.module, layers))
    model = dataclasses.replace(run.model, module=shallow(run.model.module, layers))
    return dataclasses.replace(run, model=model)


def shallow(module, layers: int):
    """The network with that many layers in encoder and decoder each."""
    config = dataclasses.replace(
        module.config, num_encoder_layers=layers, num_decoder_layers=layers
    )
    return module.clone(config=config)


def measured(setting: Setting, full: bool) -> dict:
    """A row's figures, for the cut that communicates least among those that fit."""
    from clp_jax.planning import planner, topology

    limit = topology.V5E.usable_hbm_bytes
    row = {**dataclasses.asdict(setting), "fits": False}
    run = configured(setting)
    candidates = [c for c in planner.accounted(run, setting.topology) if not c.problem]
    # Gradients and optimizers' updates of the policy and the value network come on top.
    for candidate in candidates:
        row |= {
            "num_partitions": candidate.num_partitions,
            "fully_sharded": candidate.fully_sharded,
            "arrays": candidate.resident_bytes,
        }
        if candidate.resident_bytes > 0.75 * limit and candidate is not candidates[-1]:
            continue
        programs = planned(setting, candidate, full)
        row |= {
            "programs": programs,
            "peak": candidate.resident_bytes
            + max(p["working_bytes"] for p in programs)
            + sum(p["code_bytes"] for p in programs),
            "seconds": sum(p["compute_seconds"] + p["communication_seconds"] for p in programs),
        }
        row["fits"] = row["peak"] <= limit
        if row["fits"]:
            return row
    return row


def planned(setting: Setting, candidate, full: bool) -> list[dict]:
    """Figures of each program at full depth."""
    from clp_jax.planning import planner

    def at(layers: int | None):
        run = dataclasses.replace(
            configured(setting, layers),
            num_partitions=candidate.num_partitions,
            fully_sharded=candidate.fully_sharded,
        )
        return planner.plan(run, setting.topology, lambda text: print(text, file=sys.stderr))

    if full:
        return [dataclasses.asdict(p) for p in at(None).programs]
    run = configured(setting)
    depths = {"policy": run.model.module.config.num_encoder_layers}
    depths |= {
        f"reward {e.name}": e.reward.model.module.config.num_encoder_layers
        for e in run.model.rewards.rewards
    }
    few, more = (at(layers).programs for layers in DEPTHS)
    rows = []
    for a, b in zip(few, more, strict=True):
        depth = depths.get(a.name, depths["policy"])
        share = (depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
        values = {n: getattr(a, n) + share * (getattr(b, n) - getattr(a, n)) for n in NUMBERS}
        rows.append({"name": a.name, **values})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    header = (
        "policy", "rewards", "S", "m", "slice", "chips", "data x model", "layers compiled",
        "arrays, GiB", "all, GiB", "fits", "s per step",
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]

    def order(row: dict) -> tuple:
        sizes = ("base", "large", "xl")
        return sizes.index(row["policy"]), row["subset"], row["objectives"], chips(row)

    for row in sorted(rows, key=order):
        cut = row.get("num_partitions")
        shape = f"{chips(row) // cut} x {cut}" if cut else "none"
        shape += ", fully sharded" if row.get("fully_sharded") else ""
        layers = "all" if row["layers"] == "full" else " and ".join(f"{n} + {n}" for n in DEPTHS)
        figures = [f"{row[name] / GIB:.2f}" if name in row else "" for name in ("arrays", "peak")]
        seconds = f"{row['seconds']:.3f}" if row["fits"] else ""
        lines.append(
            f"| {row['policy']} | {row['reward']} | {row['subset']} | {row['objectives']} | "
            f"{row['topology']} | {chips(row)} | {shape} | {layers} | {figures[0]} | "
            f"{figures[1]} | {'yes' if row['fits'] else 'no'} | {seconds} |"
        )
    return "\n".join(lines)


def chips(row: dict) -> int:
    """How many a row's slice has."""
    long, wide = row["topology"].removeprefix("v5e:").split("x")
    return int(long) * int(wide)


def main(argv: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", required=True, help="JSONL file: read, and added to")
    parser.add_argument("--tables", action="store_true", help="print the rows that are there")
    parser.add_argument("--layers", choices=("few", "full"), default="few")
    parser.add_argument("--first", type=int, help="only so many rows")
    flags = parser.parse_args(argv)
    path = pathlib.Path(flags.rows)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if flags.tables:
        print(table(rows))
        return
    from clp_jax.planning import topology

    topology.prepare()
    fields = [field.name for field in dataclasses.fields(Setting)]
    done = {(*(row[name] for name in fields), row["layers"]) for row in rows}
    for setting in list(dict.fromkeys(settings()))[: flags.first]:
        if (*dataclasses.astuple(setting), flags.layers) in done:
            continue
        print(setting, file=sys.stderr)
        row = {"layers": flags.layers, **measured(setting, flags.layers == "full")}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
