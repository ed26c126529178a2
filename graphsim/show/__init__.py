"""Answers as text, pages, plots, and files of other tools."""
