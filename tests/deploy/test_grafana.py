"""deploy/grafana by Grafana's own types and documentation, and against what it refers to. The newest published types
are those of Grafana 11.6."""

import json
import typing

import dashboard
import pydantic
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from mistakes import replaced

# https://grafana.com/docs/grafana/latest/administration/provisioning/
SOURCE_FIELDS = {"name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth", "basicAuthUser",
                 "withCredentials", "isDefault", "jsonData", "secureJsonData", "version", "editable"}
PROVIDER_FIELDS = {"name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds",
                   "allowUiUpdates", "options"}


def provisioned(deploy, file, key):
    text = yaml.safe_load((deploy / "grafana/provisioning" / file).read_text())
    (entry,) = text[key]
    assert text == {"apiVersion": 1, key: [entry]}
    return entry


@pytest.fixture
def source(deploy):
    return provisioned(deploy, "datasources/prometheus.yml", "datasources")


@pytest.fixture
def provider(deploy):
    return provisioned(deploy, "dashboards/kv-compressd.yml", "providers")


def lost(given, kept, at="dashboard"):
    """The places of a JSON value where another one, which may say more, does not say the same."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [place for name in given for place in lost(given[name], kept.get(name, ...), f"{at}.{name}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [place for index, pair in pairs for place in lost(*pair, f"{at}[{index}]")]
    return [] if given == kept else [at]


def misfits(value, at="dashboard"):
    """The places of a decoded value that are not of their declared types, which decoding does not look at."""
    if isinstance(value, list):
        return [place for index, item in enumerate(value) for place in misfits(item, f"{at}[{index}]")]
    if not type(value).__module__.startswith("grafana_foundation_sdk.models."):
        return []
    found = []
    for name, declared in typing.get_type_hints(type(value)).items():
        field = getattr(value, name)
        try:
            pydantic.TypeAdapter(declared, config={"arbitrary_types_allowed": True}).validate_python(field)
        except pydantic.ValidationError:
            found.append(f"{at}.{name}")
        found += misfits(field, f"{at}.{name}")
    return found


def faults(text):
    plugins.register_default_plugins()
    given = json.loads(text)
    decoded = Dashboard.from_json(given)
    return misfits(decoded) + lost(given, json.loads(json.dumps(decoded, cls=JSONEncoder)))


def test_the_dashboard_keeps_grafanas_types():
    assert not faults(dashboard.DASHBOARD.read_text())


@pytest.mark.parametrize(("mistake", "place"), [
    (('"graphTooltip"', '"graphTooltips"'), "dashboard.graphTooltips"),
    (('"colorMode": "value"', '"colourMode": "value"'), "dashboard.panels[1].options.colourMode"),
    (('"colorMode": "value"', '"colorMode": "bright"'), "dashboard.panels[1].options.color_mode"),
    (('"min": 0', '"min": "nought"'), "dashboard.panels[1].field_config.defaults.min_val"),
    (('"instant": true', '"instantly": true'), "dashboard.panels[1].targets[0].instantly")])
def test_grafanas_types_refuse_what_is_wrong(mistake, place):
    assert place in faults(replaced(dashboard.DASHBOARD.read_text(), *mistake))


def test_provisioning_has_documented_fields(source, provider):
    assert {"name", "type", "access"} <= set(source) <= SOURCE_FIELDS
    assert {"name", "type", "options"} <= set(provider) <= PROVIDER_FIELDS
    assert (source["type"], source["access"], provider["type"]) == ("prometheus", "proxy", "file")


def test_grafana_is_given_what_it_refers_to(deploy, source, provider):
    board = json.loads(dashboard.DASHBOARD.read_text())
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    config = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
