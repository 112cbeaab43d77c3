"""Checks what deploys the server: the manifests by the schemas of Kubernetes and KServe, and the Containerfile.

    python3 check_deploy.py [PROJECT_FOLDER]

Fields that a schema does not know are faults, as are names that lead nowhere. Prints a sentence for each
fault, and ends with 1 if there are any. Needs kubernetes-validate, which has Kubernetes' schemas, and kserve,
of which only the source of its models is read (install it without what it depends on).
"""

import ast
import importlib.util
import json
import pathlib
import re
import sys
import tomllib

import jsonschema
import kubernetes_validate.utils
import yaml
from referencing import Registry, Resource

# The oldest and the newest that the manifests are for.
VERSIONS = ["1.28.0", "1.37.0"]
# What the API server's own reader takes.
QUANTITY = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
DEFINITIONS = "kubernetes-json-schema/v{}-local-strict/_definitions.json"
SCHEMA = "kubernetes-json-schema/v{}-local-strict/{}.json"


class Loader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which others take the last, and one with nothing, which is none."""

    def construct_mapping(self, node, deep=False):
        fields = [(self.construct_object(key), value) for key, value in node.value]
        names = [name for name, _ in fields]
        for name, value in fields:
            fault = "given twice" if names.count(name) > 1 else "empty" if value.tag.endswith(":null") else None
            if fault:
                raise yaml.MarkedYAMLError(problem=f"the field {name!r} is {fault}", problem_mark=value.start_mark)
        return super().construct_mapping(node, deep)


def definitions(version):
    found = kubernetes_validate.utils.schema_contents(DEFINITIONS.format(version), version)
    for option in found["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]["oneOf"]:
        option["pattern"] = QUANTITY
    return found


def kubernetes_schema(resource, version):
    """As kubernetes-validate names its files: apps/v1 Deployment is deployment-apps-v1."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", resource["apiVersion"])
    name = f"{resource['kind'].lower()}-{group}"
    return kubernetes_validate.utils.schema_contents(SCHEMA.format(version, name), version)


def kserve_schema(definitions):
    """The models of KServe as a schema, with the definitions of Kubernetes that they name."""
    kubernetes = {}
    for key in definitions["$defs"]:
        parts = [part[0].upper() + part[1:] for part in key.split(".")]
        kubernetes["".join(["K8sIo", *parts[2:]])] = key
        if key.startswith(("io.k8s.api.core.", "io.k8s.apimachinery.pkg.apis.meta.")):
            kubernetes["".join(parts[-2:])] = key
    quantity = "io.k8s.apimachinery.pkg.api.resource.Quantity"
    kubernetes |= {"ResourceQuantity": quantity, "V1beta1MetricQuantity": quantity}
    plain = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
    schema = {}

    def type_schema(name):
        if name in plain:
            return {"type": plain[name]}
        if found := re.fullmatch(r"list\[(.+)\]", name):
            return {"type": "array", "items": type_schema(found[1])}
        if found := re.fullmatch(r"dict\(str, (.+)\)", name):
            return {"type": "object", "additionalProperties": type_schema(found[1])}
        if name in models:
            return {"$ref": f"#/$defs/{name}"}
        # A type that this Kubernetes does not know yet takes nothing.
        return {"$ref": f"{definitions['$id']}#/$defs/{kubernetes[name]}"} if name in kubernetes else False

    folder = pathlib.Path(importlib.util.find_spec("kserve").submodule_search_locations[0]) / "models"
    texts = [file.read_text() for file in folder.glob("v1beta1_*.py")]
    models = {re.search(r"^class (\w+)", text, re.M)[1]: text for text in texts}
    wanted = ["V1beta1InferenceService"]
    while wanted:
        model = wanted.pop()
        text = models[model]
        part = lambda name: ast.literal_eval(re.search(name + r" = (\{.*?\n    \})", text, re.S)[1])
        types, names = part("openapi_types"), part("attribute_map")
        # Written by KServe, never by a manifest.
        types.pop("status", None)
        schema[model] = {
            "type": "object",
            "properties": {names[field]: type_schema(type) for field, type in types.items()},
            "required": [names[field] for field in re.findall(r"Invalid value for `(\w+)`, must not be `None`", text)],
            "additionalProperties": False,
        }
        named = {word for type in types.values() for word in re.findall(r"\w+", type)}
        wanted += [name for name in named if name in models and name not in schema and name not in wanted]
    root = schema["V1beta1InferenceService"]
    # The models do not ask for the fields that every resource has.
    root["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$schema": definitions["$schema"], "$ref": "#/$defs/V1beta1InferenceService", "$defs": schema}


