"""Measurements, run by ``python dev.py bench NAME``. They take minutes and judge nothing: tests do that."""
