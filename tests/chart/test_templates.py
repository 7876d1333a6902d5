"""What the chart's templates decide: rendered by helm, looked at as objects."""
import base64
import itertools
import json
import re
import unittest

import yaml

import manifests
import pod_security
from render import CHART, ROOT, Refused, by_kind, config, helm, named, pod_of, preset_names, render, render_text, value_arguments

SERVICE = "participant.v1.ParticipantService"
SID = "AC00000000000000000000000000000001"
EVENTS = {"events.enabled": True, "events.publicUrl": "https://gateway.example.com/events"}
HPA = {"autoscaling.enabled": True}


def gateway(objects):
    return pod_of(objects)["spec"]["containers"][0]


def probe_arguments(objects):
    return named(objects, "Pod", "-test")["spec"]["containers"][0]["args"]


def methods_of_the_proto():
    """The service's methods by what a mesh may do with them."""
    proto = (ROOT / "proto/participant/v1/participant_service.proto").read_text()
    kinds = {"reads": set(), "streams": set(), "writes": set()}
    for name, answer, body in re.findall(r"rpc (\w+)\(\w+\) returns \(((?:stream )?)\w+\)(;| \{.*?\n  \})", proto, re.DOTALL):
        level = re.search(r"idempotency_level = (\w+);", body)
        read = level and level[1] == "NO_SIDE_EFFECTS"
        kinds["streams" if answer else "reads" if read else "writes"].add(name)
    return kinds


class Refusals(unittest.TestCase):
    """Each names the value that has to change."""

    def refused(self, message, preset="default", **values):
        with self.assertRaises(Refused) as caught:
            render_text(preset, {name.replace("__", "."): value for name, value in values.items()})
        self.assertIn(message, str(caught.exception))

    def test_typos(self):
        self.refused("additional properties 'replicaCont' not allowed", replicaCont=1)
        self.refused("at '/twilio': additional properties 'existingSecre' not allowed", twilio__existingSecre="x")
        self.refused("at '/config/cache': additional properties 'tll' not allowed", config__cache__tll="1s")

    def test_values_out_of_range(self):
        for values, place in [
            ({"image.digest": "sha256:short"}, "/image/digest"),
            ({"mesh.kind": "consul"}, "/mesh/kind"),
            ({"drain.delay": "5"}, "/drain/delay"),
            ({"cache.memoryPercent": 90}, "/cache/memoryPercent"),
            ({"events.publicUrl": "http://gateway.example.com/events"}, "/events/publicUrl"),
            ({"twilio.accountSid": "AC1"}, "/twilio/accountSid"),
            ({"resources.limits.memory": 1}, "/resources/limits/memory"),
            ({"rollout.maxSurge": "0%"}, "/rollout/maxSurge"),
        ]:
            with self.subTest(place), self.assertRaises(Refused) as caught:
                render_text("default", values)
            self.assertIn(f"at '{place}'", str(caught.exception))

    def test_credentials(self):
        self.refused("twilio.existingSecret: there are no credentials", preset=None)
        further = {"config__accounts": [{"account_sid": SID}], "preset": None}
        self.refused("twilio.existingSecret: twilio.accountSid is set", twilio__accountSid=SID, **further)
        self.refused("twilio.accountSid: set the SID", twilio__accountSid="")
        self.refused("twilio.existingSecret, twilio.inline: set one of them", twilio__inline__apiSecret="x")
        self.refused("twilio.existingSecret, twilio.csi.secretProviderClass: set one", twilio__csi__secretProviderClass="x")
        self.refused("sandbox.enabled: the sandbox brings its own account", sandbox__enabled=True)
        self.refused("twilio.inline.authToken: it is not used", preset="inline", twilio__inline__authToken="x")
        self.refused("twilio.inline.apiSecret: set it", preset="inline", twilio__inline__apiSecret="")
        self.refused("twilio.secretKeys.secondaryAuthToken: without", twilio__secretKeys__secondaryAuthToken="second")

    def test_secrets_in_the_configmap(self):
        account = {"account_sid": SID, "auth_token": "x"}
        self.refused("config.accounts[0].auth_token: it would be readable", config__accounts=[account])
        self.refused("config.page_token_key: it would be readable", config__page_token_key="0123456789abcdef")
        self.refused("bus.redis.url: there is a password or a user in it", bus__redis__url="redis://:pw@redis:6379")

    def test_settings_that_other_values_decide(self):
        for key, value in [
            ("grpc.listen", "listenAddress"),
            ("auth.mode", "auth.mode"),
            ("events.public_url", "events.publicUrl"),
            ("cache.max_bytes", "cache.maxBytes"),
            ("drain.timeout", "drain.timeout"),
            ("redis.url", "bus.redis.url"),
            ("kinesis.stream", "kinesis.stream"),
        ]:
            with self.subTest(key):
                setting = 1 if key == "cache.max_bytes" else "x"
                self.refused(f"config.{key}: set the value {value}", **{f"config.{key}": setting})

    def test_variables(self):
        self.refused("extraEnv: TWILIO_AUTH_TOKEN would be readable", extraEnv=[{"name": "TWILIO_AUTH_TOKEN", "value": "x"}])
        drain = [{"name": "GATEWAY_DRAIN_TIMEOUT", "value": "1h"}]
        aws = {"name": "AWS_SECRET_ACCESS_KEY"}
        self.refused("extraEnv: AWS_SECRET_ACCESS_KEY would be readable", extraEnv=[aws | {"value": "x"}])
        by_reference = aws | {"valueFrom": {"secretKeyRef": {"name": "aws", "key": "secret"}}}
        self.assertIn(by_reference, gateway(render("kinesis", {"extraEnv": [by_reference]}))["env"])
        self.refused("extraEnv: in place of GATEWAY_DRAIN_TIMEOUT set the value drain.timeout", extraEnv=drain)

    def test_events(self):
        self.refused("events.publicUrl: set the URL", events__enabled=True)
        self.refused("events.enabled: set it", events__ingress__enabled=True)
        self.refused("events.httpRoute.parentRefs: name a Gateway", preset="events-redis", events__httpRoute__parentRefs=[])
        self.refused("events.publicUrl: its path is /hook", preset="full", events__publicUrl="https://a.example.com/hook")
        self.refused("events.enabled: the sandbox's events", preset="sandbox", events__enabled=True)
        self.refused("kinesis.region: set it", kinesis__stream="events")
        self.refused("kinesis.roleArn: it is an annotation", preset="kinesis", serviceAccount__create=False)
        redis = {"bus.redis.url": "redis://r", "bus.redis.existingSecret": "r"}
        self.refused("bus.redis.url: bus.redis.existingSecret is set", **redis)

    def test_pods(self):
        self.refused("replicaCount: autoscaling.enabled decides", autoscaling__enabled=True, replicaCount=3)
        self.refused("autoscaling.minReplicas: it is above", autoscaling__enabled=True, autoscaling__minReplicas=11)
        self.refused("autoscaling.targetCPUUtilizationPercentage: it is", **HPA, resources__requests__cpu=None)
        self.refused("replicaCount: each pod would have a sandbox", preset="sandbox", replicaCount=2)
        self.refused("replicaCount: each pod would have a sandbox", preset="sandbox", autoscaling__enabled=True)
        self.refused("drain.terminationGracePeriodSeconds: 34 is less than the 35", drain__terminationGracePeriodSeconds=34)
        self.refused("cache.maxBytes: set it, or resources.limits.memory", resources__limits__memory=None)
        self.refused("cache.maxBytes: more than three quarters", cache__maxBytes=250000000)

    def test_meshes_and_monitoring(self):
        short = {"mesh.routes.writeTimeout": "30s"}
        self.refused("mesh.routes.writeTimeout: it has to be above limits.call_timeout, 30s", preset="istio", **short)
        self.refused("above limits.call_timeout, 1m", preset="linkerd", config__limits__call_timeout="1m")
        self.refused("mesh.linkerd.probeNetworks: name", preset="linkerd", mesh__linkerd__probeNetworks=[])
        self.refused("test.enabled: without native sidecars", preset="istio", mesh__nativeSidecar=False)
        self.refused("podMonitor.enabled: with serviceMonitor.enabled", preset="full", podMonitor__enabled=True)
        self.refused("prometheusRule.runbookBaseUrl: set", prometheusRule__enabled=True)
        self.refused("grpcRoute.parentRefs: name", grpcRoute__enabled=True)

    def test_a_cluster_that_is_too_old(self):
        with self.assertRaises(Refused):
            render_text("default", kube="1.26.0")
        with self.assertRaises(Refused) as caught:
            render_text("linkerd", kube="1.28.0")
        self.assertIn("mesh.nativeSidecar: Kubernetes has native sidecars from 1.29 on", str(caught.exception))


