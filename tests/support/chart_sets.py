"""Value sets of the chart that installations use, each over the profiles that it names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests.support.chart import render

SCALED: dict[str, Any] = {"autoscaling": {"enabled": True}}
SCRAM: dict[str, Any] = {
    "securityProtocol": "SASL_SSL",
    "saslMechanism": "SCRAM-SHA-512",
    "username": "ratchet",
    "filesSecret": "kafka",
    "files": {"password": "pw", "ca": "ca.crt"},
}
SETS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "defaults": ((), {}),
    "minimal": (("minimal",), {}),
    "production": (("production",), {}),
    "production-gpu": (("production", "gpu"), {}),
    "openshift": (("production", "openshift"), {}),
    "sasl-scram": ((), {"kafka": SCRAM}),
    "mutual-tls": (
        (),
        {
            "kafka": {
                "securityProtocol": "SSL",
                "filesSecret": "kafka",
                "files": {"ca": "ca.crt", "cert": "tls.crt", "key": "tls.key"},
            }
        },
    ),
    "oauth": (
        (),
        {
            "kafka": {
                "securityProtocol": "SASL_SSL",
                "saslMechanism": "OAUTHBEARER",
                "filesSecret": "kafka",
                "files": {"token": "token"},
            }
        },
    ),
    "redis-by-tls": (
        (),
        {
            "redis": {
                "url": "rediss://redis:6380/0",
                "username": "ratchet",
                "filesSecret": "redis",
                "files": {"password": "pw", "ca": "ca.crt"},
            }
        },
    ),
    "prometheus-by-token": (
        (),
        {
            "prometheus": {
                "url": "https://prometheus",
                "filesSecret": "prometheus",
                "files": {"token": "token", "ca": "ca.crt"},
            },
            "engine": {"filesSecret": "engine", "files": {"apiKey": "key"}},
        },
    ),
    "voting": (
        (),
        {
            "feedback": {
                "filesSecret": "raters",
                "files": {"votingSecret": "secret", "routerApiKey": "key", "votingPlan": "plan"},
            }
        },
    ),
    "operator": (
        (),
        {
            "podMonitor": {"enabled": True},
            "prometheusRules": {"enabled": True, "runbooks": "https://example.com/runbooks"},
            "dashboards": {"enabled": True},
        },
    ),
    "autoscaling": (
        (),
        {"services": {"router": SCALED, "feedback": SCALED, "aggregator": SCALED}},
    ),
    "autoscaling-by-lag-and-scram": (
        (),
        {
            "kafka": SCRAM,
            "tenants": ["default", "acme"],
            "services": {"intake": {"autoscaling": {"enabled": True, "lag": 1000}}},
        },
    ),
    "ingress": (
        (),
        {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": {"router": "llm.example.com", "feedback": "feedback.example.com"},
                "tls": [{"hosts": ["llm.example.com"], "secretName": "tls"}],
            }
        },
    ),
    "gateway": (
        (),
        {
            "gateway": {
                "enabled": True,
                "parentRefs": [{"name": "public", "namespace": "gateways"}],
                "hosts": {"router": "llm.example.com", "rollout": "rollout.example.com"},
            }
        },
    ),
    "network-policies": ((), {"networkPolicy": {"enabled": True}}),
    "tenants": ((), {"tenants": ["default", "acme", "globex"]}),
    "training-job": (
        ("gpu",),
        {
            "networkPolicy": {"enabled": True},
            "trainingJob": {
                "enabled": True,
                "folder": "training/jobs/1f/attempt-1",
                "nodes": 3,
                "processes": 8,
            },
        },
    ),
    "report": (
        (),
        {
            "report": {"enabled": True, "filesSecret": "report", "files": {"webhook": "url"}},
            "networkPolicy": {"enabled": True},
        },
    ),
    "traces-and-moderation": (
        (),
        {
            "tracing": {"endpoint": "http://collector:4318", "ratio": 0.25},
            "moderation": {"enabled": True},
            "ranking": {"hours": 24},
            "networkPolicy": {"enabled": True},
        },
    ),
    "informative-pairs": ((), {"ranking": {"candidates": 2}}),
    "detector": (
        (),
        {
            "detector": {
                "url": "http://presidio-analyzer:3000",
                "languages": ["en", "de"],
                "filesSecret": "detector",
                "files": {"key": "key"},
            },
            "networkPolicy": {"enabled": True, "detector": {"ports": [3000]}},
        },
    ),
    "media-and-endpoints": (
        (),
        {
            "storage": {"media": "s3://ratchet/media"},
            "services": {
                "router": {"env": {"RATCHET_ROUTER_OUTPUT_MODERATION_URL": "https://guard"}},
                "rollout": {"env": {"RATCHET_ROLLOUT_WEBHOOK_URLS": "https://chat:8443/hook"}},
                "training": {"env": {"RATCHET_TRAINING_WEBHOOK_URLS": "https://chat:8443/hook"}},
                "inference": {
                    "env": {
                        "RATCHET_INFERENCE_MODERATION_CRITIC": "reviewer",
                        "RATCHET_INFERENCE_MODERATION_CRITIC_URL": "https://critic:8443",
                    }
                },
            },
            "report": {"enabled": True, "filesSecret": "report", "files": {"webhook": "url"}},
            "networkPolicy": {
                "enabled": True,
                "storage": {"ports": [9000]},
                "endpoints": {"ports": [443, 8443]},
            },
        },
    ),
    "files-of-one-service": (
        ("production",),
        {
            "text": {"filesSecret": "people", "files": {"key": "texts"}},
            "userId": {"filesSecret": "people", "files": {"key": "ids"}},
            "router": {"filesSecret": "router", "files": {"outputModerationKey": "moderation"}},
            "rollout": {"filesSecret": "hooks", "files": {"webhookSecret": "signing"}},
            "inference": {"filesSecret": "critic", "files": {"moderationCriticKey": "key"}},
            "training": {"filesSecret": "hooks", "files": {"webhookSecret": "signing"}},
            "envFromSecrets": ["chats"],
            "networkPolicy": {"enabled": True, "endpoints": {"ports": [8443]}},
            "externalSecrets": {"enabled": True, "store": {"kind": "SecretStore", "name": "vault"}},
        },
    ),
    "strimzi": (("strimzi",), {"tenants": ["default", "acme-1.x"]}),
    "strimzi-production": (
        ("production", "strimzi"),
        {
            "services": {"intake": {"autoscaling": {"enabled": True, "lag": 1000}}},
            "report": {"enabled": True},
        },
    ),
    "external-secrets": (
        ("production",),
        {
            "externalSecrets": {
                "enabled": True,
                "store": {"kind": "ClusterSecretStore", "name": "vault"},
                "prefix": "ratchet/",
            },
            "redis": {"existingSecret": ""},
            "envFromSecrets": ["object-storage"],
            "cli": {"apiKeySecret": "operator"},
        },
    ),
    "generated-keys-and-accounts": (
        (),
        {
            "generatedKeys": True,
            "serviceAccountAnnotations": {
                "all": {"example.com/team": "models"},
                "training": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/training"},
            },
        },
    ),
    "next-base": (
        ("production",),
        {
            "model": {
                "revision": "a" * 40,
                "next": {
                    "base": "Qwen/Qwen3-1.7B",
                    "inference": {"replicas": 2, "disk": "100Gi", "env": {"HF_HUB_OFFLINE": 0}},
                },
            },
            "moderation": {"enabled": True},
        },
    ),
    "without-cli": ((), {"cli": {"enabled": False}, "networkPolicy": {"enabled": True}}),
    "volumes-of-yours": (
        (),
        {
            "extraVolumes": [{"name": "s", "persistentVolumeClaim": {"claimName": "adapters"}}],
            "extraVolumeMounts": [{"name": "s", "mountPath": "/var/lib/ratchet-adapters"}],
            "storage": {"adapters": "file:///var/lib/ratchet-adapters"},
            "envFromSecrets": ["object-storage"],
            "image": {"digests": {"router": f"sha256:{'a' * 64}"}},
        },
    ),
}


@cache
def objects_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """The objects of a set."""
    profiles, values = SETS[name]
    return render(values, folder, profiles=profiles)
