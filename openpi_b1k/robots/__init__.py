"""Robots as tables: named fields with units, cameras, limits."""
