"""Sharpen: fine-tunes language models for financial and quantitative reasoning.

Notebooks tell and decide, this package computes. Heavy libraries load where they are used, not here.
"""

import atexit
import gc

atexit.register(gc.freeze)  # a process that ends need not look through a million objects for garbage: seconds

__version__ = "0.1.0"


class SharpenError(Exception):
    """What its user can mend; the message names the value, the place and the remedy, and is shown without traceback."""