def faults_of_schema(resource, version):
    known = definitions(version)
    if resource["apiVersion"] == "serving.kserve.io/v1beta1" and resource["kind"] == "InferenceService":
        schema = kserve_schema(known)
    else:
        schema = kubernetes_schema(resource, version)
    registry = Resource.from_contents(known) @ Registry()
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    for error in sorted(validator.iter_errors(resource), key=str):
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield f"{field.lstrip('.') or 'the resource'}: {error.message[:300]}"


def faults_of_pods(pods):
    """Names that lead nowhere, of a PodSpec."""
    volumes = {volume["name"] for volume in pods.get("volumes", [])}
    for container in pods["containers"]:
        ports = {port.get("name") for port in container.get("ports", [])}
        ports |= {port["containerPort"] for port in container.get("ports", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts the volume {mount['name']}, which there is not"
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            if container[probe]["httpGet"]["port"] not in ports:
                yield f"the {probe} of {container['name']} asks a port that the container has not"


def faults_of_names(resources):
    """Names that lead nowhere, of resources whose schemas are right."""
    by_kind = {kind: [r for r in resources if r["kind"] == kind] for kind in {r["kind"] for r in resources}}
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in by_kind.get("Deployment", [])]
    for resource in resources:
        spec, faults = resource["spec"], []
        selector = spec.get("selector", {})
        selector = selector.get("matchLabels", selector)
        if selector and not any(selector.items() <= of_pods.items() for of_pods in labels):
            faults.append(f"no pods have the labels {selector}")
        if resource["kind"] == "Deployment":
            faults += faults_of_pods(spec["template"]["spec"])
        if resource["kind"] == "InferenceService":
            faults += faults_of_pods(spec["predictor"])
        if resource["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if not any(r["metadata"]["name"] == target["name"] for r in by_kind.get(target["kind"], [])):
                faults.append(f"there is no {target['kind']} {target['name']}")
        yield from (f"{resource['kind']} {resource['metadata']['name']}: {fault}" for fault in faults)


def faults_of_manifest(file):
    try:
        resources = [resource for resource in yaml.load_all(file.read_text(), Loader) if resource is not None]
    except yaml.YAMLError as error:
        return [" ".join(str(error).split())]
    faults = []
    for number, resource in enumerate(resources, start=1):
        try:
            name = f"{resource['kind']} {resource['metadata']['name']}"
            api = resource["apiVersion"]
        except (KeyError, TypeError) as error:
            faults.append(f"resource {number} has no {error}")
            continue
        for version in VERSIONS:
            try:
                faults += [f"{name}: {fault} (Kubernetes {version})" for fault in faults_of_schema(resource, version)]
            except FileNotFoundError:
                faults.append(f"{name}: Kubernetes {version} has no such kind in {api}")
    return faults or list(faults_of_names(resources))


def faults_of_containerfile(project):
    """What it copies must be there, with every package of the workspace."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (project / "Containerfile").read_text(), re.M)
    copied = {name for names in copied for name in names.split()}
    members = tomllib.loads((project / "Cargo.toml").read_text())["workspace"]["members"]
    yield from (f"it copies {name}, which there is not" for name in sorted(copied) if not (project / name).exists())
    yield from (f"it does not copy the package {member}" for member in members if member not in copied)


def main():
    project = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
    faults = {name: faults_of_manifest(project / "deploy" / name) for name in ["kubernetes.yaml", "kserve.yaml"]}
    faults["Containerfile"] = list(faults_of_containerfile(project))
    for name, found in faults.items():
        for fault in found:
            print(f"{name}: {fault}")
    return any(faults.values())


if __name__ == "__main__":
    sys.exit(main())
