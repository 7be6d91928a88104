"""Text from the last checkpoint of a stopped local run.

    python -m subnet.localnet.sample --run-dir DIR --prompt "In the beginning"

Its own process, so that the launcher never loads torch. Writes sample.txt into the run folder. Law: the merged
parameters that the journal names, checked against their digests; sampling is seeded, so a checkpoint has one text.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from tokenizers import Tokenizer

from subnet import config
from subnet.config import Config
from subnet.errors import ConfigError
from subnet.localnet.folder import RunFolder
from subnet.localnet.record import fold
from subnet.merging import compression
from subnet.model.evaluate import continue_tokens
from subnet.protocol.ids import Digest, Values
from subnet.protocol.keys import ObjectKey
from subnet.runtime import SystemRuntime
from subnet.storage.base import ObjectStore
from subnet.storage.files import FileObjectStore
from subnet.storage.sql import SqlJournal

NUM_TOKENS = 80
TEMPERATURE = 0.7


class SampleConfig(Config, frozen=True, kw_only=True):
    """`python -m subnet.localnet.sample`: text from a run's last checkpoint."""

    run_dir: Annotated[str, Meta(description="folder of the run", extra={"metavar": "DIR"})]
    prompt: Annotated[str, Meta(description="how the text begins", min_length=1)]
    device: config.Device = "cpu"


async def sample(folder: RunFolder, prompt: str, device: str) -> str:
    """`prompt` and what follows it. Raises ConfigError when the run is not whole."""
    runtime = SystemRuntime()
    journal = await SqlJournal.open(f"sqlite:///{folder.journal}")
    store = FileObjectStore(folder.objects, "http://unused", runtime.random_bytes(32), runtime.now)
    try:
        state = (await fold(journal)).state
        spec = state.spec
        parameters = [
            compression.decode(
                await _checked(store, stage.parameters.key, stage.parameters.digest),
                Values.FP32,
                spec.stages[stage.stage].num_params,
            )
            for stage in state.stages
        ]
        file = spec.data.tokenizer
        tokenizer = Tokenizer.from_str((await _checked(store, file.key, file.digest)).decode())
    finally:
        store.close()
        await journal.close()
    begun = tokenizer.encode(prompt).ids
    tokens = continue_tokens(
        spec, parameters, begun, NUM_TOKENS, temperature=TEMPERATURE, seed=spec.seed, device=device
    )
    return str(tokenizer.decode(tokens))


async def _checked(store: ObjectStore, key: ObjectKey, digest: Digest) -> bytes:
    try:
        data = await store.get(key)
    except KeyError:
        raise ConfigError("--run-dir", f"the object {key} is missing", "name the folder of a whole run") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError("--run-dir", f"the object {key} is damaged", "name the folder of a whole run")
    return data


def main(argv: Sequence[str]) -> int:
    with config.one_line_errors():
        asked = config.parse(SampleConfig, argv, "python -m subnet.localnet.sample")
        folder = RunFolder(Path(asked.run_dir).expanduser().absolute())
        text = asyncio.run(sample(folder, asked.prompt, asked.device))
        folder.sample.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
