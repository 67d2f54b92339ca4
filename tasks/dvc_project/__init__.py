"""DVC and git: reproduce, push, pull, and what has changed.

Imports: dfkd_core. Begin with `versioning`.
"""
