"""Errors that users can fix: printed in one line, and turned into exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from resnet_core.distributed.failures import may_report
from resnet_core.distributed.signals import STOPPED, StoppedError
from resnet_core.foundation.errors import ReportedError, first_line, printable

# Exit statuses; 0 is success.
TRAINING_FAILED, SOME_FAILED, DIFFERENT, USER_ERROR = 1, 1, 1, 2


def as_exit_status(function: Callable[..., int]) -> Callable[..., int]:
    """`function`, but errors that users can fix are printed in one line and become exit statuses."""

    @wraps(function)
    def wrapper(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except ReportedError as error:
            print_error(error)
            return TRAINING_FAILED
        except StoppedError as error:
            print_error(error)
            return STOPPED
        except BrokenPipeError:  # `resnet-core describe resnet50 | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (ValueError, OSError) as error:
            print_error(error)
            return USER_ERROR
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print_error(
                error,
                f"out of memory ({first_line(error)}); use smaller images or batches, or fewer workers. In "
                "training, also a smaller --data.global-batch, more processes, --train.precision bf16, or "
                "--train.accumulation N, which keeps the global batch but computes BatchNorm over each of its N parts",
            )
            return TRAINING_FAILED

    return wrapper


def is_out_of_memory(error: Exception) -> bool:
    """Python's own, CUDA's, the CPU's, which torch gives no type, and a loader worker's, which Linux kills."""
    return isinstance(error, MemoryError) or any(
        sign in str(error)
        for sign in ("out of memory", "out of shared memory", "can't allocate memory", "is killed by signal: Killed")
    )


def print_error(error: Exception, message: str | None = None) -> None:
    """Prints the error, or the message in its place, to stderr if this process reports it."""
    if may_report(error):
        notes = getattr(error, "__notes__", ())
        lines = " ".join([message or str(error), *notes]).split("\n")
        print("resnet-core:", "\n".join(map(printable, lines)), file=sys.stderr)
