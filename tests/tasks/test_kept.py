"""What a queue showed, kept for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from splitpoint.profile.profiles import Profile
from splitpoint.tasks.kept import KeptQueue, keep, load_kept, place_of


def test_what_is_kept_comes_back_for_the_same_models_and_machines(
    tmp_path: Path, profiles: Mapping[str, Profile]
) -> None:
    one, other = profiles.values()
    place = place_of(tmp_path, [(one, one), (other, other)])
    assert place == place_of(tmp_path, [(other, other), (one, one)])
    assert place != place_of(tmp_path, [(one, one)])
    assert load_kept(place) is None
    assert not place.parent.exists(), "nothing is made by looking"
    kept = KeptQueue(shared=1.9, compile_s={"abc all on the edge": 0.5})
    keep(place, kept)
    assert load_kept(place) == kept


def test_what_cannot_be_used_is_measured_anew(tmp_path: Path) -> None:
    place = tmp_path / "queues" / "a.json"
    keep(place, KeptQueue(shared=1.0))
    for text in ("", "{", '{"shared": 0.5}', '{"shared": 1, "compile_s": {"a": -1}}', '{"shared": "x"}', "[]"):
        place.write_text(text)
        assert load_kept(place) is None, text
