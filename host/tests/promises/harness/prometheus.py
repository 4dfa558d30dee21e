"""What Prometheus' own parsers make of a host's metrics, and which metrics a board and its rules ask for.

In: `metrics text|openmetrics` with a page on stdin, or `queries FILE...` with boards (.json) and rules (.yml).
Out: JSON on stdout. Fails where a parser does. Needs prometheus-client, promql-parser and pyyaml.
"""

import json
import sys


def metrics(kind):
    if kind == "openmetrics":
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
    else:
        from prometheus_client.parser import text_string_to_metric_families as parse
    families = list(parse(sys.stdin.read()))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a family comes twice"
    samples = [[one.name, one.labels, one.value] for family in families for one in family.samples]
    keys = [(name, tuple(sorted(labels.items()))) for name, labels, _ in samples]
    assert len(keys) == len(set(keys)), "a sample comes twice"
    return {
        "families": [[family.name, family.type, bool(family.documentation)] for family in families],
        "samples": samples,
    }


def selected(node, found):
    """Names of the metrics below a node of a query's tree."""
    if isinstance(node, (list, tuple)):
        for one in node:
            selected(one, found)
        return
    if type(node).__name__ == "VectorSelector":
        found.add(node.name)
    for part in ("expr", "lhs", "rhs", "args", "param", "vector_selector", "vector"):
        child = getattr(node, part, None)
        if child is not None and not isinstance(child, (str, int, float)):
            selected(child, found)


def queries(files):
    import promql_parser
    import yaml

    asked = []
    for file in files:
        with open(file, encoding="utf-8") as text:
            content = json.load(text) if file.endswith(".json") else yaml.safe_load(text)
        if file.endswith(".json"):
            pairs = [(panel["title"], target["expr"]) for panel in content["panels"] for target in panel["targets"]]
        else:
            pairs = [(rule["alert"], rule["expr"]) for group in content["groups"] for rule in group["rules"]]
        for title, query in pairs:
            found = set()
            selected(promql_parser.parse(query.replace("$__rate_interval", "5m")), found)
            asked.append([file.rsplit("/", 1)[-1], title, sorted(found)])
    return asked


command, *rest = sys.argv[1:]
print(json.dumps(metrics(*rest) if command == "metrics" else queries(rest)))
