"""State of the page: links that carry it, and numbers as text."""

from __future__ import annotations

import pytest

from support.explore_numbers import node


def test_a_link_carries_the_whole_state():
    program = """
    const { initial, norm, resized, toHash, fromHash } = await load("state");
    const answers = cases.map((changes) => {
      const { shape, ...others } = changes;
      const state = { ...resized(initial(), shape), ...others };
      return [state, fromHash("#" + toHash(state)), toHash(state)];
    });
    console.log(JSON.stringify([toHash(initial()), answers]));
    """
    norms = {"groups": 2, "training": True}
    cases = [
        {"shape": [2, 2, 2, 2]},
        {
            "shape": [3, 4, 1, 2],
            "a": norms | {"layer": "group", "groups": 4, "tracking": False},
            "b": None,
            "x": [0.1 * i - 1e-9 for i in range(24)],
            "weight": [1, -2.5, 1e-12, 0],
            "step": 4,
            "at": [2, 3, 0, 1],
            "theme": "dark",
            "eps": 0,
        },
        {
            "shape": [1, 3, 2, 2],
            "a": norms | {"layer": "batch", "training": False, "tracking": True},
            "b": norms | {"layer": "instance", "training": False, "tracking": True},
            "runningMean": [1, 2, 3],
            "runningVar": [0.5, 0, 3],
            "varWeight": [0, -1, 2],
            "momentum": 0.25,
        },
    ]
    at_start, answers = node(program, cases)
    assert at_start == ""
    for state, found, link in answers:
        assert found == {"state": state, "problems": []}, link


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("shape=2,2,2", ["“shape”", "four sizes"]),
        ("shape=2,99,2,2", ["channels: 99 is not a whole number from 1 to 8"]),
        ("shape=6,8,6,6", ["1728 values"]),
        ("x=1,2,3", ["3 numbers for 16"]),
        ("x=a", ["“a” is not a number"]),
        ("eps=-1", ["below 0"]),
        ("eps=1e999", ["not finite"]),
        ("a=spectral", ["“spectral” is none of instance, batch"]),
        ("a=group-0", ["0 is not a whole number from 1 to 8"]),
        ("runningVar=-1", ["no variance is"]),
        ("momentum=2", ["not between 0 and 1"]),
        ("at=9,0,0,0", ["from 0 to 1"]),
        ("theme=pink", ["light, dark or auto"]),
        ("colour=1", ["“colour” means nothing"]),
    ],
)
def test_a_wrong_link_is_said_and_left_out(link, words):
    program = """
    const { initial, fromHash } = await load("state");
    console.log(JSON.stringify([initial(), ...cases.map(fromHash)]));
    """
    start, found = node(program, [link])
    assert len(found["problems"]) == 1
    for word in words:
        assert word in found["problems"][0]
    assert found["state"] == start


def test_numbers_for_people():
    program = """
    const { short, aligned, decimals } = await load("words");
    const values = [0, -0, 5, -1.372, 1 / 3, 1e-5, -2e-9, 12345678, 0.5, 99.99999, NaN, Infinity];
    const column = [1, -0.5, 1e-5];
    const found = [values.map(short), column.map((value) => aligned(value, decimals(column)))];
    console.log(JSON.stringify(found));
    """
    minus = "\u2212"
    expected = ["0", "0", "5", "-1.372", "0.3333", "1e-5", "-2e-9", "1.235e7", "0.5", "100"]
    expected = [text.replace("-", minus) for text in expected]
    column = ["1.0", f"{minus}0.5", f"1e{minus}5"]
    assert node(program, []) == [[*expected, "not a number", "∞"], column]
