"""Measuring generators: one cell, a whole frontier, a comparison at equal entropy, plots."""

from __future__ import annotations
