"""The `handoff` namespace of Dask's configuration."""

from __future__ import annotations

import dask
import pytest

from handoff_dask import config


def test_the_defaults_fit_their_schema():
    """The two files of the package agree, setting by setting."""
    for name in (
        "lost-capacity-grace",
        "fetch-timeout",
        "commit-ahead",
        "bundle",
        "store",
        "embedded",
    ):
        with dask.config.set({"handoff": {name: config.get(name)}}):
            assert config.problems() == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"handoff.commit-ahead": "soon"}, "commit-ahead must be a time such as 60s or 50ms"),
        ({"handoff.commit-ahead": 7}, "commit-ahead must be text, not 7"),
        ({"handoff.commit-ahead": True}, "commit-ahead must be text, not True"),
        ({"handoff.bundle": "much"}, "bundle must be a time such as 60s or 50ms, not 'much'"),
        ({"handoff.bundle": True}, "bundle must be a time such as 60s or 50ms, not True"),
        ({"handoff.bundle": [1]}, "bundle must be text or a number or true or false, not [1]"),
        ({"handoff.store": 7}, "store must be text or a group of settings or empty, not 7"),
        ({"handoff.store": {"ulr": "a"}}, "no setting handoff.store.ulr. Did you mean"),
        ({"handoff.store": {"required": "no"}}, "store.required must be true or false, not 'no'"),
        ({"handoff.embedded": "no"}, "embedded must be a group of settings, not 'no'"),
        ({"handoff.embedded.processes": "no"}, "embedded.processes must be true or false"),
        ({"handoff.embedded.proceses": True}, "Did you mean handoff.embedded.processes?"),
        ({"handoff.unheard-of": 1}, "there is no setting handoff.unheard-of"),
    ],
)
def test_settings_that_are_none(settings, problem):
    """Errors name the setting, what it should be, and what was probably meant."""
    with dask.config.set(settings):
        (message,) = config.problems()
    assert problem in message


def test_secrets_are_not_shown():
    """The message about a secret of the wrong type does not contain it."""
    with dask.config.set({"handoff.store": {"url": "a", "hmac_key": 1234}}):
        assert config.problems() == ["the setting handoff.store.hmac-key must be text"]


def test_options_of_a_driver_may_have_any_name():
    """What fsspec's drivers take is not known here."""
    with dask.config.set({"handoff.store": {"storage-options": {"profile": "science"}}}):
        assert config.problems() == []


def test_both_spellings():
    """Environment variables have underscores where YAML has dashes."""
    with dask.config.set({"handoff": {"lost_capacity_grace": "5s"}}):
        assert config.problems() == []


@pytest.mark.parametrize("bundle", [0, False, 0.05, "20 ms"])
def test_bundles_may_be_off(bundle):
    """Most durations are text; this one may also be a number, or false."""
    with dask.config.set({"handoff.bundle": bundle}):
        assert config.problems() == []
