"""Measurements, each paired with what it is compared with in the same run. A timing here is never a test's assertion."""
