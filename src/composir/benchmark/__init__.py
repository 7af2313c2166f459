"""What takes how long and how much memory: this package and the published way, compared within one run.

Nothing is imported here: most parts run in processes of their own, which should not load what they do not measure.
"""
