"""Measurements, run by ``python dev.py bench NAME``. They take minutes and judge nothing: tests do that. The one that
judges, ``golden``, compares two revisions, which no test of one can.
"""
