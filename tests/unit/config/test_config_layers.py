"""Configuration: layers, origins, and what an operator is told about a mistake."""

import tomllib
from pathlib import Path

import pytest

from mesh.config import (
    DEFAULT,
    Config,
    Layer,
    Sell,
    configure,
    environment_layers,
    find_setting,
    parse_toml,
    settings,
)
from mesh.errors import ConfigError
from mesh.ids import PeerId, format_peer
from mesh.resources.capacity import Capacity

DOCUMENTED = Path(__file__).parents[3] / "config" / "config.toml"
GIB = 1 << 30
PEER = format_peer(PeerId(bytes(32)))


def given(section: str, key: str, value: object, origin: str = "mesh.toml") -> Config:
    return configure([Layer(origin, {section: {key: value}})])


def mistake(section: str, key: str, value: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        given(section, key, value)
    return caught.value


def test_nothing_set_is_a_whole_configuration() -> None:
    config = configure([])
    assert config == Config()
    assert {setting.origin for setting in settings(config)} == {DEFAULT}


def test_the_seeds_configuration_works_as_it_stands() -> None:
    seed = """
        [network]
        grpc_port = "50051"
        websocket_port = "9001"

        [ipfs]
        api_url = "http://localhost:5001"
    """
    config = configure([parse_toml(seed, "config.toml")])
    assert config.network.grpc_port == 50_051
    assert config.network.websocket_port == 9001
    assert config.ipfs.api_url == "http://localhost:5001"
    assert config == Config()


def test_a_port_may_be_text_or_an_integer() -> None:
    assert given("network", "grpc_port", "6000") == given("network", "grpc_port", 6000)


def test_the_documented_file_equals_the_defaults() -> None:
    assert configure([parse_toml(DOCUMENTED.read_text(), "config/config.toml")]) == Config()


def test_the_documented_file_names_every_key() -> None:
    documented = tomllib.loads(DOCUMENTED.read_text())
    named = [f"{section}.{key}" for section, keys in documented.items() for key in keys]
    assert named == [setting.key for setting in settings(Config())]


def test_every_value_is_written_as_it_is_read() -> None:
    config = configure(
        [
            Layer("flag", {"network": {"bootstrap": ["/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW"]}}),
            Layer("flag", {"sell": {"cpus": 1.5, "memory": "4GiB", "price": "0.031"}}),
            Layer("flag", {"network": {"announce": ["/ip4/192.0.2.7/tcp/4001"]}}),
            Layer("flag", {"ledger": {"witnesses": [PEER], "credit_line": "0.5", "tier": "T2"}}),
            Layer("flag", {"node": {"name": 'the "blue" one \\ two'}, "network": {"mdns": False}}),
        ]
    )
    written: dict[str, list[str]] = {}
    for setting in settings(config):
        section, key = setting.key.split(".")
        written.setdefault(section, []).append(f"{key} = {setting.value}")
    text = "\n".join(f"[{name}]\n" + "\n".join(keys) for name, keys in written.items())
    assert configure([parse_toml(text, "again")]) == config


def test_the_later_layer_wins_key_by_key_and_origins_are_kept() -> None:
    config = configure(
        [
            Layer("/etc/mesh/config.toml", {"network": {"grpc_port": 6000, "mdns": False}}),
            Layer("./mesh.toml", {"network": {"grpc_port": 6001}}),
            *environment_layers({"MESH_SELL__CPUS": "1"}),
            Layer("--price", {"sell": {"price": "1"}}),
        ]
    )
    assert (config.network.grpc_port, config.network.mdns) == (6001, False)
    assert (config.sell.cpus, config.sell.price) == (1000, 1_000_000)
    assert config.origins == {
        "network.grpc_port": "./mesh.toml",
        "network.mdns": "/etc/mesh/config.toml",
        "sell.cpus": "env MESH_SELL__CPUS",
        "sell.price": "--price",
    }
    assert find_setting(config, "network.listen_port").origin == DEFAULT


def test_the_environment_speaks_for_sections_only() -> None:
    environ = {"MESH_HOME": "/x", "MESH_ADDR": "y", "HOME": "/z", "OTHER__KEY": "1"}
    assert environment_layers(environ) == []


def test_a_list_may_come_from_the_environment() -> None:
    address = "/ip4/127.0.0.1/tcp/1/p2p/12D3"
    layers = environment_layers({"MESH_NETWORK__BOOTSTRAP": f"{address},{address}"})
    assert configure(layers).network.bootstrap == (address, address)


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("network", "grcp_port", "did you mean network.grpc_port?"),
        ("netwrok", "grpc_port", "did you mean network?"),
        ("sell", "grpc_port", "did you mean network.grpc_port?"),
        ("sell", "zebra", "mesh config list names them all"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_its_origin(section: str, key: str, hint: str) -> None:
    error = mistake(section, key, 1)
    assert error.hint == hint
    assert "mesh.toml" in error.why


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("network", "grpc_port", 70_000, "70000 is not within 0…65535 (mesh.toml)"),
        ("network", "grpc_port", "many", "'many' is not a whole number (mesh.toml)"),
        ("network", "grpc_port", True, "True is not a whole number (mesh.toml)"),
        ("network", "mdns", "perhaps", "'perhaps' is neither true nor false (mesh.toml)"),
        ("network", "listen_host", "example", "'example' does not appear to be an IPv4 or IPv6"),
        ("network", "grpc_host", "0.0.0.0", "0.0.0.0 is not a loopback address"),
        ("network", "bootstrap", ["/ip4/1.2.3.4/tcp/1"], "is not a full multiaddress"),
        ("network", "bootstrap", 7, "is not a list of at most 64 addresses"),
        ("network", "bootstrap", [7], "7 is not text"),
        ("network", "announce", [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"], "without /p2p/"),
        ("network", "announce", ["1.2.3.4:4001"], "is not a multiaddress without /p2p/"),
        ("sell", "price", 0.04, "0.04 is not text"),
        ("sell", "price", "-1", "'-1' is not an amount of credits"),
        ("sell", "memory", "12 potatoes", "'12 potatoes' is not a size"),
        ("sell", "memory", "1MiB", "1MiB is not within 16MiB…64TiB"),
        ("sell", "cpus", "0", "0 is not within 0.01…4096"),
        ("sell", "slots", 0, "0 is not within 1…4096"),
        ("ipfs", "api_url", "localhost:5001", "is not an http or https URL"),
        ("market", "candidates", 33, "33 is not within 1…32"),
        ("market", "window_ms", "1h", "3600000 is not within 50…900"),
        ("market", "lease_ttl_s", "1500ms", "'1500ms' is not a whole number of seconds"),
        ("storage", "quota", "1B", "1B is not within 64MiB…1024TiB"),
        ("forecast", "model", "oracle", "'oracle' is not one of them"),
        ("ledger", "repair_s", 0, "0 is not within 1…3600"),
        ("ledger", "full_repair_s", "1s", "1 is not within 10…86400"),
        ("ledger", "credit_line", "-1", "'-1' is not an amount of credits"),
        ("ledger", "tier", "T3", "'T3' is not one of them"),
        ("ledger", "witnesses", ["bob"], "'bob' is not the peer id of an Ed25519 key"),
        ("ledger", "witness", "maybe", "'maybe' is neither true nor false"),
        ("node", "name", "a\nb", "not printable"),
    ],
)
def test_a_bad_value_says_key_value_range_and_fix(
    section: str, key: str, value: object, why: str
) -> None:
    error = mistake(section, key, value)
    assert error.key == f"{section}.{key}"
    assert why in error.why
    assert error.hint.startswith("set it to ")


def test_durations_may_carry_their_unit() -> None:
    assert given("market", "window_ms", "0.5s").market.window_ms == 500
    assert given("market", "lease_ttl_s", "1m").market.lease_ttl_s == 60


def test_a_section_that_is_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="is a value, not a section"):
        configure([Layer("mesh.toml", {"network": 4})])


def test_text_that_is_not_toml_says_where() -> None:
    with pytest.raises(ConfigError, match=r"mesh.toml: is not TOML: .*line 1"):
        parse_toml("[network\n", "mesh.toml")


def test_two_services_on_one_port_are_refused_but_two_free_ones_are_not() -> None:
    assert given("network", "grpc_port", 0).network.grpc_port == 0
    with pytest.raises(ConfigError, match=r"network.websocket_port: 50051 is also network.grpc"):
        given("network", "websocket_port", 50_051)
    both = Layer("flag", {"network": {"grpc_port": 0, "websocket_port": 0}})
    assert configure([both]).network.websocket_port == 0


def test_an_unknown_key_that_is_asked_for_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        find_setting(Config(), "network.grpc_prot")
    assert caught.value.hint == "did you mean network.grpc_port?"


def test_auto_sells_what_the_owner_will_not_miss() -> None:
    machine = Capacity(cpu_milli=4000, memory=8 * GIB, disk=400 * GIB)
    assert Sell().capacity(machine) == Capacity(3000, 6 * GIB, 20 * GIB, 3)


def test_a_machine_with_one_core_sells_half_of_it() -> None:
    machine = Capacity(cpu_milli=1000, memory=GIB, disk=GIB)
    assert Sell().capacity(machine) == Capacity(500, GIB * 3 // 4, GIB // 4, 1)


def test_never_more_is_sold_than_the_machine_has() -> None:
    machine = Capacity(cpu_milli=2000, memory=GIB, disk=GIB)
    sell = Sell(cpus=64_000, memory=64 * GIB, disk=64 * GIB, slots=4)
    assert sell.capacity(machine) == Capacity(2000, GIB, GIB, 4)


def test_a_node_that_only_buys_sells_nothing() -> None:
    assert Sell(enabled=False).capacity(Capacity(4000, GIB, GIB)) == Capacity()
