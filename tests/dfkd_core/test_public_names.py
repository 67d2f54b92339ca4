import dfkd_core


def test_every_public_name_can_be_imported():
    names = getattr(dfkd_core, "__all__")  # noqa: B009  # the .pyi file does not declare it
    assert names == sorted(names)
    for name in names:
        assert getattr(dfkd_core, name).__module__.startswith("dfkd_core.")


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(dfkd_core, "no_such_name")
