"""What W&B's server answers, by GraphQL operation: as much as the pinned client asks to track a run, upload a
checkpoint and download it.
"""

from __future__ import annotations

import base64
import json
from typing import Any

ENTITY = "somebody"


class Answers:
    """A method an operation: its variables to its data, from what the server (`WandbServer`) keeps."""

    url: str
    runs: dict[str, dict[str, Any]]
    streams: dict[str, dict[str, dict[int, str]]]
    blobs: dict[str, bytes]
    artifacts: dict[str, dict[str, Any]]

    def history(self, run: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def summary(self, run: str) -> dict[str, Any]:
        raise NotImplementedError

    def versions(self, collection: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def on_Viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        viewer = {
            "id": "VXNlcjox",
            "entity": ENTITY,
            "username": ENTITY,
            "name": ENTITY,
            "email": "x@y.z",
            "admin": False,
        }
        return {"viewer": {**viewer, "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}}}

    on_GetDefaultEntity = on_Viewer

    def on_GetViewer(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {**self.on_Viewer(v)["viewer"], "deletedAt": None}}

    def on_Run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        if run is None or run["in"] != (v["entity"], v["project"]):
            return {"project": {"run": None}}
        empty = dict.fromkeys(
            ("sweepName", "group", "jobType", "commit", "heartbeatAt", "description", "notes", "systemMetrics")
        )
        user = {"name": ENTITY, "username": ENTITY}
        said = {
            "id": run["id"],
            "name": run["name"],
            "displayName": run["displayName"],
            "config": run["config"],
            "tags": [],
        }
        more = {
            "state": "running",
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "summaryMetrics": json.dumps(self.summary(v["name"])),
            "user": user,
        }
        keys = self.on_RunHistoryKeys(v)["project"]["run"]
        return {
            "project": {
                "run": {
                    **empty,
                    **said,
                    **more,
                    **keys,
                    "projectId": "1",
                    "historyLineCount": len(self.history(v["name"])),
                }
            }
        }

    def on_RunHistoryKeys(self, v: dict[str, Any]) -> dict[str, Any]:
        history = self.history(v["name"])
        return {"project": {"run": {"historyKeys": {"lastStep": history[-1]["_step"] if history else -1, "keys": {}}}}}

    def on_OrganizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def on_ServerFeaturesQuery(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": None}
        lines = self.streams[v["name"]]
        history, events = lines["wandb-history.jsonl"], lines["wandb-events.jsonl"]
        tail = json.dumps([history[max(history)]] if history else [])
        counts = {"historyLineCount": len(history), "eventsLineCount": len(events), "logLineCount": 0}
        more = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": json.dumps(self.summary(v["name"]))}
        entity = {"id": "RW50aXR5OjE=", "name": ENTITY}
        return {
            "model": {"id": "UHJvamVjdDox", "name": v["project"], "entity": entity, "bucket": {**run, **counts, **more}}
        }

    def on_UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        new = v["name"] not in self.runs
        known = {"id": _id(f"Run:{v['name']}"), "name": v["name"], "displayName": v["name"], "config": "{}", "tags": []}
        empty = {
            "description": None,
            "sweepName": None,
            "notes": None,
            "wandbConfig": '{"t": {}}',
            "historyLineCount": 0,
        }
        run = self.runs.setdefault(v["name"], {**known, **empty})
        for ours, key in (("config", "config"), ("displayName", "displayName"), ("tags", "tags")):
            if v.get(key):
                run[ours] = v[key]
        run["in"] = (v["entity"] or ENTITY, v["project"])
        return {"upsertBucket": {"bucket": {**run, "project": self._project(*run["in"])}, "inserted": new}}

    def on_RunStoppedStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def on_CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/run/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": _id(f"Run:{v['run']}"), "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self._version(v["name"])
        return {"project": {"artifact": found and {"artifactType": {"name": found["type"]}}}}

    def on_CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v["input"]
        collection = given["artifactCollectionName"]
        number = sum(a["collection"] == collection for a in self.artifacts.values())
        artifact = {
            "id": _id(f"Artifact:{collection}:{number}"),
            "collection": collection,
            "version": number,
            "files": {},
        }
        artifact |= {"type": given["artifactTypeName"], "digest": given["digest"], "metadata": given["metadata"]}
        artifact |= {"aliases": [entry["alias"] for entry in given["aliases"]], "state": "PENDING", "ttl": -2}
        artifact |= {"in": (given["entityName"], given["projectName"]), "run": given.get("runName")}
        self.artifacts[artifact["id"]] = artifact
        sequence = {"latestArtifact": None}
        return {
            "createArtifact": {"artifact": {"id": artifact["id"], "state": "PENDING", "artifactSequence": sequence}}
        }

    def on_CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "RmlsZTox", "uploadUrl": self._place(v["artifactID"], v["name"]), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def on_CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in v["input"]["artifactFiles"]:
            artifact = self.artifacts[file["artifactID"]]
            artifact["files"][file["name"]] = path = f"artifact/{artifact['id']}/{file['name']}"
            node = {"storagePath": path, "uploadUrl": self._place(artifact["id"], file["name"]), "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": artifact["id"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[v["artifactID"]]
        for other in self.artifacts.values():  # an alias is of one version at a time
            if other["collection"] == artifact["collection"] and other is not artifact:
                other["aliases"] = [alias for alias in other["aliases"] if alias not in artifact["aliases"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}

    def on_ArtifactMembershipByName(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self._version(v["name"])
        if found is None or found["in"] != (v["entity"], v["project"]):
            return {"project": {"artifactCollectionMembership": None}}
        head = {"__typename": "ArtifactCollectionMembership", "id": found["id"], "versionIndex": found["version"]}
        more = {
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": self._aliases(found),
            "artifactCollection": self._sequence(found),
        }
        return {"project": {"artifactCollectionMembership": {**head, **more, "artifact": self._artifact(found)}}}

    def on_ArtifactByID(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact(self.artifacts[v["id"]])}

    def on_ProjectArtifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self.versions(v["collection"])
        head = {"__typename": "ArtifactSequence", "name": v["collection"]}
        page = {"endCursor": None, "hasNextPage": False}
        edges = [{"version": f"v{a['version']}", "node": self._artifact(a)} for a in reversed(found)]
        artifacts = {"totalCount": len(found), "pageInfo": page, "edges": edges}
        return {"project": {"artifactType": {"artifactCollection": {**head, "artifacts": artifacts}}}}

    def on_UpdateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v["input"]
        artifact = self.artifacts[given["artifactID"]]
        artifact["ttl"] = given.get("ttlDurationSeconds", artifact["ttl"])
        return {"result": {"artifact": self._artifact(artifact)}}

    def on_FetchArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": {"currentManifest": {"file": {"directUrl": self._place(v["id"], "wandb_manifest.json")}}}}

    def on_GetArtifactMembershipFileUrls(self, v: dict[str, Any]) -> dict[str, Any]:
        found = self._version(f"{v['collection']}:{v['alias']}")
        assert found is not None
        nodes = [{"__typename": "File", "name": n, "directUrl": self._place(found["id"], n)} for n in found["files"]]
        page = {"endCursor": None, "hasNextPage": False}
        files = {"pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {
            "project": {
                "artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
            }
        }

    # Pieces of those

    def _place(self, artifact: str, name: str) -> str:
        return f"{self.url}/storage/artifact/{artifact}/{name}"

    def _version(self, name: str) -> dict[str, Any] | None:
        """`collection:alias` or `collection:v3`, committed."""
        collection, _, alias = name.partition(":")
        for artifact in self.versions(collection):
            if alias in (*artifact["aliases"], f"v{artifact['version']}"):
                return artifact
        return None

    def _project(self, entity: str, project: str) -> dict[str, Any]:
        return {
            "id": "UHJvamVjdDox",
            "internalId": "UHJvamVjdDox",
            "name": project,
            "entity": {"id": "RQ==", "name": entity},
        }

    def _sequence(self, artifact: dict[str, Any]) -> dict[str, Any]:
        return {
            "__typename": "ArtifactSequence",
            "name": artifact["collection"],
            "project": self._project(*artifact["in"]),
        }

    def _aliases(self, artifact: dict[str, Any]) -> list[dict[str, Any]]:
        sequence = self._sequence(artifact)
        return [
            {"__typename": "ArtifactAlias", "id": _id(alias), "alias": alias, "artifactCollection": sequence}
            for alias in artifact["aliases"]
        ]

    def _artifact(self, artifact: dict[str, Any]) -> dict[str, Any]:
        size = sum(len(self.blobs.get(f"/storage/{path}", b"")) for path in artifact["files"].values())
        said = {key: artifact[key] for key in ("id", "metadata", "state", "digest")}
        numbers = {
            "versionIndex": artifact["version"],
            "fileCount": len(artifact["files"]),
            "size": size,
            "historyStep": 0,
        }
        times = {
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "commitHash": None,
            "description": None,
            "tags": [],
        }
        kept = {"ttlDurationSeconds": artifact["ttl"], "ttlIsInherited": artifact["ttl"] == -2}
        kinds = {
            "__typename": "Artifact",
            "artifactType": {"name": artifact["type"]},
            "digestAlgorithm": "MANIFEST_MD5",
        }
        return {
            **said,
            **numbers,
            **times,
            **kept,
            **kinds,
            "artifactSequence": self._sequence(artifact),
            "aliases": self._aliases(artifact),
        }


def _id(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")
