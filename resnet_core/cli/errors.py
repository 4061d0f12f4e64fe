"""Errors that users can mend: told in one line, and turned into exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from resnet_core.distributed.signals import STOPPED
from resnet_core.distributed.world import may_tell
from resnet_core.train import NonFiniteLossError, PeerError, ReplicaError, StoppedError

# Exit statuses; 0 is success.
TRAINING_FAILED, SOME_FAILED, DIFFERENT, USER_ERROR = 1, 1, 1, 2


def as_exit_status(function: Callable[..., int]) -> Callable[..., int]:
    """`function`, with the errors that users can mend told in one line and turned into exit statuses."""

    @wraps(function)
    def wrapper(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except (NonFiniteLossError, PeerError, ReplicaError) as error:
            return tell(error, str(error), TRAINING_FAILED)
        except StoppedError as error:
            return tell(error, f"{error}; the same command continues the run", STOPPED)
        except BrokenPipeError:  # `resnet-core describe resnet50 | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (ValueError, OSError) as error:
            return tell(error, str(error), USER_ERROR)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or "Python has none left").splitlines()[0]
            return tell(error, f"out of memory ({reason}); {LESS_MEMORY}", TRAINING_FAILED)

    return wrapper


LESS_MEMORY = (
    "use smaller images or batches, fewer --data.workers; in training a smaller --data.global-batch, more processes, "
    "--train.precision bf16, "
    "or --train.accumulation N, which keeps the global batch but computes BatchNorm over each of its N parts"
)


def is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's, the CPU's, which has no type of its own in torch, or a loader worker's, which Linux killed."""
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory", "is killed by signal: Killed")
    )


def tell(error: Exception, message: str, status: int) -> int:
    """Says it on standard error, where `may_tell` lets this process; the exit status."""
    if may_tell(error):
        print(f"resnet-core: {' '.join([message, *getattr(error, '__notes__', ())])}", file=sys.stderr)
    return status
