"""A volume as an nbdkit plugin (`plugin.py`, which nbdkit loads by its path)."""
