"""Training whose steps, saves and evaluation take as long as a test wants, so that a fault hits what it is meant for.

    torchrun ... -m tests.faults.slow_steps '{"step": 0.05}' OPTIONS OF jointmae.train

Seconds that a "step", a "save" and the "evaluation" take longer, "patience" of the heartbeat, and "timeout" of
collectives. Each process says which one it is.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from jointmae import checkpoint, cli, distributed, train, trainer


def slowed(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(call)
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return call(*arguments, **options)

    return slow


def main() -> None:
    wanted: dict[str, float] = json.loads(sys.argv.pop(1))
    trainer.CHECKPOINT_SECONDS = 0.05
    distributed.PATIENCE_SECONDS = wanted.get("patience", distributed.PATIENCE_SECONDS)
    torch.optim.AdamW.step = slowed(torch.optim.AdamW.step, wanted.get("step", 0))  # type: ignore[method-assign]
    checkpoint.save = slowed(checkpoint.save, wanted.get("save", 0))
    if "evaluation" in wanted:
        from jointmae import evaluate  # takes a second to load

        evaluate.evaluate_run = slowed(lambda *_: "evaluated", wanted["evaluation"])
    if "timeout" in wanted:
        begin = torch.distributed.init_process_group
        limit = timedelta(seconds=wanted["timeout"])
        torch.distributed.init_process_group = functools.partial(begin, timeout=limit)
    print(f"process {os.environ['RANK']} is {os.getpid()}", flush=True)
    cli.run(train.main)


if __name__ == "__main__":
    main()
