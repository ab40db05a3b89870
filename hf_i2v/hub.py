"""Uploads to the Hub: a model with its card as one commit, and checkpoints in the background during training."""

import json
import os
import tempfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from torch import nn
from transformers.utils import logging

from .cards import CardFacts, write_card
from .configuration_i2v import hub_name

logger = logging.get_logger(__name__)
LAST_CHECKPOINT = "last-checkpoint"  # the folder that transformers' Trainer uses in a repository


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Save a model or an adapter with its card, and upload that as one commit.

    Args:
        model: an `I2VForVideoClassification`, or a `PeftModel` with an adapter of hf_i2v.
        repo_id: "user/name"; created if it does not exist.
        facts: what the card says about the training.
        license: of the weights, as the Hub calls it ("apache-2.0"). Default: the facts' or the base model's.
        private: whether a new repository is private; None: the account's default.
        token: for the Hub. Default: the one that `hf auth login` stored.
        commit_message: of the commit.

    Raises:
        HfHubHTTPError: no permission, or the upload failed. A second call continues it.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        facts = replace(facts or CardFacts(), license=license or (facts and facts.license))
        write_card(model, folder, facts, repo_id)
        return push_folder(folder, repo_id, private=private, token=token, commit_message=commit_message)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload a saved model or adapter as one commit.

    The local path of a base model is left out of the upload. The folder itself is not changed.

    Args:
        folder: of the model or adapter.
        repo_id, private, token, commit_message: as in `push_to_hub`.

    Raises:
        HfHubHTTPError: no permission, or the upload failed. A second call continues it.
        ValueError: weights in pickle files, which may run code when they are loaded.
    """
    pickles = sorted(p.name for p in Path(folder).rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
    if pickles:
        raise ValueError(f"{pickles} may run code when they are loaded. Publish weights as safetensors only.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files = {path.relative_to(folder): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    operations = [
        CommitOperationAdd(name.as_posix(), _for_others(path))
        for name, path in files.items()
        if name.parts[0] not in (".git", ".cache")  # files of git and of huggingface_hub
    ]
    return api.create_commit(repo_id, operations, commit_message=commit_message or "Upload model")


def _for_others(file: Path) -> Path | bytes:
    """The content of a file to upload, without the local path of the base model."""
    if file.name == "adapter_config.json":
        config = json.loads(file.read_text())
        base = config.get("base_model_name_or_path")
        if base and not hub_name(base):
            logger.warning(
                "The adapter's base model is a local folder, so its path is left out of the upload. If the base is on "
                "the Hub, name it as base_model_name_or_path in %s and push again.",
                file,
            )
        return json.dumps(config | {"base_model_name_or_path": hub_name(base)}, indent=2, sort_keys=True).encode()
    if file.name == "README.md":
        card = ModelCard.load(file)
        if isinstance(base := card.data.base_model, str) and not hub_name(base):
            card.data.base_model = None
            card.data.tags = [tag for tag in card.data.tags or [] if base not in tag]
        return str(card).encode()
    return file


class CheckpointUploads:
    """Uploads checkpoints to `last-checkpoint/` of a repository, in the background, one after another.

        uploads = CheckpointUploads("user/name")
        uploads.start(output_dir / "checkpoint-500", "step 500")     # returns at once
        uploads.wait()                                               # at the end of training

    A failed upload is logged and does not stop the training. The next one sends only files that have not arrived.
    The caller keeps a checkpoint on disk as long as it is `under_way`.

    Args:
        repo_id, private, token: as in `push_to_hub`.
    """

    def __init__(self, repo_id: str, *, private: bool | None = None, token: str | None = None):
        self.api = HfApi(token=token)
        self.repo_id = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        self._running: Future | None = None
        self._sent: tuple[Path, str] | None = None
        self._newest: tuple[Path, str] | None = None

    @property
    def under_way(self) -> Path | None:
        """The checkpoint that is being uploaded."""
        return self._sent[0] if self._running is not None and not self._running.done() else None

    def start(self, folder: str | os.PathLike, name: str) -> bool:
        """Begin to upload the checkpoint in `folder`; the commit's message holds `name`.

        Returns:
            False if the previous upload is still running. This checkpoint is then uploaded by `wait`, unless a newer
            one follows.
        """
        self._newest = (Path(folder), name)
        if self.under_way:
            return False
        self._arrived()
        self._send_newest()
        return True

    def wait(self) -> None:
        """Wait for the running upload; if the newest checkpoint has not arrived, upload it now. A failure is only
        logged."""
        if not self._arrived() or self._sent != self._newest:
            self._send_newest()
            self._arrived()
        self._running = None

    def _send_newest(self) -> None:
        self._sent = folder, name = self._newest
        self._running = self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            path_in_repo=LAST_CHECKPOINT,
            commit_message=f"Training in progress, {name}",
            delete_patterns="*",  # files that only an earlier checkpoint had
            run_as_future=True,
        )

    def _arrived(self) -> bool:
        """Wait for the running upload, if there is one. Log its failure and return False."""
        error = self._running.exception() if self._running is not None else None
        if error is not None:
            logger.warning("Uploading a checkpoint to %s failed (%s); training goes on.", self.repo_id, error)
        return error is None
