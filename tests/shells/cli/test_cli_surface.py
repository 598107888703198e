"""The command line without a node: help, exit codes, configuration, and what is imported when."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mesh.cli.exits import MEANINGS, Exit, exit_of
from mesh.cli.join import flag_layers
from mesh.cli.main import VERBS, cli, report_fault
from mesh.cli.render import Column, Listing, Story, show_listing
from mesh.cli.words import clean, show_capacity, show_chance
from mesh.client import errors
from mesh.config import configure
from mesh.errors import ConfigError, MeshError

README = Path(__file__).parents[3] / "mesh" / "cli" / "README.md"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MESH_ADDR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def mesh(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="mesh")


def test_help_imports_neither_libp2p_nor_grpc_nor_any_event_loop() -> None:
    program = (
        "import sys\n"
        "from mesh.cli.main import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end\n"
        "heavy = {'libp2p', 'grpc', 'jax', 'trio', 'asyncio', 'rich', 'wasmtime', 'psutil'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_one_line_in_the_list(verb: str) -> None:
    if verb == "sim":
        return  # it hands --help to the simulator
    shown = mesh(verb, "--help")
    assert shown.exit_code == 0, shown.stderr
    assert f"Usage: mesh {verb}" in shown.stdout


def test_the_readme_names_every_verb_with_its_line() -> None:
    rows = dict(re.findall(r"^\| `mesh ([a-z]+)[^|]*` \| ([^|]+) \|", README.read_text(), re.M))
    assert rows == {verb: line for verb, (_, _, line) in VERBS.items()}


def test_the_readme_names_every_exit_code_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", README.read_text(), re.M)
    assert rows == [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]
    assert list(MEANINGS) == list(Exit)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.b", "no"), 2),
        (errors.BadRequest("no"), 2),
        (errors.Ambiguous("no"), 2),
        (errors.TaskFailed("no"), 1),
        (errors.NodeFailed("no"), 1),
        (errors.Declined("no"), 2),
        (errors.NotPlaced("no"), 3),
        (errors.Unreachable("no"), 4),
        (errors.NotAuthorised("no"), 5),
        (errors.VerificationFailed("no"), 6),
        (errors.NotFound("no"), 7),
        (errors.OverQuota("no"), 8),
        (errors.TimedOut("no"), 124),
    ],
)
def test_each_error_has_its_exit_code(error: MeshError, code: int) -> None:
    assert exit_of(error) == code


def test_an_unknown_verb_is_a_usage_error_of_two_lines() -> None:
    result = mesh("sumbit")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith("error: ")
    assert result.stderr.splitlines()[-1] == "hint: mesh --help"


def test_an_unknown_option_points_to_the_verbs_help() -> None:
    result = mesh("ps", "--colour")
    assert result.exit_code == 2
    assert "hint: mesh ps --help" in result.stderr


def test_a_quantity_without_sense_is_a_usage_error() -> None:
    result = mesh("submit", "--memory", "12 potatoes", "--", "x.wasm")
    assert result.exit_code == 2
    assert "is not a size" in result.stderr


def test_json_and_another_form_exclude_one_another(home: Path) -> None:
    assert mesh("version", "--json", "-o", "id").exit_code == 2


@pytest.mark.parametrize("verb", ["ps", "status", "peers", "receipts", "audit"])
def test_without_a_node_the_exit_code_is_4_and_the_hint_says_how_to_get_one(
    verb: str, home: Path
) -> None:
    result = mesh(verb)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "hint: start one: mesh join" in result.stderr


def test_a_node_that_does_not_answer_is_unreachable(home: Path) -> None:
    result = mesh("--node", f"unix:{home}/none.sock", "ps")
    assert result.exit_code == 4
    assert "no node answers at" in result.stderr


def test_an_impossible_address_is_a_usage_error(home: Path) -> None:
    assert mesh("ps", "--node", "example.com:1").exit_code == 2


def test_config_list_shows_every_key_and_its_origin(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[network]\ngrpc_port = "6000"\n')
    monkeypatch.setenv("MESH_SELL__PRICE", "0.05")
    result = mesh("config", "list", "--origin", "-o", "json")
    listed = json.loads(result.stdout)
    assert listed["schema"] == "mesh.settings/v1"
    origins = {row["key"]: (row["value"], row["origin"]) for row in listed["settings"]}
    assert origins["network.grpc_port"] == ("6000", str(home / "config.toml"))
    assert origins["sell.price"] == ('"0.0500"', "env MESH_SELL__PRICE")
    assert origins["market.candidates"] == ("8", "default")
    assert "0.0500" in mesh("config", "list").stdout


def test_the_file_beside_the_user_wins_over_that_of_the_home(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[network]\ngrpc_port = 6000\nmdns = false\n")
    Path("mesh.toml").write_text("[network]\ngrpc_port = 6001\n")
    assert mesh("config", "get", "network.grpc_port").stdout == "6001\n"
    assert mesh("config", "get", "network.mdns").stdout == "false\n"


def test_a_wrong_configuration_is_two_lines_and_exit_code_2(home: Path) -> None:
    Path("mesh.toml").write_text("[network]\ngrcp_port = 1\n")
    result = mesh("config", "list")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: network.grcp_port: there is no such key (mesh.toml)\n"
        "hint: did you mean network.grpc_port?\n"
    )


def test_config_path_says_where_things_lie(home: Path) -> None:
    paths = json.loads(mesh("config", "path", "--json").stdout)
    assert paths["schema"] == "mesh.paths/v1"
    assert paths["state"] == str(home / "state")
    assert "(not there)" in mesh("config", "path").stdout


def test_version_is_plain_and_json(home: Path) -> None:
    facts = json.loads(mesh("version", "--json").stdout)
    assert facts["schema"] == "mesh.version/v1"
    assert mesh("version", "-o", "id").stdout.strip() == facts["mesh"]


def test_flags_of_join_are_the_top_layer_and_are_named_when_wrong() -> None:
    layers = flag_layers({"cpus": "2", "bootstrap": (), "sell": False, "price": None})
    config = configure(layers)
    assert config.origins == {"sell.cpus": "flag --cpus", "sell.enabled": "flag --sell"}
    with pytest.raises(ConfigError, match=r"flag --grpc-port"):
        configure(flag_layers({"grpc_port": "many"}))


def test_a_fault_of_our_own_is_two_lines_unless_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESH_DEBUG", raising=False)
    report_fault(ZeroDivisionError, ZeroDivisionError("oops"), None)
    told = capsys.readouterr().err
    assert told.startswith("error: mesh itself broke: ZeroDivisionError: oops\nhint: ")
    monkeypatch.setenv("MESH_DEBUG", "1")
    report_fault(ZeroDivisionError, ZeroDivisionError("oops"), None)
    assert capsys.readouterr().err == "ZeroDivisionError: oops\n"


def test_words_of_strangers_cannot_reach_the_terminals_controls() -> None:
    assert (
        clean("a\x1b[2Jb\rc\x9bd") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}"
        "c\N{REPLACEMENT CHARACTER}d"
    )


def test_a_table_is_as_wide_as_it_needs_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = (Column("ID", lambda row: row["id"]), Column("W", lambda row: "w", is_wide=True))
    show_listing(Listing("thing", "things", "id", [{"id": "x" * 300}], columns, "1 thing"), "table")
    shown = capsys.readouterr()
    assert "x" * 300 in shown.out
    assert "W" not in shown.out
    assert shown.err == "1 thing\n"


def test_jsonl_has_the_schema_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    listing = Listing("thing", "things", "id", [{"id": "a"}, {"id": "b"}], ())
    show_listing(listing, "jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"schema": "mesh.thing/v1", "id": "a"}, {"schema": "mesh.thing/v1", "id": "b"}]


def test_passing_lines_are_left_out_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.pass_by("running")
    story.tell("done")
    assert capsys.readouterr().err == "done\n"


def test_on_a_terminal_one_passing_line_is_overwritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    story = Story()
    story.pass_by("running · 6,000,000 fuel")
    story.tell("done")
    assert capsys.readouterr().err == "\r\x1b[2Krunning · 6\r\x1b[2Kdone\n"


def test_nothing_and_something_for_sale_read_well() -> None:
    nothing = {"cpu_milli": 0, "memory": 0, "disk": 0, "slots": 0}
    assert show_capacity(nothing) == show_capacity(None) == "nothing"
    some = {"cpu_milli": 1500, "memory": 4 << 30, "disk": 20 << 30, "slots": 1}
    assert show_capacity(some) == "1.5 cores · 4 GiB RAM · 20 GiB disk · 1 slot"
    assert show_chance(989) == "98 %"


def test_every_verb_is_a_click_command() -> None:
    context = click.Context(cli)
    assert all(isinstance(cli.get_command(context, verb), click.Command) for verb in VERBS)
