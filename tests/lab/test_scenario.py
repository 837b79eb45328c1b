"""Scenarios as files: those that ship, and what is wrong in others."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.mobile import as_csv, mobile_trace

from splitpoint.errors import InputError
from splitpoint.lab import scenario
from splitpoint.link.files import load_trace


def test_scenarios_that_ship_are_sound() -> None:
    links = {name: name for name in ("cat1", "3g", "4g", "wifi", "wifi5", "lan")}
    links |= {"lte": "lte.csv", "step": "50mbit,10ms"}
    assert scenario.names() == list(links)
    for name, link in links.items():
        found = scenario.load_scenario(scenario.find(name))
        assert found.model == "zoo:efficientnet_lite0"
        assert found.shaped().name == link
        assert found.title


def test_the_mobile_trace_that_ships_is_the_one_that_is_made() -> None:
    shipped = load_trace(scenario.find("lte").with_suffix(".csv"))
    made = mobile_trace()
    assert shipped.times == made.times
    assert shipped.links == made.links
    assert as_csv(made).splitlines()[0] == "time,up,down,rtt"
    rates = sorted(link.up_mbps for link in made.links)
    assert rates[0] < 1
    assert 4 < rates[len(rates) // 2] < 8
    assert rates[-1] > 15
    assert mobile_trace(seed=1) != made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model = ", "is not TOML"),
        ('at = ["x"]\nlink = "4g"', "missing required field `model`"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequest = 3', "unknown field `request`; did you mean requests"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nsource = "3"', "unknown field `source`"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequests = "3"', r"Expected `int`, got `str` - at `\$.requests`"),
        ('model = "m"\nat = ["x"]\nlink = "5g"', "no link is called 5g"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\ncodec = "int9"', "no codec is called 'int9'"),
        ('model = "m"\nat = ["x"]\nlink = "gone.csv"', "there is no file .*gone.csv"),
        ('model = "m"\nlink = "4g"', "give either at"),
        ('model = "m"\nat = ["x"]\nplan = "p.json"\nlink = "4g"', "give either at"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\nrequests = 0', "requests must be from 1"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nslowdown = 0.5', "slowed by a factor 1 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nslowdown = nan', "slowed by a factor 1 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nmethod = "magic"', "Invalid enum value 'magic'"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[device]\nthreads = 0', "device.threads must be from 1"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[[events]]\nat_s = -1.0\ndo = "cut"', "must be 0 or more"),
        ('model = "m"\nat = ["x"]\nlink = "4g"\n[[events]]\nat_s = 1.0\ndo = "link"', "has a link if"),
    ],
)
def test_a_scenario_that_is_wrong_says_where(tmp_path: Path, wrong: str, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(wrong)
    with pytest.raises(InputError, match=said) as caught:
        scenario.load_scenario(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('do = "corrupt"', 'has a direction if, and only if, it does "corrupt"'),
        ('do = "cut"\ndirection = "up"', 'has a direction if, and only if, it does "corrupt"'),
        ('do = "corrupt"\ndirection = "left"', "Invalid enum value 'left'"),
        ('do = "corrupt"\ndirection = "up"\ncount = 0', "its count from 1"),
        ('do = "corrupt"\ndirection = "up"\nafter_nbytes = -1', "after_nbytes must be 0 or more"),
        ('do = "blackhole"\nseconds = -1.0', "must be 0 or more"),
        ('do = "blackout"', "Invalid enum value 'blackout'"),
    ],
)
def test_an_event_that_makes_no_sense_is_said(tmp_path: Path, event: str, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'model = "zoo:lenet5"\nat = ["input"]\nlink = "lan"\n[[events]]\nat_s = 1.0\n{event}\n')
    with pytest.raises(InputError, match=said):
        scenario.load_scenario(path)
