"""The page's numbers are the library's: node runs its modules, on random settings."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import momentnorm
from momentnorm import explore
from momentnorm.cli import main
from momentnorm.figure import figure

SOURCES = Path(explore.__file__).parent

#: Units of float64's epsilon: sums in another order, and rsqrt for 1 / sqrt.
ULPS = 16

#: What a program in node starts with: the modules of the page, and the cases from its input.
START = """
const [, folder] = process.argv;
const load = (name) => import(folder + name + ".mjs");
let text = "";
for await (const piece of process.stdin) text += piece;
const cases = JSON.parse(text);
"""

NORMALIZE = """
const { normalize, shares, updated, keepsRunning } = await load("compute");
const answers = cases.map(({ setting, x, plane }) => {
  try {
    const found = normalize(setting, Float64Array.from(x));
    const answer = { y: Array.from(found.y), shares: Array.from(shares(setting, ...plane)) };
    if (keepsRunning(setting)) answer.updated = updated(setting, found.planes);
    return answer;
  } catch (error) {
    return { field: error.field, message: error.message };
  }
});
console.log(JSON.stringify(answers));
"""


def node(program, cases):
    """The answers of a program in JavaScript."""
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("node is not installed")
    result = subprocess.run(
        [executable, "--input-type=module", "-e", START + program, SOURCES.as_uri() + "/"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def random_case(draw: random.Random, layer):
    """A setting of the page, with an input and a plane."""
    shape = [
        draw.randint(1, 4),
        draw.choice([1, 2, 3, 4, 6]),
        draw.randint(1, 4),
        draw.randint(2, 4),
    ]
    channels = shape[1]

    def numbers(count, low=-2.0, high=2.0):
        return [draw.uniform(low, high) for _ in range(count)]

    # A large mean, now and then, with a small deviation.
    centre, width = draw.choice([(0, 1), (10, 1), (1000, 0.01), (5, 0)])
    groups = draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
    setting = {
        "layer": layer,
        "shape": shape,
        "groups": groups,
        "eps": draw.choice([1e-5, 1e-3, 0.1]),
        "weight": numbers(channels),
        "bias": numbers(channels),
        "training": draw.random() < 0.5,
        "tracking": draw.random() < 0.5,
        "momentum": draw.choice([0.1, 0.9, 0.0, 1.0]),
        "runningMean": numbers(channels),
        "runningVar": numbers(channels, 0.1, 3.0),
        "meanWeight": numbers(3),
        "varWeight": numbers(3),
    }
    x = [draw.gauss(centre, width) for _ in range(math.prod(shape))]
    return {
        "setting": setting,
        "x": x,
        "plane": [draw.randrange(shape[0]), draw.randrange(channels)],
    }


def library_layer(setting):
    """The library's layer of a page's setting, in float64."""
    name, (_, channels, *size), eps = setting["layer"], setting["shape"], setting["eps"]
    momentum, tracking = setting["momentum"], setting["tracking"]
    options = {"momentum": momentum, "affine": True, "track_running_stats": tracking}
    if name in ("instance", "batch"):
        make = {"instance": momentnorm.InstanceNorm2d, "batch": momentnorm.BatchNorm2d}[name]
        layer = make(channels, eps, **options)
    elif name == "group":
        layer = momentnorm.GroupNorm(setting["groups"], channels, eps)
    elif name == "switchable":
        layer = momentnorm.SwitchableNorm2d(channels, eps, momentum)
    else:
        make = {"layer": momentnorm.LayerNorm, "rms": momentnorm.RMSNorm}[name]
        layer = make((channels, *size), eps)
    layer = layer.double().train(setting["training"])
    values = {
        "weight": setting["weight"],
        "bias": setting["bias"],
        "running_mean": setting["runningMean"],
        "running_var": setting["runningVar"],
        "mean_weight": setting["meanWeight"],
        "var_weight": setting["varWeight"],
    }
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if key in values:
                value = torch.tensor(values[key], dtype=torch.float64)
                if name in ("layer", "rms"):  # a weight per channel, not per element
                    value = value.view(-1, 1, 1).expand(tensor.shape)
                tensor.copy_(value.view(tensor.shape) if name == "switchable" else value)
    return layer


def assert_close(found, expected, amplified=1.0):
    """``amplified``: the largest magnitude on the way, whose rounding a mean has."""
    expected = expected.detach().flatten()
    found = torch.tensor(found, dtype=torch.float64)
    largest = max(expected.abs().max().item(), amplified)
    bound = ULPS * torch.finfo(torch.float64).eps * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


every_layer = pytest.mark.parametrize("layer", figure.KINDS)


@every_layer
def test_numbers_equal_the_librarys(layer):
    draw = random.Random(0)
    cases = [random_case(draw, layer) for _ in range(200)]
    with_running = 0
    for case, answer in zip(cases, node(NORMALIZE, cases), strict=True):
        setting = case["setting"]
        module = library_layer(setting)
        x = torch.tensor(case["x"], dtype=torch.float64).view(setting["shape"])
        smallest = (x.var((2, 3), correction=0).min() + setting["eps"]).sqrt()
        scale = max(map(abs, setting["weight"])) / smallest.item()
        assert_close(answer["y"], module(x), amplified=x.abs().max().item() * scale)
        if setting["training"] and getattr(module, "running_mean", None) is not None:
            with_running += 1
            assert_close(answer["updated"]["mean"], module.running_mean, x.abs().max().item())
            assert_close(answer["updated"]["var"], module.running_var)
    assert (with_running > 20) == (layer in ("instance", "batch", "switchable"))


@every_layer
def test_shares_equal_those_of_the_pools(layer):
    draw = random.Random(1)
    cases = [random_case(draw, layer) for _ in range(30)]
    for case in cases:
        case["setting"] |= {"training": True, "meanWeight": [1, 1, 1]}
    for case, answer in zip(cases, node(NORMALIZE, cases), strict=True):
        samples, channels, *_ = shape = case["setting"]["shape"]
        policy = figure.policy(layer, shape, case["setting"]["groups"])
        expected = figure.shares(policy, samples, channels, *case["plane"])
        assert_close(answer["shares"], expected)


@pytest.mark.parametrize(
    ("layer", "changes", "field"),
    [
        ("instance", {"shape": [2, 2, 1, 1]}, "shape"),
        ("batch", {"shape": [1, 2, 1, 1]}, "shape"),
        ("batch", {"eps": 0}, "eps"),
        ("batch", {"eps": -1, "training": False}, "eps"),
        ("group", {"shape": [2, 6, 2, 2], "groups": 4}, "groups"),
        ("group", {"shape": [1, 2, 1, 1], "groups": 2}, "shape"),
        ("switchable", {"shape": [2, 2, 1, 1]}, "shape"),
    ],
)
def test_refused_is_what_the_library_refuses(layer, changes, field):
    case = random_case(random.Random(2), layer)
    setting = case["setting"]
    setting |= {"training": True, "tracking": True, "shape": [2, 2, 2, 2], "groups": 2} | changes
    channels = setting["shape"][1]
    for name in ("weight", "bias", "runningMean", "runningVar"):
        setting[name] = [1.0] * channels
    case |= {"x": [1.0] * math.prod(setting["shape"]), "plane": [0, 0]}
    (answer,) = node(NORMALIZE, [case])
    assert answer["field"] == field
    with pytest.raises((ValueError, RuntimeError)):
        library_layer(setting)(torch.ones(setting["shape"], dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        ("instance", {"shape": [2, 2, 1, 1], "training": False}),
        ("batch", {"shape": [1, 2, 1, 1], "training": False}),
        ("layer", {"shape": [1, 1, 1, 1]}),
        ("rms", {"shape": [1, 2, 1, 1]}),
        ("group", {"shape": [2, 2, 1, 1], "groups": 2}),
        ("instance", {"eps": 0.0, "x": [3.0] * 16}),
    ],
)
def test_odd_but_allowed(layer, changes):
    case = random_case(random.Random(3), layer)
    setting = case["setting"]
    setting |= {"training": True, "tracking": True, "shape": [2, 2, 2, 2]} | changes
    for name in ("weight", "bias", "runningMean", "runningVar"):
        setting[name] = [2.0] * setting["shape"][1]
    case["x"] = setting.pop("x", [float(i) for i in range(math.prod(setting["shape"]))])
    case["plane"] = [0, 0]
    (answer,) = node(NORMALIZE, [case])
    x = torch.tensor(case["x"], dtype=torch.float64).view(setting["shape"])
    assert_close(answer["y"], library_layer(setting)(x), amplified=10)


def test_the_example_is_the_published_one():
    published = json.loads((Path(__file__).parents[1] / "data/published_examples.json").read_text())
    first = published["examples"][0]
    program = """
    const { EXAMPLE } = await load("state");
    const { moments } = await load("compute");
    const found = moments(Float64Array.from(EXAMPLE.x), EXAMPLE.shape);
    console.log(JSON.stringify([EXAMPLE, Array.from(found.mean), Array.from(found.var)]));
    """
    example, mean, variance = node(program, [])
    x = torch.tensor(example["x"]).view(example["shape"])
    assert x.tolist() == first["input"]
    assert mean == [value for row in first["mean"] for value in row] == [5.0, 13.5, 5.0, 15.5]
    assert variance == [value for row in first["var"] for value in row] == [8.5, 7.25, 6.5, 8.75]


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


def test_one_document_that_asks_for_nothing():
    document = explore.page()
    allowed = {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert set(re.findall(r"https?://[^\"\s]+", document)) == allowed
    assert document.count("<script") == document.count("</script>") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', document).group(1)
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_modules_are_one_program():
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("node is not installed")
    assert not re.search("^(import|export) ", explore.script(), re.MULTILINE)
    assert sorted(path.stem for path in SOURCES.glob("*.mjs")) == sorted(explore.MODULES)
    # A name that two modules have would be an error.
    result = subprocess.run(
        [executable, "--input-type=module", "--check", "-"],
        input=explore.script(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_command_writes_the_page(tmp_path, capsys):
    path = tmp_path / "page.html"
    assert main(["explore", "-o", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_text(encoding="utf-8") == explore.page()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "-o/--out --serve"),
        (["-o", "missing/page.html"], "missing/page.html"),
        (["--serve", "-o", "page.html"], "not allowed with"),
        (["--serve", "--port", "99999"], "choose another --port"),
    ],
)
def test_the_command_complains_in_one_line(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["explore", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert word in error


def test_served_on_this_machine_until_ctrl_c(capsys):
    command = [sys.executable, "-m", "momentnorm", "explore", "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.read().decode() == explore.page()
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(address + "favicon.ico", timeout=30)
        missing.value.close()
        assert missing.value.code == 404
        port = address.rstrip("/").rpartition(":")[2]
        with pytest.raises(SystemExit):
            main(["explore", "--serve", "--port", port])
        assert capsys.readouterr().err.count("\n") == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
