"""Orchestration: one Prefect flow per stage, one for the whole pipeline, and the command line."""
