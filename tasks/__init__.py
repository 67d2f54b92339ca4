"""Thin Prefect tasks: load by path, call one function of `dfkd_core`, write atomically, return a small reference."""
