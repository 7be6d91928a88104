"""Prepares a run for an owner to host, on any network: `python -m subnet.prepare --run-dir DIR`.

    --text FILE --preset laptop --stages 3 --miners 6 --epochs 100 --seed 7

Makes the tokens, the first parameters and the opening record, prints what was made and the command that hosts it. No
wallets: the owner has one. Its own process, because hosting must not carry what preparing needs. Exit codes: 0 done,
2 the operator must act (one line says how).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from subnet import config
from subnet.config import Config
from subnet.data.prepare import Prepared
from subnet.errors import ConfigError
from subnet.localnet.folder import RunFolder, make_writable
from subnet.localnet.prepare import make
from subnet.orchestrator import opening
from subnet.protocol.messages import RunOpened
from subnet.runtime import SystemRuntime

PROGRAM = "python -m subnet.prepare"
RUN_NAME = "run"


class PrepareConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.prepare`: makes what a run needs before its owner hosts it."""

    run_dir: Annotated[str, Meta(description="folder to make the run in", extra={"metavar": "DIR"})]
    text: Annotated[
        str,
        Meta(
            description="text file, or folder of .txt files, to train on; default: the King James Bible",
            extra={"metavar": "PATH"},
        ),
    ] = ""
    preset: Annotated[
        str, Meta(description="model and rules to run: a name in subnet.presets", extra={"metavar": "NAME"})
    ] = "laptop"
    stages: Annotated[int, Meta(description="stages the model is cut into", ge=1, le=64)] = 3
    miners: Annotated[int, Meta(description="miners that are expected; more or fewer may come", ge=1, le=4096)] = 6
    epochs: Annotated[int, Meta(description="epochs until the run is finished", ge=1, le=100_000)] = 100
    seed: Annotated[int, Meta(description="seed of the data order and the first parameters", ge=0, le=2**31)] = 7
    micro_batch_size: Annotated[int, Meta(description="B, sequences in a micro-batch", ge=1, le=1024)] = 8
    seq_len: Annotated[int, Meta(description="T, tokens in a sequence", ge=8, le=65_536)] = 128
    num_microbatches_min: Annotated[
        int,
        Meta(
            description="B_min, micro-batches each miner does before its stage merges; 0: the preset's",
            ge=0,
            le=100_000,
        ),
    ] = 0
    audit_rate: Annotated[
        float,
        Meta(
            description="share of the settled miners' epochs to audit, 0 to 1; -1: the preset's",
            ge=-1,
            le=1,
            extra={"metavar": "SHARE"},
        ),
    ] = -1.0
    cache_dir: Annotated[
        str, Meta(description="folder for tokenised text, shared by all runs", extra={"metavar": "DIR"})
    ] = "runs/.cache"

    def __post_init__(self) -> None:
        if self.miners < self.stages:
            remedy = f"give at least {self.stages}, or fewer --stages"
            raise ConfigError("--miners", f"{self.miners} cannot fill {self.stages} stages", remedy)


def prepare(settings: PrepareConfig) -> str:
    """Make the run; what to tell the operator. Raises ConfigError."""
    folder = RunFolder(Path(settings.run_dir).expanduser().absolute())
    if folder.opening.exists():
        raise ConfigError("--run-dir", f"{folder.root} already holds a run", "host it, or name another folder")
    order = opening.order_of(settings)
    opening.choose(order)  # mistakes are told before anything is made
    make_writable("--run-dir", folder.root)
    opened, prepared = make(folder, order, RUN_NAME, SystemRuntime())
    return summary(folder, opened, prepared)


def summary(folder: RunFolder, opened: RunOpened, prepared: Prepared) -> str:
    """What was made, and the next command."""
    spec = opened.spec
    sizes = " + ".join(f"{stage.num_params / 1e6:.2f}M" for stage in spec.stages)
    return f"""\
run {spec.run_id} in {folder.root}
  text     {prepared.name}: {prepared.num_train_tokens:,} tokens to train on, {prepared.num_validation_tokens:,} \
held out, vocabulary {prepared.vocab_size:,}
  model    {spec.num_stages} stages of {sizes} parameters
  epochs   {opened.target_epochs}, each of {spec.merge.num_microbatches_min} micro-batches of \
{spec.data.micro_batch_size} x {spec.data.seq_len} tokens a miner
  RunSpec  {spec.digest()}
host it with the wallet and hotkey that own subnet N:
  python neurons/validator.py --netuid N --network finney --wallet NAME --wallet-hotkey HOTKEY \
--host-orchestrator --run-dir {folder.root} --host 0.0.0.0 --public-url http://ADDRESS:8091
"""


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        sys.stdout.write(prepare(config.parse(PrepareConfig, argv, PROGRAM)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
