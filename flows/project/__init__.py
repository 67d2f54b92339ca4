"""A user's own project: `dfkd init`, the offer of `dfkd run`, the texts of the files (`templates/`), the presets.

Imports: dfkd_flows.session, dfkd_flows.settings, dfkd_tasks. Begin with `layout`.
"""