class OlderClusters(unittest.TestCase):
    def test_they_know_every_field(self):
        """The newest are checked by manifests.py."""
        without_native = {"mesh.nativeSidecar": False, "test.enabled": False}
        for minor in ("1.27", "1.29", "1.30", "1.34"):
            values = {"service.trafficDistribution": "PreferClose"} | (without_native if minor == "1.27" else {})
            for name in preset_names():
                for item in render(name, values, f"{minor}.0"):
                    with self.subTest(minor, preset=name, kind=item["kind"]):
                        manifests.validate(item, minor)


class Configuration(unittest.TestCase):
    def test_the_cache_has_its_share_of_the_memory(self):
        for limit, percent, wanted in [
            ("256Mi", 25, 64 << 20),
            ("1Gi", 25, 256 << 20),
            ("1.5Gi", 50, 768 << 20),
            ("500M", 10, 50_000_000),
            ("1048576Ki", 25, 256 << 20),
            ("268435456", 25, 64 << 20),
        ]:
            with self.subTest(limit):
                objects = render("default", {"resources.limits.memory": limit, "cache.memoryPercent": percent})
                self.assertEqual(config(objects)["cache"]["max_bytes"], wanted)

    def test_the_cache_has_what_is_given(self):
        for given in (0, 150_000_000):
            self.assertEqual(config(render("default", {"cache.maxBytes": given}))["cache"]["max_bytes"], given)

    def test_numbers_booleans_and_text_keep_their_kind(self):
        text = 'a "quoted" \\ text, <with> & é'
        values = {
            "config.upstream": {"max_response_bytes": 123456789012, "propagate_trace": True},
            "config.log.filter": text,
            "config.page_token_key_file": "/key",
        }
        settings = config(render("default", values))
        self.assertEqual(settings["upstream"], {"max_response_bytes": 123456789012, "propagate_trace": True})
        self.assertEqual(settings["log"]["filter"], text)
        self.assertEqual(settings["page_token_key_file"], "/key")
        # Out of a file of values Helm reads every number as a float.
        self.assertIs(type(config(render("full"))["upstream"]["max_response_bytes"]), int)

    def test_connections_are_bounded_as_callers_connect(self):
        """By themselves, or through a mesh's proxy; what `config` says comes first."""
        for preset, values, wanted in [
            ("default", {}, {"max_age": "20m"}),
            ("default", {"config.connections.max_age": "0s"}, {"max_age": "0s"}),
            ("default", {"config.connections.max": 100}, {"max_age": "20m", "max": 100}),
            ("istio", {}, {"max_per_peer": 4096}),
            ("linkerd", {"config.connections.max": 1_000_000}, {"max_per_peer": 1_000_000, "max": 1_000_000}),
            ("linkerd", {"config.connections.max_per_peer": 10}, {"max_per_peer": 10}),
        ]:
            with self.subTest(preset, **values):
                self.assertEqual(config(render(preset, values))["connections"], wanted)

    def test_further_accounts_follow_the_first(self):
        accounts = config(render("full"))["accounts"]
        self.assertEqual([account["account_sid"][-1] for account in accounts], ["1", "2"])

    def test_accounts_of_the_configuration_are_enough(self):
        objects = render(None, {"config.accounts": [{"account_sid": SID, "auth_token_file": "/x"}]})
        self.assertEqual(len(config(objects)["accounts"]), 1)
        self.assertEqual([volume["name"] for volume in pod_of(objects)["spec"]["volumes"]], ["config"])

    def test_the_sandbox_has_no_account(self):
        objects = render("sandbox")
        self.assertNotIn("accounts", config(objects))
        self.assertIn("--sandbox", gateway(objects)["args"])
        for name in preset_names():
            if name != "sandbox":
                self.assertNotIn("--sandbox", gateway(render(name))["args"])

    def test_each_file_that_is_named_is_mounted(self):
        for name in preset_names():
            objects = render(name)
            settings = config(objects)
            tables = [settings, *settings["accounts"]] if "accounts" in settings else [settings]
            tables += [table for table in settings.values() if isinstance(table, dict)]
            files = [value for table in tables for key, value in table.items() if key.endswith("_file")]
            mounts = [mount["mountPath"] for mount in gateway(objects)["volumeMounts"]]
            for file in files:
                with self.subTest(name, file=file):
                    self.assertIn(file.rsplit("/", 1)[0], mounts)

    def test_what_signs_in_decides_about_the_files(self):
        for sign_in, events, wanted in [
            ("apiKey", {}, {"api_key_file", "api_secret_file"}),
            ("oauthClient", {}, {"client_id_file", "client_secret_file"}),
            ("authToken", {}, {"auth_token_file"}),
            ("authToken", EVENTS, {"auth_token_file"}),
            ("apiKey", EVENTS, {"api_key_file", "api_secret_file", "auth_token_file"}),
        ]:
            with self.subTest(sign_in, events=bool(events)):
                (account,) = config(render("default", {"twilio.signIn": sign_in, **events}))["accounts"]
                self.assertEqual(set(account) - {"account_sid"}, wanted)

    def test_the_checksum_follows_the_configuration_and_nothing_else(self):
        def checksum(values=None):
            return pod_of(render("default", values))["metadata"]["annotations"]["checksum/config"]

        self.assertNotEqual(checksum(), checksum({"config.cache.ttl": "1m"}))
        self.assertNotEqual(checksum(), checksum({"drain.timeout": "21s"}))
        self.assertEqual(checksum(), checksum({"podLabels.a": "b", "replicaCount": 5}))

    def test_the_listeners_are_where_the_ports_are(self):
        objects = render("default", EVENTS | {"listenAddress": "0.0.0.0"})
        settings = config(objects)
        listeners = {name: settings[name]["listen"] for name in ("grpc", "admin", "events")}
        ports = {port["name"]: f"0.0.0.0:{port['containerPort']}" for port in gateway(objects)["ports"]}
        self.assertEqual(listeners, ports)

    def test_the_exporter_is_told_by_variables(self):
        environment = {entry["name"]: entry.get("value") for entry in gateway(render("full"))["env"]}
        self.assertEqual(environment["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://otel-collector.observability:4317")
        self.assertEqual(environment["OTEL_EXPORTER_OTLP_PROTOCOL"], "grpc")
        self.assertNotIn("env", gateway(render("default")))

    def test_a_variable_of_the_release_replaces_the_charts(self):
        ours = [entry["name"] for entry in gateway(render("full", {"extraEnv": []}))["env"]]
        theirs = {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "deployment.environment=shop"}
        entries = gateway(render("full", {"extraEnv": [theirs]}))["env"]
        self.assertEqual(sorted(entry["name"] for entry in entries), sorted(ours))
        self.assertIn(theirs, entries)

    def test_kinesis(self):
        objects = render("kinesis")
        self.assertEqual(config(objects)["kinesis"]["stream"].split(":")[0], "arn")
        role = named(objects, "ServiceAccount")["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        self.assertEqual(role, "arn:aws:iam::123456789012:role/participant-gateway")
        self.assertIn({"name": "AWS_REGION", "value": "us-east-1"}, gateway(objects)["env"])


class Secrets(unittest.TestCase):
    def test_only_inline_credentials_make_a_secret(self):
        made = [name for name in preset_names() if by_kind(render(name), "Secret")]
        self.assertEqual(made, ["inline"])

    def test_an_inline_secret_stands_there_and_nowhere_else(self):
        canary = "canary-of-the-chart"
        objects = render("inline")
        secret = named(objects, "Secret", "-twilio")
        self.assertEqual(base64.b64decode(secret["data"]["api-secret"]).decode(), canary)
        rest = json.dumps([item for item in objects if item is not secret])
        self.assertNotIn(canary, rest)
        self.assertNotIn(base64.b64encode(canary.encode()).decode(), rest)
        self.assertNotIn(canary, notes("inline"))

    def test_inline_credentials_of_each_kind(self):
        client = {"clientId": "OQ" + "0" * 32, "clientSecret": "a"}
        tokens = {"authToken": "b", "secondaryAuthToken": "c"}
        for sign_in, inline, keys in [
            ("oauthClient", client, {"client-id", "client-secret"}),
            ("authToken", tokens, {"auth-token", "second"}),
        ]:
            values = {f"twilio.inline.{name}": value for name, value in inline.items()}
            values |= {"twilio.accountSid": SID, "twilio.signIn": sign_in}
            if "secondaryAuthToken" in inline:
                values["twilio.secretKeys.secondaryAuthToken"] = "second"
            objects = render(None, values)
            self.assertEqual(set(named(objects, "Secret", "-twilio")["data"]), keys)
            (account,) = config(objects)["accounts"]
            self.assertEqual({path.rsplit("/", 1)[1] for key, path in account.items() if key.endswith("_file")}, keys)

    def test_no_secret_is_an_environment_variable(self):
        for name in preset_names():
            for entry in gateway(render(name)).get("env", []):
                with self.subTest(name, variable=entry["name"]):
                    self.assertNotIn("secretKeyRef", entry.get("valueFrom", {}))
                    self.assertNotRegex(entry["name"], "SECRET|TOKEN|PASSWORD")

    def test_the_volume_is_that_of_the_source(self):
        def volume(preset):
            return {volume["name"]: volume for volume in pod_of(render(preset))["spec"]["volumes"]}["twilio"]

        self.assertEqual(volume("default")["secret"], {"secretName": "twilio", "defaultMode": 0o440})
        self.assertEqual(volume("inline")["secret"]["secretName"], "rel-participant-gateway-twilio")
        self.assertEqual(volume("csi")["csi"]["volumeAttributes"], {"secretProviderClass": "twilio"})


class Pods(unittest.TestCase):
    def test_every_pod_is_restricted(self):
        for name in preset_names():
            for pod, spec in pod_security.pods(render(name)):
                with self.subTest(name, pod=pod):
                    self.assertEqual(list(pod_security.violations(spec)), [])
                    self.assertIs(spec["automountServiceAccountToken"], False)
                    self.assertEqual(spec["securityContext"]["runAsUser"], 65532)
                    for container in spec["containers"]:
                        self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
                        self.assertIn("memory", container["resources"]["limits"])

    def test_the_check_finds_what_is_not_restricted(self):
        spec = pod_of(render("default"))["spec"]
        self.assertEqual(list(pod_security.violations(spec)), [])
        for break_it in [
            lambda spec: spec.update(hostNetwork=True),
            lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
            lambda spec: spec["securityContext"].pop("runAsNonRoot"),
            lambda spec: spec["securityContext"].update(runAsUser=0),
            lambda spec: spec["securityContext"].pop("seccompProfile"),
            lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
            lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
            lambda spec: spec["containers"][0].pop("securityContext"),
            lambda spec: spec["containers"][0]["ports"][0].update(hostPort=1),
        ]:
            broken = json.loads(json.dumps(spec))
            break_it(broken)
            self.assertTrue(list(pod_security.violations(broken)))

    def test_the_grace_period_is_the_sum(self):
        for values, kube, wanted in [
            ({}, "1.37.0", 5 + 5 + 20 + 5),
            ({}, "1.29.9", 5 + 20 + 5),
            ({"drain.delay": "1m30s", "drain.timeout": "500ms", "drain.marginSeconds": 10}, "1.30.0", 5 + 90 + 1 + 10),
            ({"drain.preStopSleepSeconds": 0, "drain.timeout": "1h"}, "1.37.0", 5 + 3600 + 5),
            ({"drain.terminationGracePeriodSeconds": 60}, "1.37.0", 60),
        ]:
            with self.subTest(values=values, kube=kube):
                spec = pod_of(render("default", values, kube))["spec"]
                self.assertEqual(spec["terminationGracePeriodSeconds"], wanted)

    def test_a_pod_sleeps_before_its_end_where_the_cluster_can(self):
        self.assertEqual(gateway(render("default", kube="1.30.0"))["lifecycle"], {"preStop": {"sleep": {"seconds": 5}}})
        self.assertNotIn("lifecycle", gateway(render("default", kube="1.29.9")))
        self.assertNotIn("lifecycle", gateway(render("default", {"drain.preStopSleepSeconds": 0})))

    def test_vendors_suffixes_of_versions_do_not_matter(self):
        self.assertIn("lifecycle", gateway(render("default", kube="v1.30.1-eks-036c24b")))
        self.assertIn("lifecycle", gateway(render("default", kube="v1.30.0-gke.100")))

    def test_probes_are_native_and_only_readiness_asks_for_the_service(self):
        container = gateway(render("default"))
        self.assertEqual(container["startupProbe"]["grpc"], {"port": 50051, "service": ""})
        self.assertEqual(container["livenessProbe"]["grpc"], {"port": 50051, "service": ""})
        self.assertEqual(container["readinessProbe"]["grpc"], {"port": 50051, "service": SERVICE})

    def test_a_policy_is_a_table_for_each_rule(self):
        rule = {"callers": ["spiffe://td/*"], "accounts": ["*"], "methods": ["read"], "pii": "shown"}
        only_reads = {"callers": ["*"], "accounts": [SID], "read_only": True}
        told = config(render("default", {"config.policy": {"rules": [rule, only_reads]}}))
        self.assertEqual(told["policy"], {"rules": [rule, only_reads]})
        self.assertEqual(config(render("default", {"config.policy": {"rules": []}}))["policy"], {})

    def test_with_tls_the_admin_listener_is_probed(self):
        container = gateway(render("default", {"config.tls": {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key"}}))
        for name, path in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
            self.assertEqual(container[name]["httpGet"], {"port": "admin", "path": path})
            self.assertNotIn("grpc", container[name])

    def test_the_image_is_named_by_digest_before_tag(self):
        digest = "sha256:" + "0" * 64
        for values, wanted in [
            ({}, "participant-gateway:0.1.0"),
            ({"image.registry": "r.example.com", "image.tag": "2"}, "r.example.com/participant-gateway:2"),
            ({"image.tag": "2", "image.digest": digest}, f"participant-gateway@{digest}"),
        ]:
            objects = render("default", values)
            self.assertEqual(gateway(objects)["image"], wanted)
            self.assertEqual(named(objects, "Pod", "-test")["spec"]["containers"][0]["image"], wanted)

    def test_replicas(self):
        def replicas(preset, values=None):
            return named(render(preset, values), "Deployment")["spec"].get("replicas")

        self.assertEqual(replicas("default"), 2)
        self.assertEqual(replicas("sandbox"), 1)
        self.assertEqual(replicas("default", {"replicaCount": 0}), 0)
        self.assertIsNone(replicas("default", HPA))

    def test_a_new_version_never_takes_pods_away(self):
        strategy = named(render("default"), "Deployment")["spec"]["strategy"]["rollingUpdate"]
        self.assertEqual(strategy, {"maxUnavailable": 0, "maxSurge": 1})

    def test_the_autoscaler_counts_the_gateway_and_its_calls(self):
        metrics = named(render("full"), "HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual([metric["type"] for metric in metrics], ["ContainerResource", "Pods"])
        self.assertEqual(metrics[1]["pods"]["metric"]["name"], "participant_calls_in_flight")
        documented = (ROOT / "docs/metrics.md").read_text()
        self.assertIn("| `participant_calls_in_flight` | gauge |", documented)

    def test_spread_can_be_replaced_and_dropped(self):
        def keys(values=None):
            spread = pod_of(render("default", values))["spec"]["topologySpreadConstraints"]
            return [(one["topologyKey"], one.get("matchLabelKeys")) for one in spread]

        by_revision = ["pod-template-hash"]
        default = [("topology.kubernetes.io/zone", by_revision), ("kubernetes.io/hostname", by_revision)]
        self.assertEqual(keys(), default)
        self.assertEqual(keys({"topologySpreadConstraints": []}), [])

    def test_every_selector_finds_the_gateways_pods_and_not_the_tests(self):
        for name in preset_names():
            objects = render(name)
            labels = pod_of(objects)["metadata"]["labels"]
            test = named(objects, "Pod", "-test")["metadata"]["labels"]
            for item in objects:
                spec = item.get("spec", {})
                found = spec.get("selector") or spec.get("podSelector")
                if not found or item["kind"] == "ServiceMonitor":
                    continue
                wanted = found.get("matchLabels", found)
                with self.subTest(name, item=item["kind"]):
                    self.assertLessEqual(wanted.items(), labels.items())
                    self.assertFalse(wanted.items() <= test.items())

    def test_common_labels_cannot_break_the_selectors(self):
        common = {"app.kubernetes.io/name": "x", "a": "b"}
        objects = render("default", {"commonLabels": common, "podLabels": {"app.kubernetes.io/instance": "y"}})
        selector = named(objects, "Deployment")["spec"]["selector"]["matchLabels"]
        labels = pod_of(objects)["metadata"]["labels"]
        self.assertLessEqual(selector.items(), labels.items())
        self.assertEqual(labels["a"], "b")

    def test_no_label_stands_there_twice(self):
        text = render_text("full", {"commonLabels": {"app.kubernetes.io/component": "x"}})
        self.assertNotIn("app.kubernetes.io/component: x", text)


class Services(unittest.TestCase):
    def test_ports_and_protocols(self):
        objects = render("full")
        services = {
            item["metadata"]["name"].removeprefix("rel-participant-gateway"): item["spec"] for item in by_kind(objects, "Service")
        }
        self.assertEqual(set(services), {"", "-headless", "-admin", "-events"})
        ports = {port["name"]: port["containerPort"] for port in gateway(objects)["ports"]}
        for suffix, spec in services.items():
            (port,) = spec["ports"]
            # A client that dials pods itself has the Service's port only.
            self.assertEqual(port["port"], ports[port["targetPort"]])
            self.assertEqual(port["appProtocol"], "grpc" if suffix in ("", "-headless") else "http")
            self.assertEqual(spec["ipFamilyPolicy"], "PreferDualStack")
        self.assertEqual(services["-headless"]["clusterIP"], "None")
        self.assertEqual({suffix for suffix, spec in services.items() if "clusterIP" in spec}, {"-headless"})

    def test_settings(self):
        values = {"service.appProtocol": "kubernetes.io/h2c", "service.headless": False, "service.ipFamilyPolicy": ""}
        objects = render("default", values)
        self.assertEqual(named(objects, "Service")["spec"]["ports"][0]["appProtocol"], "kubernetes.io/h2c")
        self.assertNotIn("ipFamilyPolicy", named(objects, "Service")["spec"])
        self.assertEqual(len(by_kind(objects, "Service")), 2)

    def test_traffic_distribution_is_gated(self):
        near = {"service.trafficDistribution": "PreferClose"}
        self.assertEqual(named(render("default", near, "1.30.0"), "Service")["spec"]["trafficDistribution"], "PreferClose")
        self.assertNotIn("trafficDistribution", named(render("default", near, "1.29.9"), "Service")["spec"])

    def test_what_twilio_reaches_is_the_events_listener_only(self):
        rule = named(render("full"), "Ingress", "-events")["spec"]["rules"][0]
        self.assertEqual(rule["host"], "gateway.example.com")
        (path,) = rule["http"]["paths"]
        self.assertEqual((path["path"], path["pathType"]), ("/events", "Exact"))
        self.assertEqual(path["backend"]["service"]["name"], "rel-participant-gateway-events")
        route = named(render("events-redis"), "HTTPRoute", "-events")["spec"]
        (rule,) = route["rules"]
        self.assertEqual(route["hostnames"], ["hooks.example.com"])
        self.assertEqual(rule["matches"], [{"path": {"type": "Exact", "value": "/twilio/participants"}, "method": "POST"}])
        self.assertEqual(rule["filters"][0]["urlRewrite"]["path"]["replaceFullPath"], "/events")
        self.assertEqual(rule["backendRefs"], [{"name": "rel-participant-gateway-events", "port": 8080}])

    def test_the_ingress_has_a_certificate_of_a_secret_or_of_cert_manager(self):
        (tls,) = named(render("full"), "Ingress", "-events")["spec"]["tls"]
        self.assertEqual(tls, {"hosts": ["gateway.example.com"], "secretName": "gateway-example-com"})
        certificate = named(render("full"), "Certificate", "-events")["spec"]
        self.assertEqual((certificate["secretName"], certificate["dnsNames"]), (tls["secretName"], tls["hosts"]))
        issuer = {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "letsencrypt"}
        self.assertEqual(certificate["issuerRef"], issuer)
        self.assertEqual(by_kind(render("full", {"events.ingress.certificateIssuer": ""}), "Certificate"), [])
        with self.assertRaisesRegex(Refused, "events.ingress.tlsSecretName: set it"):
            render("full", {"events.ingress.tlsSecretName": ""})


class Routes(unittest.TestCase):
    """By the idempotency levels of the proto."""

    def methods(self, rule):
        matches = rule.get("matches", [])
        self.assertTrue(all(match["method"]["service"] == SERVICE for match in matches))
        return {match["method"]["method"] for match in matches}

    def test_the_grpcroute_has_a_rule_for_each_kind(self):
        route = named(render("full"), "GRPCRoute")["spec"]
        self.assertEqual([self.methods(rule) for rule in route["rules"]], list(methods_of_the_proto().values()))

    def test_linkerd_retries_reads_only(self):
        objects = render("linkerd")
        for kind, wanted in {**methods_of_the_proto(), "other": set()}.items():
            route = named(objects, "GRPCRoute", f"-{kind}")
            annotations = route["metadata"].get("annotations", {})
            (rule,) = route["spec"]["rules"]
            with self.subTest(kind):
                self.assertEqual(self.methods(rule), wanted)
                self.assertEqual(annotations.get("retry.linkerd.io/grpc"), "unavailable" if kind == "reads" else None)
                self.assertEqual("timeout.linkerd.io/request" in annotations, kind in ("reads", "writes"))
                self.assertEqual(route["spec"]["parentRefs"][0]["name"], "rel-participant-gateway")
        long = named(render("linkerd", {"mesh.routes.writeTimeout": "1m30s"}), "GRPCRoute", "-writes")
        self.assertEqual(long["metadata"]["annotations"]["timeout.linkerd.io/request"], "90s")
        # On the Service they would hold for all methods.
        self.assertNotIn("annotations", named(objects, "Service")["metadata"])

    def test_istio_retries_reads_only(self):
        spec = named(render("istio"), "VirtualService")["spec"]
        self.assertEqual(spec["hosts"], ["rel-participant-gateway.shop.svc.cluster.local"])
        routes = {route["name"]: route for route in spec["http"]}
        self.assertEqual(list(routes), ["reads", "streams", "writes", "other"])
        for kind, wanted in {**methods_of_the_proto(), "other": set()}.items():
            route = routes[kind]
            paths = {match["uri"]["exact"] for match in route.get("match", [])}
            with self.subTest(kind):
                self.assertEqual(paths, {f"/{SERVICE}/{method}" for method in wanted})
                self.assertEqual(route["retries"]["attempts"], 1 if kind == "reads" else 0)
                self.assertEqual("timeout" in route, kind in ("reads", "writes"))

    def test_retries_can_be_turned_off(self):
        off = {"mesh.routes.retries": 0}
        reads = named(render("linkerd", off), "GRPCRoute", "-reads")["metadata"]["annotations"]
        self.assertEqual(list(reads), ["timeout.linkerd.io/request"])
        attempts = [route["retries"] for route in named(render("istio", off), "VirtualService")["spec"]["http"]]
        self.assertEqual(attempts, [{"attempts": 0}] * 4)


class Meshes(unittest.TestCase):
    def about_meshes(self, metadata):
        pairs = {**metadata.get("labels", {}), **metadata.get("annotations", {})}
        return {key: value for key, value in pairs.items() if "istio.io/" in key or "linkerd.io/" in key}

    def test_pods_are_marked_for_their_mesh_only(self):
        istio = {"sidecar.istio.io/inject": "true", "sidecar.istio.io/rewriteAppHTTPProbers": "true",
                 "sidecar.istio.io/nativeSidecar": "true"}
        linkerd = {"linkerd.io/inject": "enabled", "config.alpha.linkerd.io/proxy-enable-native-sidecar": "true",
                   "config.beta.linkerd.io/proxy-enable-native-sidecar": "true"}
        for name, wanted in [("default", {}), ("istio", istio), ("linkerd", linkerd)]:
            objects = render(name)
            self.assertEqual(self.about_meshes(pod_of(objects)["metadata"]), wanted)
            self.assertEqual(self.about_meshes(named(objects, "Pod", "-test")["metadata"]), wanted)

    def test_an_annotation_of_the_release_replaces_the_charts(self):
        theirs = {"linkerd.io/inject": "ingress", "checksum/config": "x"}
        text = render_text("linkerd", {"podAnnotations": theirs, "test.enabled": False})
        self.assertEqual(text.count("linkerd.io/inject: "), 1)
        self.assertIn("linkerd.io/inject: ingress", text)
        self.assertNotIn("checksum/config: x", text)

    def test_older_sidecars_outlive_the_drain(self):
        old = {"mesh.nativeSidecar": False, "test.enabled": False}
        linkerd = pod_of(render("linkerd", old))["metadata"]["annotations"]
        self.assertEqual(linkerd["config.linkerd.io/proxy-await"], "enabled")
        self.assertEqual(linkerd["config.beta.linkerd.io/proxy-enable-native-sidecar"], "false")
        self.assertEqual(linkerd["config.alpha.linkerd.io/proxy-wait-before-exit-seconds"], "32")
        istio = yaml.safe_load(pod_of(render("istio", old))["metadata"]["annotations"]["proxy.istio.io/config"])
        self.assertEqual(istio, {"holdApplicationUntilProxyStarts": True, "terminationDrainDuration": "32s"})

    def test_a_test_beside_an_older_sidecar_has_none(self):
        old = {"mesh.kind": "linkerd", "mesh.nativeSidecar": False}
        test = named(render("default", old), "Pod", "-test")["metadata"]
        self.assertEqual(self.about_meshes(test), {"linkerd.io/inject": "disabled", "sidecar.istio.io/inject": "false"})

    def test_linkerd_lets_in_callers_the_test_and_probes(self):
        objects = render("linkerd")
        server = named(objects, "Server", "-grpc")["spec"]
        self.assertEqual((server["port"], server["proxyProtocol"]), ("grpc", "gRPC"))
        identities = named(objects, "MeshTLSAuthentication", "-callers")["spec"]["identities"]
        own = "rel-participant-gateway.shop.serviceaccount.identity.linkerd.cluster.local"
        self.assertEqual(identities, ["orders.shop.serviceaccount.identity.linkerd.cluster.local", own])
        self.assertEqual(named(objects, "NetworkAuthentication", "-probes")["spec"]["networks"], [{"cidr": "10.0.0.0/8"}])
        for suffix, kind in [("-callers", "MeshTLSAuthentication"), ("-probes", "NetworkAuthentication")]:
            spec = named(objects, "AuthorizationPolicy", suffix)["spec"]
            self.assertEqual(spec["targetRef"]["name"], "rel-participant-gateway-grpc")
            (reference,) = spec["requiredAuthenticationRefs"]
            self.assertEqual((reference["kind"], reference["name"]), (kind, f"rel-participant-gateway{suffix}"))
        moved = named(render("linkerd", {"mesh.controlPlaneNamespace": "mesh"}), "MeshTLSAuthentication", "-callers")
        self.assertIn(own.replace(".linkerd.", ".mesh."), moved["spec"]["identities"])

    def test_istio_lets_in_callers_and_the_test(self):
        objects = render("istio", EVENTS)
        rules = named(objects, "AuthorizationPolicy")["spec"]["rules"]
        principals = rules[0]["from"][0]["source"]["principals"]
        self.assertEqual(principals, ["cluster.local/ns/shop/sa/orders", "cluster.local/ns/shop/sa/rel-participant-gateway"])
        self.assertEqual(rules[0]["to"][0]["operation"]["ports"], ["50051"])
        self.assertEqual(rules[1]["to"][0]["operation"]["ports"], ["9464", "8080"])
        peers = named(objects, "PeerAuthentication")["spec"]
        self.assertEqual(peers["mtls"], {"mode": "STRICT"})
        self.assertEqual(set(peers["portLevelMtls"]), {9464, 8080})

    def test_an_outage_of_twilio_ejects_no_pod(self):
        outliers = named(render("istio"), "DestinationRule")["spec"]["trafficPolicy"]["outlierDetection"]
        self.assertEqual((outliers["consecutive5xxErrors"], outliers["consecutiveGatewayErrors"]), (0, 0))

    def test_without_a_mesh_nothing_of_meshes_is_there(self):
        for name in preset_names():
            if name not in ("istio", "linkerd"):
                self.assertNotRegex(json.dumps(render(name)), r"(istio|linkerd)\.io/")


class NetworkPolicies(unittest.TestCase):
    def egress(self, preset, values=None):
        rules = named(render(preset, values), "NetworkPolicy")["spec"]["egress"]
        return {tuple(port["port"] for port in rule.get("ports", [])): rule["to"] for rule in rules}

    def test_both_directions_are_closed(self):
        spec = named(render("full"), "NetworkPolicy")["spec"]
        self.assertEqual(spec["policyTypes"], ["Ingress", "Egress"])
        for rule in spec["ingress"] + spec["egress"]:
            # A rule without peers would let everybody in.
            self.assertTrue(rule.get("from") or rule.get("to"))

    def test_each_port_has_its_peers(self):
        ingress = named(render("full"), "NetworkPolicy")["spec"]["ingress"]
        names = [rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for rule in ingress]
        self.assertEqual([rule["ports"][0]["port"] for rule in ingress], [50051, 9464, 8080])
        self.assertEqual(names, ["shop", "monitoring", "ingress-nginx"])
        # The test is let in, wherever callers are.
        test = ingress[0]["from"][1]["podSelector"]["matchLabels"]
        self.assertLessEqual(test.items(), named(render("full"), "Pod", "-test")["metadata"]["labels"].items())

    def test_https_is_open_to_the_public_internet_only(self):
        blocks = {peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in self.egress("istio")[(443,)]}
        self.assertEqual(set(blocks), {"0.0.0.0/0", "::/0"})
        self.assertIn("169.254.0.0/16", blocks["0.0.0.0/0"])
        self.assertIn("10.0.0.0/8", blocks["0.0.0.0/0"])
        self.assertIn("fc00::/7", blocks["::/0"])

    def test_what_is_configured_is_reachable(self):
        self.assertIn((4317,), self.egress("full"))
        self.assertIn((6379,), self.egress("full"))
        self.assertIn((6380,), self.egress("events-redis"))
        self.assertIn((53, 53), self.egress("istio"))
        on = {"networkPolicy.enabled": True}
        self.assertEqual(set(self.egress("default", on)), {(53, 53), (443,)})
        self.assertEqual(set(self.egress("sandbox", on)), {(53, 53)})
        self.assertIn((443,), self.egress("sandbox", on | {"otel.endpoint": "https://otlp.example.com"}))

    def test_a_digit_at_the_end_of_a_host_is_no_port(self):
        urls = {"networkPolicy.enabled": True, "otel.endpoint": "http://10.0.0.5", "bus.redis.url": "redis://cache1/0"}
        self.assertEqual(set(self.egress("default", urls)), {(53, 53), (443,), (80,), (6379,)})

    def test_an_empty_list_is_nobody(self):
        lists = ["grpcFrom", "adminFrom", "eventsFrom", "dnsTo", "otlpTo", "redisTo"]
        none = {f"networkPolicy.{name}": [] for name in lists}
        spec = named(render("full", none), "NetworkPolicy")["spec"]
        (test,) = spec["ingress"]
        self.assertEqual(test["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"], "test")
        self.assertEqual([rule["ports"][0]["port"] for rule in spec["egress"]], [443, 443])
        spec = named(render("full", none | {"test.enabled": False}), "NetworkPolicy")["spec"]
        self.assertFalse(spec["ingress"])

    def test_the_metrics_of_a_meshs_proxy_can_be_scraped(self):
        for name, ports in [("istio", [9464, 15020, 15090]), ("linkerd", [9464, 4191, 4143])]:
            rule = named(render(name), "NetworkPolicy")["spec"]["ingress"][1]
            self.assertEqual([port["port"] for port in rule["ports"]], ports)

    def test_linkerds_proxies_reach_each_other(self):
        beside = EVENTS | {"otel.endpoint": "http://collector:4317", "bus.redis.url": "redis://redis"}
        spec = named(render("linkerd", beside), "NetworkPolicy")["spec"]
        for rule in spec["ingress"]:
            self.assertIn(4143, [port["port"] for port in rule["ports"]])
        self.assertLessEqual({(4317, 4143), (6379, 4143)}, set(self.egress("linkerd", beside)))
        self.assertNotIn("4143", render_text("full") + render_text("istio", beside))

    def test_a_meshs_control_plane_is_reachable(self):
        for name, namespace in [("istio", "istio-system"), ("linkerd", "linkerd")]:
            peers = self.egress(name)[()]
            self.assertEqual(peers[0]["namespaceSelector"]["matchLabels"], {"kubernetes.io/metadata.name": namespace})


class Monitoring(unittest.TestCase):
    def test_the_servicemonitor_finds_the_admin_service(self):
        objects = render("full")
        spec = named(objects, "ServiceMonitor")["spec"]
        found = [
            item["metadata"]["name"]
            for item in by_kind(objects, "Service")
            if spec["selector"]["matchLabels"].items() <= item["metadata"]["labels"].items()
        ]
        self.assertEqual(found, ["rel-participant-gateway-admin"])
        port = named(objects, "Service", "-admin")["spec"]["ports"][0]["name"]
        self.assertEqual(spec["endpoints"][0]["port"], port)

    def test_the_podmonitor_names_the_containers_port(self):
        objects = render("istio")
        port = named(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"]
        self.assertIn(port, [port["name"] for port in gateway(objects)["ports"]])

    def test_the_rules_are_those_of_the_file_with_whole_links(self):
        # Through JSON, so that what the file shares by aliases is not changed twice.
        plain = json.loads(json.dumps(yaml.safe_load((CHART / "rules/participant-gateway.yaml").read_text())))
        groups = named(render("full"), "PrometheusRule")["spec"]["groups"]
        base = "https://git.example.com/messaging/participant-gateway/blob/main/"
        for rule in itertools.chain.from_iterable(group["rules"] for group in plain["groups"]):
            if "runbook_url" in rule.get("annotations", {}):
                self.assertRegex(rule["annotations"]["runbook_url"], r"^docs/")
                rule["annotations"]["runbook_url"] = base + rule["annotations"]["runbook_url"]
        self.assertEqual(groups, plain["groups"])

    def test_the_dashboard_is_the_file(self):
        rendered = named(render("full"), "ConfigMap", "-dashboard")
        self.assertEqual(rendered["metadata"]["labels"]["grafana_dashboard"], "1")
        file = json.loads((CHART / "dashboards/participant-gateway.json").read_text())
        self.assertEqual(json.loads(rendered["data"]["participant-gateway.json"]), file)


class Tests(unittest.TestCase):
    """The pod of `helm test`."""

    def test_it_reads_what_there_is(self):
        self.assertEqual(probe_arguments(render("sandbox"))[-2:], ["--conversation", "CH00000000000000000000000000000001"])
        self.assertEqual(probe_arguments(render("default"))[-2:], ["CH00000000000000000000000000000000", "--expect-not-found"])
        named_one = render("default", {"test.conversationId": "CH00000000000000000000000000000009"})
        self.assertEqual(probe_arguments(named_one)[-2:], ["--conversation", "CH00000000000000000000000000000009"])

    def test_it_asks_the_service(self):
        objects = render("default")
        arguments = probe_arguments(objects)
        self.assertEqual(arguments[:3], ["probe", "--address", "rel-participant-gateway:50051"])
        self.assertEqual(named(objects, "Pod", "-test")["metadata"]["annotations"]["helm.sh/hook"], "test")

    def test_it_runs_where_the_gateway_may(self):
        objects = render("full")
        for key in ("nodeSelector", "tolerations"):
            self.assertEqual(named(objects, "Pod", "-test")["spec"][key], pod_of(objects)["spec"][key])

    def test_it_can_be_left_out(self):
        self.assertEqual(by_kind(render("default", {"test.enabled": False}), "Pod"), [])


def notes(preset, values=None):
    """What NOTES.txt says after an installation, which `helm template` leaves out."""
    arguments = ["install", "rel", str(CHART), "--namespace", "shop", "--dry-run=client", "--output", "json"]
    return json.loads(helm(*arguments, *value_arguments(preset, values)))["info"]["notes"]


class Notes(unittest.TestCase):
    def test_their_commands_name_what_is_rendered(self):
        for name in preset_names():
            text = notes(name)
            objects = render(name)
            services = {item["metadata"]["name"] for item in by_kind(objects, "Service")}
            mentioned = set(re.findall(r"service/(\S+)", text)) | set(re.findall(r"dns:///([^.]+)", text))
            self.assertGreaterEqual(len(mentioned), 2)
            self.assertLessEqual(mentioned, services)
            self.assertIn("--namespace shop", text)

    def test_warnings(self):
        for preset, values, wanted in [
            ("sandbox", {}, "this is the sandbox"),
            ("default", {"replicaCount": 1}, "replicaCount is 1"),
            ("inline", {}, "twilio.inline is for trials"),
            ("default", EVENTS, "events reach one of them"),
            ("kinesis", {"replicaCount": 5}, "more than four pods read the stream"),
            ("default", {}, "whoever reaches the gRPC port"),
        ]:
            with self.subTest(wanted):
                self.assertIn(f"WARNING: {wanted}" if not wanted.startswith("events") else wanted, notes(preset, values))
        self.assertNotIn("WARNING", notes("full"))
        self.assertNotIn("WARNING", notes("linkerd"))


# Legal values of what has a pattern, by path or by definition.
SPECIMENS = {
    "name": "changed",
    "key": "changed",
    "duration": "41s",
    "stringMap": {"changed": "a"},
    "image.digest": "sha256:" + "f" * 64,
    "twilio.accountSid": "AC" + "f" * 32,
    "twilio.inline.apiKey": "SK" + "f" * 32,
    "config": {"log": {"filter": "debug"}},
    "auth.mode": "open",
    "cache.maxBytes": 100_000_000,
    "drain.terminationGracePeriodSeconds": 100,
    "events.publicUrl": "https://changed.example.com/events",
    "kinesis.stream": "arn:changed",
    "kinesis.roleArn": "arn:changed",
    "bus.redis.url": "redis://changed",
    "otel.endpoint": "http://changed:4318",
    "otel.samplerArg": "0.2",
    "prometheusRule.runbookBaseUrl": "https://changed.example.com",
    "resources": {"limits": {"memory": "512Mi"}},
}

# One of these alone contradicts other values, in every preset; the tests above set what belongs together.
NOT_ALONE = {"sandbox.enabled", "events.enabled", "mesh.nativeSidecar"}
NOT_ALONE |= {f"twilio.inline.{name}" for name in ("clientId", "clientSecret", "authToken", "secondaryAuthToken")}


class Values(unittest.TestCase):
    """values.yaml, the schema and the templates agree."""

    @classmethod
    def setUpClass(cls):
        cls.values = yaml.safe_load((CHART / "values.yaml").read_text())
        cls.schema = json.loads((CHART / "values.schema.json").read_text())
        files = [*CHART.glob("templates/**/*.yaml"), *CHART.glob("templates/**/*.tpl"), *CHART.glob("templates/*.txt")]
        cls.templates = {path.name: path.read_text() for path in files}

    def properties(self, schema=None, path=""):
        """Every property of the schema by its path, but for what Kubernetes or the gateway defines."""
        for name, child in (schema or self.schema).get("properties", {}).items():
            yield f"{path}{name}", child
            if f"{path}{name}" not in ("config", "resources"):
                yield from self.properties(child, f"{path}{name}.")

    def paths(self, values, path=""):
        closed = {path for path, child in self.properties() if "properties" in child and path not in ("config", "resources")}
        for name, value in values.items():
            yield f"{path}{name}"
            if f"{path}{name}" in closed:
                yield from self.paths(value, f"{path}{name}.")

    def test_the_schema_has_each_value_and_no_other(self):
        schema = {path for path, _ in self.properties()} - {"global"}
        self.assertEqual(schema, set(self.paths(self.values)))

    def test_the_schema_is_strict_and_describes_everything(self):
        def look(node, path):
            if "properties" in node:
                # What Kubernetes defines is checked by Kubernetes.
                if not path.startswith("resources."):
                    self.assertIs(node.get("additionalProperties"), False, path)
                for name, child in node["properties"].items():
                    self.assertTrue(child.get("description"), f"{path}.{name} has no description")
                    look(child, f"{path}.{name}".lstrip("."))
            if isinstance(node.get("items"), dict):
                look(node["items"], f"{path}[]")

        look(self.schema, "")
        self.assertEqual(self.schema["$schema"], "https://json-schema.org/draft/2020-12/schema")

    def test_each_value_changes_what_is_rendered(self):
        for path, node in self.properties():
            within = "properties" in node and path not in ("config", "resources")
            if within or path == "global" or path in NOT_ALONE:
                continue
            with self.subTest(path):
                self.assertTrue(any(self.changes(path, value) for value in self.other_values(path, node)))

    def changes(self, path, value):
        """Whether the value makes a difference to any preset."""
        for name in ["full", *preset_names()]:
            try:
                if render_text(name, {path: value}) != render_text(name):
                    return True
            except Refused:
                pass
        return False

    def other_values(self, path, node):
        """Values that are legal, one of which at least is not the default's."""
        if path in SPECIMENS:
            return [SPECIMENS[path]]
        reference = node.get("$ref", "").removeprefix("#/$defs/")
        if reference in SPECIMENS:
            return [SPECIMENS[reference]]
        if "enum" in node:
            return node["enum"]
        kind = node["type"] if isinstance(node["type"], str) else node["type"][0]
        if kind == "boolean":
            return [True, False]
        if kind == "integer":
            return [node.get("minimum", 0), node.get("minimum", 0) + 50]
        if kind == "array":
            if node["items"]["type"] == "object":
                return [[{"name": "changed", "mountPath": "/changed"}]]
            return [["10.9.0.0/16"]] if "pattern" in node["items"] else [["changed"]]
        return [{"changed": {"a": "b"}}] if kind == "object" else ["changed"]

    def test_templates_use_no_other_value(self):
        known = set(self.paths(self.values))
        for name, text in self.templates.items():
            for path in re.findall(r"\.Values\.([A-Za-z][\w.]*)", text):
                with self.subTest(name, path=path):
                    self.assertTrue(path in known or path.split(".")[0] == "config", path)

    def test_the_charts_version_is_the_gateways(self):
        manifest = (ROOT / "Cargo.toml").read_text()
        version = re.search(r'^version = "(.+)"$', manifest, re.MULTILINE)[1]
        self.assertEqual(yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"], version)


if __name__ == "__main__":
    unittest.main()
