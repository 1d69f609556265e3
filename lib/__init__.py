"""Sharpen: fine-tunes language models for financial and quantitative reasoning.

Notebooks tell and decide, this package computes. Nothing is imported here: heavy libraries load where they are used.
"""

__version__ = "0.1.0"
