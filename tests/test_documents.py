"""Documents: written whole, read with bounds, refused with a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from splitpoint.documents import AtLeast1, Count, Documents, Label, Share, require_model
from splitpoint.errors import InputError, StorageError, UsageError


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 2
    title: Label
    eggs: Count = 0
    people: AtLeast1 = 1
    sugar: Share = 0.0


class OldRecipe(msgspec.Struct):
    name: str
    eggs: int = 0

    def now(self) -> Recipe:
        if self.eggs > 12:
            raise ValueError(f"{self.eggs} eggs are too many")
        return Recipe(title=self.name, eggs=self.eggs)


def check(recipe: Recipe) -> None:
    if recipe.eggs > 6 * recipe.people:
        raise ValueError(f"{recipe.eggs} eggs for {recipe.people} (at $.eggs)")


RECIPES = Documents(
    what="a recipe", holds=Recipe, format=2, made_by="cook -o", most_bytes=1000, marks=("eggs",), check=check,
    older={1: (OldRecipe, OldRecipe.now)},
)  # fmt: skip
CAKE = Recipe(title="cake", eggs=3, sugar=0.25)


def test_a_document_comes_back_from_its_file(tmp_path: Path) -> None:
    RECIPES.save(tmp_path / "cake.json", CAKE)
    assert RECIPES.load(tmp_path / "cake.json") == CAKE
    assert RECIPES.load(str(tmp_path / "cake.json")) == CAKE
    assert (tmp_path / "cake.json").read_bytes() == RECIPES.write(CAKE)
    assert b'\n "eggs": 3,\n' in RECIPES.write(CAKE)
    assert [p.name for p in tmp_path.iterdir()] == ["cake.json"]


def test_an_older_format_means_what_it_meant() -> None:
    assert RECIPES.parse(b'{"format": 1, "name": "cake", "eggs": 3}', "it") == Recipe(title="cake", eggs=3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is not a recipe, or it is damaged: "),
        (b"[1]", "it is not a recipe, or it is damaged: Expected `object`"),
        (b'{"a":' + b"[" * 100_000, "it is not a recipe, or it is damaged: it is nested too deeply"),
        (b'{"format": 2}', "it is not a recipe: make one with cook -o FILE"),
        (b'{"eggs": 1}', "is a recipe of format none, and this version reads format 2: make it anew with cook -o FILE"),
        (b'{"eggs": 1, "format": 3}', "is a recipe of format 3, and this version reads format 2"),
        (b'{"eggs": 1, "format": "2"}', "it is not a recipe, or it is damaged: Expected `int`, got `str`"),
        (b'{"eggs": 1, "format": 2}', "Object missing required field `title`"),
        (b'{"eggs": -1, "format": 2, "title": "x"}', "Expected `int` >= 0 - at `$.eggs`"),
        (b'{"eggs": 1, "format": 2, "title": "x", "people": 0}', "Expected `int` >= 1 - at `$.people`"),
        (b'{"eggs": 1, "format": 2, "title": "x", "sugar": 1.5}', "Expected `float` <= 1.0 - at `$.sugar`"),
        (b'{"eggs": 1, "format": 2, "title": "x", "sugar": 1e999}', "it is not a recipe, or it is damaged: "),
        (b'{"eggs": 1, "format": 2, "title": "\\u001b[2J"}',
         "Expected text without hidden or control characters - at `$.title`"),
        (b'{"eggs": 1, "format": 2, "title": "a\\n"}', "without hidden or control characters"),
        (b'{"eggs": 1, "format": 2, "title": "' + b"x" * 201 + b'"}', "`str` of length <= 200 - at `$.title`"),
        (b'{"eggs": 7, "format": 2, "title": "x"}', "it is a damaged recipe: 7 eggs for 1 (at $.eggs)"),
        (b'{"eggs": 13, "format": 1, "name": "x"}', "it is a damaged recipe: 13 eggs are too many"),
        (b'{"eggs": 7, "format": 1, "name": "x"}', "it is a damaged recipe: 7 eggs for 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(data: bytes, says: str) -> None:
    with pytest.raises(InputError) as refused:
        RECIPES.parse(data, "it")
    assert says in str(refused.value)
    assert str(refused.value).startswith("it is ")
    assert "\x1b" not in str(refused.value)


def test_a_file_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_bytes(RECIPES.write(CAKE) + b" " * 2000)
    with pytest.raises(InputError, match="is too large to be a recipe"):
        RECIPES.load(path)
    with pytest.raises(InputError, match=r"there is no file .*none\.json: cook -o writes one"):
        RECIPES.load(tmp_path / "none.json")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder"):
        RECIPES.save(tmp_path / "no" / "cake.json", CAKE)
    assert list(tmp_path.iterdir()) == []


def test_a_document_of_another_model_is_named_with_both() -> None:
    require_model("the plan", ("lenet5", "a" * 64), ("other name", "a" * 64), "plan again")
    with pytest.raises(InputError, match="the plan is of lenet5 aaaaaaaaaaaa, not of resnet bbbbbbbbbbbb: plan again"):
        require_model("the plan", ("lenet5", "a" * 64), ("resnet", "b" * 64), "plan again")
    with pytest.raises(UsageError, match="not of the model bbbbbbbbbbbb"):
        require_model("the plan", ("lenet5", "a" * 64), ("", "b" * 64), "plan again", UsageError)
