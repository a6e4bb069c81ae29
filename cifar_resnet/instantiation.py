"""Hydra's `instantiate`, asked as its versions want to be."""

import functools
from collections.abc import Callable
from typing import Any

import hydra.utils

# what a configuration names has been named by the user, or trust.py has looked at it; Hydra 1.4 wants to be told so
_TRUSTED = (
    {"_execution_whitelist_": hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS}
    if hasattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS")
    else {}
)

instantiate: Callable[..., Any] = functools.partial(hydra.utils.instantiate, **_TRUSTED)
