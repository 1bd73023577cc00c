"""Frozen dataclasses of plain values. They say what to do; functions elsewhere take them and do it."""
