"""DVC and git: reproduce, push, pull, and the changed stages.

Imports: dfkd_core. Begin with `versioning`.
"""
