"""Models beside each other on data sets: measured cell by cell, written as one table, kept as files of ranks."""
