"""Document, server and command of the page."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from momentnorm import explore
from momentnorm.cli import main
from momentnorm.explore import document
from support.commands import refusal
from support.explore_numbers import SOURCES


def test_one_document_that_loads_nothing():
    content = explore.page()
    allowed = {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert set(re.findall(r"https?://[^\"\s]+", content)) == allowed
    assert content.count("<script") == content.count("</script>") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', content).group(1)
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_modules_are_one_program():
    executable = shutil.which("node")
    if executable is None:
        pytest.skip("node is not installed")
    assert not re.search("^(import|export) ", document.script(), re.MULTILINE)
    assert sorted(path.stem for path in SOURCES.glob("*.mjs")) == sorted(document.MODULES)
    # A name that two modules share would be an error.
    result = subprocess.run(
        [executable, "--input-type=module", "--check", "-"],
        input=document.script(),
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
    assert word in refusal(["explore", *arguments], capsys)


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
        assert "choose another --port" in refusal(["explore", "--serve", "--port", port], capsys)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
