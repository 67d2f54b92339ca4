"""Aliases move in an order that can be repeated after a kill at any point, and `champion` moves last."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from dfkd_tasks.mlflow_store.aliases import (
    REASON_TAG,
    Version,
    find_version,
    finish_promotion,
    list_versions,
    name_challenger,
    promote,
    refuse,
    roll_back,
    version_before,
    version_of,
)
from dfkd_tasks.mlflow_store.publishing import open_store, stated_rules

NAME = "dfkd-student-digits"
WRITES = (
    "set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag", "delete_model_version_tag",
    "log_batch",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_store(store: Path) -> None:
    open_store("dfkd")
    mlflow.MlflowClient().create_registered_model(NAME)


def register(*, with_run: bool = True) -> Version:
    client = mlflow.MlflowClient()
    run_id = client.create_run(open_store("dfkd")).info.run_id if with_run else None
    made = client.create_model_version(NAME, source=str(Path.cwd()), run_id=run_id)
    return get(made.version)


def get(number: object) -> Version:
    found = find_version(NAME, str(number))
    assert found is not None
    return found


def promoted(count: int) -> None:
    for _ in range(count):
        version = register()
        name_challenger(version)
        promote(version, {REASON_TAG: "better"}, {"dfkd.published": "true"})


def aliases() -> dict[str, str]:
    return {name: version.number for version in list_versions(NAME) for name in version.aliases}


def stop_before_write(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let the write of this number to MLflow fail; return the names of those before it."""
    done: list[str] = []

    def counted(name: str, original):
        def write(*args, **kwargs):
            if len(done) == number:
                raise KeyboardInterrupt
            done.append(f"{name} {args[2]}" if "alias" in name else name)
            return original(*args, **kwargs)

        return write

    for name in WRITES:
        patch.setattr(mlflow.MlflowClient, name, counted(name, getattr(mlflow.MlflowClient, name)))
    return done


def test_promote__moves_the_champion_with_the_last_write() -> None:
    promoted(1)
    version = register()
    name_challenger(version)
    with pytest.MonkeyPatch.context() as patch:
        done = stop_before_write(patch, 99)
        promote(version, {REASON_TAG: "better"}, {"dfkd.published": "true"})
    assert done[0] == "set_registered_model_alias previous"
    assert done[-1] == "set_registered_model_alias champion"
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}
    assert get(2).tags["dfkd.replaces"] == "1"
    tags = mlflow.get_run(version.run_id).data.tags
    assert (tags["dfkd.promoted"], tags[REASON_TAG], tags["dfkd.published"]) == ("true", "better", "true")


def test_promote__stopped_before_any_write_ends_the_same_after_a_repetition() -> None:
    promoted(2)
    version = register()
    name_challenger(version)
    for number in range(20):
        with pytest.MonkeyPatch.context() as patch:
            stop_before_write(patch, number)
            try:
                promote(get(3), {REASON_TAG: "better"}, {})
                break
            except KeyboardInterrupt:
                assert aliases()["champion"] == "2"
    assert number > 3
    assert aliases() == {"champion": "3", "challenger": "3", "previous": "2"}


def stop_before_the_champion_moves() -> None:
    with pytest.MonkeyPatch.context() as patch:

        def stop(client: object, name: str, alias: str, version: str) -> None:
            if alias == "champion":
                raise KeyboardInterrupt

        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", stop)
        with pytest.raises(KeyboardInterrupt):
            promote(get(2), {REASON_TAG: "better"}, {})


def test_finish_promotion__ends_one_that_was_stopped_before_its_last_write() -> None:
    promoted(1)
    register()
    stop_before_the_champion_moves()
    assert finish_promotion(get(2))
    assert aliases()["champion"] == "2"
    # From now on an alias that somebody moves stays there.
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    assert not finish_promotion(get(2))
    assert aliases()["champion"] == "1"


def test_finish_promotion__leaves_a_champion_that_somebody_chose_in_between() -> None:
    promoted(1)
    register()
    stop_before_the_champion_moves()
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", register().number)
    assert not finish_promotion(get(2))
    assert aliases()["champion"] == "3"
    assert not finish_promotion(get(2))


def test_refuse__takes_the_challenger_from_this_version_alone() -> None:
    promoted(1)
    first, second = register(), register(with_run=False)
    name_challenger(second)
    refuse(first, {REASON_TAG: "worse"}, {})
    assert aliases() == {"champion": "1", "challenger": "3"}
    refuse(second, {REASON_TAG: "worse"}, {})
    assert aliases() == {"champion": "1"}
    assert get(3).tags["dfkd.promoted"] == "false"
    assert mlflow.get_run(first.run_id).data.tags[REASON_TAG] == "worse"


def test_roll_back__goes_back_version_by_version() -> None:
    promoted(3)
    for expected in ({"champion": "2", "previous": "1"}, {"champion": "1"}):
        champion = version_of(NAME, "champion")
        assert champion is not None
        target = version_before(champion)
        assert target is not None
        roll_back(champion, target)
        assert aliases() == expected
    assert version_before(get(1)) is None
    assert get(3).tags["dfkd.rolled_back_to"] == "2"
    promote(get(3), {REASON_TAG: "again"}, {})
    assert "dfkd.rolled_back_to" not in get(3).tags
    assert aliases() == {"champion": "3", "previous": "1"}


def test_roll_back__stopped_before_any_write_ends_the_same_after_a_repetition() -> None:
    promoted(3)
    for number in range(20):
        champion = version_of(NAME, "champion")
        assert champion is not None
        target = version_before(champion)
        assert target is not None
        with pytest.MonkeyPatch.context() as patch:
            done = stop_before_write(patch, number)
            try:
                roll_back(champion, target)
                break
            except KeyboardInterrupt:
                assert aliases()["champion"] == "3"
    assert number > 2
    assert done[-1] == "set_registered_model_alias champion"
    assert aliases() == {"champion": "2", "previous": "1"}


def test_version_before__of_aliases_that_somebody_has_moved() -> None:
    promoted(2)
    client = mlflow.MlflowClient()
    register()
    client.set_registered_model_alias(NAME, "champion", "3")
    assert version_before(get(3)).number == "1"
    client.set_registered_model_alias(NAME, "previous", "2")
    assert version_before(get(3)).number == "2"
    client.set_registered_model_alias(NAME, "previous", "3")
    assert version_before(get(3)) is None
    client.delete_model_version(NAME, "1")
    assert version_before(get(2)).number == "3"
    client.delete_registered_model_alias(NAME, "previous")
    assert version_before(get(2)) is None


def test_list_versions__of_no_model_and_of_many_versions() -> None:
    assert list_versions("nothing") == []
    assert list_versions(NAME) == []
    for _ in range(11):
        register()
    assert [version.number for version in list_versions(NAME)][:3] == ["11", "10", "9"]


@pytest.mark.parametrize("text", ["", "{", "3", "[3]", '[{"holds": true}]', "null"])
def test_stated_rules__of_a_damaged_tag_are_not_known(text: str) -> None:
    assert stated_rules({"dfkd.promotion_rules": text}) == ()
    assert stated_rules({}) == ()
    known = json.dumps([{"holds": True, "text": "a"}, {"holds": False, "text": "b"}])
    assert stated_rules({"dfkd.promotion_rules": known}) == ("a", "broken: b")
