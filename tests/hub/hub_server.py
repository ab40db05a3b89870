"""A small Hub in this process: enough of its HTTP API for the unmodified `huggingface_hub` client (`HF_ENDPOINT`).

Repositories of models with one branch and a commit per push; small text files go into the commit itself, the others
through Git LFS's batch API. Writing needs the token, and so does reading a private repository.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import yaml

USER = "tester"
TASKS = ("video-classification", "feature-extraction", "image-feature-extraction", "image-classification")
TOKEN = "hf_onlyForTheTestsOfThisRepository"


@dataclass
class Repository:
    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)  # (id, files by path)

    def __post_init__(self):
        self.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, set())

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1] if self.commits else {}

    def commit(self, added: dict[str, bytes], deleted: set[str]) -> str:
        files = {path: content for path, content in self.files.items() if path not in deleted} | added
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((commit, files))
        return commit

    def revision(self, name: str) -> tuple[str, dict[str, bytes]] | None:
        if name == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == name), None)


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub:` serves at `hub.url`; what was asked for is in `hub.log`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []  # (method, path)
        self.breaks: dict[str, int] = {}  # repository → uploads that get through before its connection is lost, once
        self.uploads_left: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def status(self, path: str, token: str | None = None) -> int:
        """What the Hub answers to a request from anybody, or from whoever has the token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urlopen(Request(self.url + path, headers=headers)) as response:
                return response.status
        except HTTPError as error:
            return error.code

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def answer(self, status: int = 200, body=b"", **headers) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        for method, pattern, needs_token, act in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                if needs_token and not self.has_token:
                    return self.refuse(401, "", "Invalid username or password.")
                return act(self, *match.groups(), body)
        return self.refuse(404, "", f"this small Hub has no {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def repository(self, name: str) -> Repository | None:
        """The repository, or None after having answered that there is none that this client may see."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.has_token):
            self.refuse(404 if self.has_token else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def whoami(self, _):
        self.answer(body={"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})

    def create(self, body):
        request = json.loads(body)
        name = f"{request.get('organization') or USER}/{request['name']}"
        url = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if not name.startswith(f"{USER}/"):
            return self.refuse(403, "", f"You have no write access to {name}")
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", **url})
        self.server.repositories[name] = Repository(private=request.get("visibility") == "private")
        return self.answer(body=url)

    def info(self, name, revision, _):
        if (repository := self.repository(name)) is None:
            return None
        if (found := repository.revision(revision or "main")) is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        commit, files = found
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            body={"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings}
        )

    def tree(self, name, revision, folder, _):
        if (repository := self.repository(name)) is None:
            return None
        folder = f"{folder.strip('/')}/" if folder else ""
        found = repository.revision(revision)
        if found is None or (folder and not any(path.startswith(folder) for path in found[1])):
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        files = [path for path in found[1] if path.startswith(folder)]
        return self.answer(body=[self.entry(path, found[1][path]) for path in files])

    def paths_info(self, name, revision, body):
        if (repository := self.repository(name)) is None:
            return None
        wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]*)", body.decode())
        files = repository.revision(revision)[1]
        return self.answer(body=[self.entry(path, files[path]) for path in map(unquote, wanted) if path in files])

    @staticmethod
    def entry(path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_lfs(path):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def preupload(self, name, revision, body):
        if (repository := self.repository(name)) is None:
            return None
        answers = []
        for file in json.loads(body)["files"]:
            path, present = file["path"], repository.files.get(file["path"])
            answers.append({"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False})
            if present is not None:
                answers[-1]["oid"] = hashlib.sha256(present).hexdigest() if is_lfs(path) else git_oid(present)
        return self.answer(body={"files": answers})

    def lfs_batch(self, name, body):
        request = json.loads(body)
        self.server.uploads_left = self.server.breaks.pop(name, None)
        objects = []
        for wanted in request["objects"]:
            oid = wanted["oid"]
            objects.append({"oid": oid, "size": wanted["size"]})
            if oid not in self.server.lfs:  # no action: it is there already
                objects[-1]["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{oid}"}}
        return self.answer(body={"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid, body):
        if self.server.uploads_left == 0:
            return self.refuse(400, "", "connection lost")
        if self.server.uploads_left is not None:
            self.server.uploads_left -= 1
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "", "the content does not have this hash")
        self.server.lfs[oid] = body
        return self.answer()

    def commit(self, name, revision, body):
        if (repository := self.repository(name)) is None:
            return None
        added, deleted = {}, set()
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                added[value["path"]] = self.server.lfs[value["oid"]]
            elif key == "deletedFile":
                deleted.add(value["path"])
        commit = repository.commit(added, deleted)
        url = f"{self.server.url}/{name}/commit/{commit}"
        return self.answer(body={"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def validate_card(self, body):
        """The rules of the Hub that concern our cards."""
        _, front, _ = json.loads(body)["content"].split("---\n", 2)
        card = yaml.safe_load(front)
        wrong = [
            key
            for key, fits in {
                "license": card.get("license", "mit") in ("other", "mit", "apache-2.0"),
                "license_name": ("license_name" in card) == (card.get("license") == "other"),
                "library_name": card.get("library_name") in ("transformers", "peft"),
                "pipeline_tag": card.get("pipeline_tag", TASKS[0]) in TASKS,
                "base_model": is_repo_id(card.get("base_model", "a/b")),
                "base_model_relation": card.get("base_model_relation", "adapter") in ("adapter", "finetune"),
                "datasets": all(map(is_repo_id, card.get("datasets", []))),
                "tags": all(isinstance(tag, str) and tag for tag in card.get("tags", [])),
                "model-index": all(
                    model["name"]
                    and all({"task", "dataset", "metrics"} <= result.keys() for result in model["results"])
                    for model in card.get("model-index", [])
                ),
            }.items()
            if not fits
        ]
        if wrong:
            return self.answer(400, {"errors": [{"message": f"not valid: {wrong}"}], "warnings": []})
        self.answer(body={"errors": [], "warnings": []})

    def resolve(self, name, revision, path, _):
        if (repository := self.repository(name)) is None:
            return None
        found = repository.revision(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        commit, files = found
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content = files[path]
        oid = hashlib.sha256(content).hexdigest() if is_lfs(path) else git_oid(content)
        etag = {"ETag": f'"{oid}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            etag["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.answer(206, content[start : end + 1], **etag)
        return self.answer(200, content, **etag)


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pt", ".onnx"))


def is_repo_id(name) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [  # (method, path, whether it needs the token, what to do)
    ("GET", "/api/whoami-v2", True, Handler.whoami),
    ("POST", "/api/repos/create", True, Handler.create),
    ("POST", "/api/validate-yaml", False, Handler.validate_card),
    ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", True, Handler.preupload),
    ("POST", rf"/api/models/{NAME}/commit/([^/]+)", True, Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", True, Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", False, Handler.lfs_upload),  # its address is the permission, as with a signed one
    ("GET", rf"/api/models/{NAME}(?:/revision/([^/]+))?", False, Handler.info),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)(/.*)?", False, Handler.tree),
    ("POST", rf"/api/models/{NAME}/paths-info/([^/]+)", False, Handler.paths_info),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", False, Handler.resolve),
]
