"""The order of things: one Prefect flow per stage, one for the whole, and the command line."""
