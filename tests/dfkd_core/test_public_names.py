import dfkd_core


def test_every_public_name_can_be_imported():
    assert dfkd_core.__all__ == sorted(dfkd_core.__all__)
    for name in dfkd_core.__all__:
        assert getattr(dfkd_core, name).__module__.startswith("dfkd_core.")


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(dfkd_core, "no_such_name")
