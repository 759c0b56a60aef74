"""Measurements, run by ``python dev.py bench NAME``. They take minutes and judge nothing: tests do that. The ones that
judge do what no test can: ``golden`` compares two revisions, ``soak`` goes on for an hour.
"""
