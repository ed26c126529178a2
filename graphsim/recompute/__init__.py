"""Schedules: strategies map a case and a budget to a schedule; bounds say how good it can be."""
