"""Claims about what comes from elsewhere (models, data, run folders) and what goes out (pages, terminals, keys)."""

import base64
import contextlib
import gzip
import html
import json
import multiprocessing
import os
import pickle
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, quote_plus

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib import cli
from lib.pipeline import execute
from lib.run import disk, runs, untrusted
from lib.run.parameters import from_notebook
from lib.run.paths import ROOT, locate
from lib.run.presets import resolve
from lib.run.settings import SettingsError
from lib.run.stages import STAGES

EVIL = (
    "<script>document.title='taken'</script><img src=x onerror=alert(1)>]]></style></textarea><!--"
    "<a href=javascript:alert(1)>a</a>[b](javascript:alert(1))![c](https://a.example/c.png)<svg/onload=alert(1)>"
    "<meta http-equiv=refresh content=0;url=https://a.example>\x1b[2J\x1b]0;title\x07\u202eflesruoy\u2066 "
    "<b style='background:url(https://a.example)' onclick=alert(1)>&#x1b;[31m&#x202e;</b>"
)
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SECRETS = {"HF_TOKEN": "hf_plantedPlanted", "WANDB_API_KEY": "0f1e2d3c4b5a", "AWS_SECRET_ACCESS_KEY": 'pl4/n"t\\ed+key'}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """An outputs folder and the stages' notebooks, which do nothing, in the working directory."""
    (tmp_path / "notebooks").mkdir()
    for name in (row.notebook for row in STAGES.values()):
        nbformat.write(new_notebook(), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(execute, "NOTEBOOK_FOLDER", tmp_path / "notebooks")
    yield tmp_path / "outputs"
    for held in list(disk._locks):
        disk.unlock(held.parent, held.name.split(".")[1])


def start(outputs, stage="prepare", run="trial", **parameters) -> runs.Stage:
    return runs.begin(from_notebook(stage, {"preset": "demo", "run": run, "outputs": str(outputs)} | parameters))


# --- models -----------------------------------------------------------------------------------------------------------
class Attack:
    """A pickle of it makes a file where it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def model(folder: Path, **files) -> Path:
    """A model's folder as it should be, but for `files`."""
    folder.mkdir(parents=True)
    whole = {"config.json": {"model_type": "llama"}, "tokenizer_config.json": {}, "model.safetensors": b""} | files
    for name, content in whole.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        *((name, b"", f"{name} is a pickle") for name in
          ("pytorch_model.bin", "adapter_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "a.pkl")),
        ("config.json", CODE, "config.json names code of its own (auto_map)"),
        ("config.json", {"text_config": [{"deep": CODE}]}, "config.json names code of its own (auto_map)"),
        ("tokenizer_config.json", {"auto_map": ["tokenization_evil.Evil", None]}, "tokenizer_config.json names code"),
        ("processor_config.json", CODE, "processor_config.json names code"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[" * 100_000, "config.json is not JSON"),
        ("config.json", b"\xff", "config.json is not UTF-8 text"),
        *(("model.safetensors.index.json", {"weight_map": {"w": file}}, f"names {file!r}, which is no safetensors file")
          for file in ("../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "..", "")),
        ("model.safetensors.index.json", {"weight_map": 7}, "names '7'"),
    ],
)  # fmt: skip
def test_a_model_that_is_more_than_data_is_refused_by_name(tmp_path, name, content, told):
    folder = model(tmp_path / "model", **{name: content})
    for refused in (lambda: locate(str(folder)), lambda: resolve("demo", {"base_model": str(folder)})):
        with pytest.raises(SettingsError, match=re.escape(told)) as error:
            refused()
        assert f"base_model = '{folder}': " in str(error.value)


def test_a_pickle_of_weights_is_never_read(tmp_path):
    mark = tmp_path / "mark"
    folder = model(tmp_path / "model", **{"pytorch_model.bin": pickle.dumps(Attack(mark))})
    with pytest.raises(SettingsError, match="only safetensors are read"):
        locate(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "nowhere", "tokenizer.json", "../secret.json"])
def test_a_link_out_of_a_models_folder_is_refused(tmp_path, target):
    (tmp_path / "secret.json").write_text("{}")
    folder = model(tmp_path / "model")
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(SettingsError, match="tokenizer.json is a symbolic link out of the folder"):
        locate(str(folder))


def test_an_oversized_json_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    folder = model(tmp_path / "model")
    for name in ("config.json", "tokenizer.json"):
        with open(folder / name, "wb") as file:
            file.truncate(untrusted.JSON_BYTES + 1)  # a hole: it takes no room on the disk
    read, whole = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **options: read.append(path.name) or whole(path, **options))
    with pytest.raises(SettingsError, match="config.json has 64 MiB, and at most 64 are read") as error:
        locate(str(folder))
    assert "tokenizer.json has 64 MiB" in str(error.value) and read == ["tokenizer_config.json"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    folder = model(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(SettingsError, match="config.json is no file"):
        locate(str(folder))


def test_plain_models_are_let_in(tmp_path):
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    folder = model(tmp_path / "model", **{"model.safetensors.index.json": index})
    (folder / "tokenizer.json").symlink_to("tokenizer_config.json")
    assert locate(str(folder)) == str(folder) and locate("data/base") == str(ROOT / "data/base")
    blob = tmp_path / "models--a--b" / "blobs" / "0a1b"  # the hub's cache holds links to blobs beside
    blob.parent.mkdir(parents=True)
    blob.write_text("{}")
    snapshot = model(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0a1b")
    assert locate(str(snapshot)) == str(snapshot)


# --- data -------------------------------------------------------------------------------------------------------------
ROW = {"question": "How much is 6 x 7?", "answer": "6 x 7 = <<6*7=42>>42\n#### 42"}


def loading(folder: Path, source: str = "gsm8k"):
    from lib.data import sources

    names = {"train_rows": None, "validation_rows": 0, "test_rows": 0, "dataset_revision": None, "max_length": 640}
    settings = SimpleNamespace(source=source, data_dir=str(folder), skip_rows=0, golds_only=False, **names)
    return sources.load(settings, ["train"])["train"]


def test_a_link_out_of_a_data_folder_is_refused(tmp_path):
    from lib.data import sources, texts

    (tmp_path / "secret.jsonl").write_text(json.dumps(ROW | {"text": "secret"}) + "\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to("../secret.jsonl")
    with pytest.raises(sources.SourceError, match="train.jsonl is a symbolic link out of"):
        loading(tmp_path / "data")
    with pytest.raises(texts.CorpusError, match="train.jsonl is a symbolic link out of"):
        list(texts.documents(tmp_path / "data"))
    assert list(texts.documents(tmp_path / "data" / "train.jsonl")) == ["secret"]  # named by the user themself
    assert len(loading(tmp_path / "secret.jsonl")[0]) == 1


def test_a_gzip_bomb_stops_at_its_limit(tmp_path, monkeypatch):
    from lib.data import texts

    monkeypatch.setattr(untrusted, "GZIP_BYTES", 1 << 20)
    path, line = tmp_path / "train.jsonl.gz", json.dumps(ROW | {"text": "a"}).encode() + b"\n"
    with gzip.open(path, "wb", 9) as file:
        for _ in range(40):
            file.write(line * 10_000)
    size, unpacked = path.stat().st_size, 400_000 * len(line)
    assert unpacked > 200 * size
    with pytest.raises(untrusted.UntrustedError, match=f"{path} unpacks to over 100 times its size"):
        loading(tmp_path)
    read = 0
    with pytest.raises(untrusted.UntrustedError, match="unpack it yourself"):
        for text in texts.documents(path):
            read += len(text)
    assert read < (1 << 20) + 100 * size


def test_a_torn_gzip_file_is_named_and_a_whole_one_is_read(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode() * 3))
    assert len(loading(tmp_path)[0]) == 3
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(untrusted.UntrustedError, match=f"{path} is no whole gzip file"):
        loading(tmp_path)


def test_an_oversized_list_of_records_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    from lib.data import files

    (tmp_path / "train.json").write_text(json.dumps([ROW]))
    assert len(loading(tmp_path)[0]) == 1
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    with pytest.raises(files.SourceError, match="train.json: has over 0 MiB.*one record a line in a .jsonl file"):
        loading(tmp_path)


# --- run folders ------------------------------------------------------------------------------------------------------
def test_a_notebook_in_a_run_folder_is_never_executed(outputs, tmp_path, monkeypatch):
    import papermill

    planted = outputs / "trial" / "notebooks" / "10_prepare_data.ipynb"
    planted.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[new_code_cell(f"open({str(tmp_path / 'mark')!r}, 'w')")]), planted)
    asked = []

    def executed(source, target, **options):
        asked.append((source, target, options["cwd"]))
        start(outputs).finish()

    monkeypatch.setattr(papermill, "execute_notebook", executed)
    execute.run("demo", "trial", outputs=outputs, stages=["prepare"], echo=lambda text: None)
    folder = tmp_path / "notebooks"
    assert asked == [(str(folder / planted.name), str(planted), str(folder))]  # it is where the executed copy goes
    assert not (tmp_path / "mark").exists()
    assert {execute.notebook_path(name).parent for name in (row.notebook for row in STAGES.values())} == {folder}


@pytest.mark.parametrize("name", ["notebooks/10_prepare_data.ipynb", "data/metrics.jsonl", ".writer.lock", "data"])
def test_nothing_is_written_through_a_link_in_a_run_folder(outputs, tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    link = outputs / "trial" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    for write in (lambda: start(outputs), lambda: execute.run("demo", "trial", outputs=outputs, echo=lambda text: 0)):
        with pytest.raises(runs.RunError, match=f"{re.escape(str(link))} is a symbolic link out of"):
            write()
    assert precious.read_text() == "years of work" and not disk._locks


def test_a_link_does_not_pass_for_an_output(outputs, tmp_path):
    stage = start(outputs)
    stage.write_rows("train.jsonl", [{"id": 1}])
    stage.finish()
    (outputs / "trial/data/train.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (outputs / "trial/data/train.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(runs.RunError, match="train.jsonl is a symbolic link out of"):
        runs.changes(outputs / "trial", "prepare")


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", {"../../../dev/zero": "0"}), ("code", {"/dev/zero": "0"}), ("inputs", {"../../other/data": {}}),
     ("code", {"lib/../../etc/passwd.py": "0"}), ("code", {"lib/run/more/x.py": "0"}), ("inputs", {"/etc": {}}),
     ("inputs", {"../..": {}})],
)  # fmt: skip
def test_a_manifest_sends_nobody_to_files_of_its_choice(outputs, monkeypatch, key, value):
    manifest = start(outputs).finish()
    (outputs / "trial/data/manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(runs.RunError, match=f"manifest.json: {key}.*move it away and run its stage again"):
        runs.read(outputs / "trial", "prepare")
    assert runs.is_current(outputs, "trial", "prepare", resolve("demo"), Path("10_prepare_data.ipynb"))[0] is False


def test_of_a_folder_that_a_manifest_names_only_the_recorded_files_are_read(outputs, tmp_path, monkeypatch):
    manifest = start(outputs).finish()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "private").write_text("private")
    (outputs / "trial/data/manifest.json").write_text(json.dumps(manifest | {"external": {str(tmp_path / "home"): {}}}))
    read, whole = [], disk.sha256
    monkeypatch.setattr(runs, "sha256", lambda path: read.append(Path(path)) or whole(path))
    found = runs.is_current(outputs, "trial", "prepare", resolve("demo"), Path("10_prepare_data.ipynb"))
    assert found == (False, f"{tmp_path / 'home'}: private was added")
    assert tmp_path / "home" / "private" not in read


# --- pages and terminals ----------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, its text, its comments."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.comments = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def answers() -> list[dict]:
    """Graded answers in which every text is hostile."""
    rows = []
    for number in range(4):
        for model, correct in (("base", number == 0), ("tuned", number > 0)):
            rows.append({
                "id": f"{number}{EVIL}", "kind": f"kind {number % 2} {EVIL}", "group": EVIL, "level": 1, "model": model,
                "split": "test", "calculator": True, "question": EVIL, "completion": f"#### {EVIL}", "tokens": 20,
                "gold": {"value": EVIL, "unit": "choice", "decimals": None, "tolerance": 0.0}, "finished": True,
                "correct": correct, "value": EVIL, "reading": "marker", "error": None if correct else EVIL,
                "flag": EVIL, "correct_lenient": correct, "within": {"0.1 %": correct},
            })  # fmt: skip
    return rows


def executed(*shown) -> new_notebook:
    """A notebook whose code cells showed these objects, as a kernel and papermill keep them."""
    from IPython.core.formatters import DisplayFormatter

    cells = [new_markdown_cell(f"# Title {EVIL}\n\n{EVIL}")]
    for what in shown:
        data, metadata = DisplayFormatter().format(what)
        cells.append(new_code_cell(EVIL, outputs=[new_output("display_data", data=data, metadata=metadata)]))
    said = [new_output("stream", name=name, text=EVIL) for name in ("stdout", "stderr")]
    failed = new_output("error", ename="ValueError", evalue=EVIL, traceback=[f"\x1b[31mValueError\x1b[0m: {EVIL}"])
    return new_notebook(cells=[*cells, new_code_cell("print(answer)", outputs=[*said, failed])])


def test_a_shared_report_runs_and_fetches_nothing_whatever_the_data_say(outputs):
    import pandas as pd
    from IPython.display import HTML, Markdown

    from lib.judge import answers as graded
    from lib.pipeline import report

    rows, names = answers(), (f"base {EVIL}", f"tuned {EVIL}")
    pair = [graded.arm(rows, model, "test", True) for model in graded.MODELS]
    stage = start(outputs, chat_template=STEERING.sub("", EVIL))  # with the others it would be refused
    stage.write_rows(f"{EVIL.replace('/', '')[:100]}.jsonl", rows)
    shown = [
        stage, HTML(graded.flips(*pair, names)), HTML(graded.side_by_side(rows, "test", True, 4)),
        graded.html_table(graded.table_text(graded.summarise(rows))), pd.DataFrame(rows), [path for path in rows],
        graded.html_table([{EVIL: EVIL}]), Markdown(f"**{EVIL}** · `{EVIL}`\n\n{EVIL}\n\n```\n{EVIL}\n```"), HTML(EVIL),
    ]  # fmt: skip
    stage.finish(headline={EVIL: EVIL})
    folder = outputs / "trial"
    (folder / "notebooks").mkdir()
    nbformat.write(executed(*shown), folder / "notebooks" / "10_prepare_data.ipynb")
    nbformat.write(executed(), folder / "notebooks" / f"{EVIL.replace('/', '')[:60]}.ipynb")

    text = report.write(folder).read_text(encoding="utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "svg", "math", "object", "embed", "form", "input", "base", "link"} & set(tags)
    assert tags.count("style") == 1 and tags.count("meta") == 3 and not page.comments
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "action", "poster")]
        assert re.match("https?://|mailto:|#", attributes.get("href", "#")), (tag, attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,"), (tag, attributes)
        assert "url" not in attributes.get("style", ""), (tag, attributes)
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert text.index(policy) < text.index("<style>") < text.index("<body>")
    assert not STEERING.search(text.replace("\r\n", "\n"))
    assert page.text.count("<script>document.title='taken'</script>") > 20 and "\\u001b[2J" in page.text


def test_what_steers_a_terminal_is_written_out(outputs, capsys, monkeypatch, tmp_path):
    for name in ("[red]x", "\x1b[2J\u202ex", EVIL.replace("/", "")[:200]):
        (outputs / name / "data").mkdir(parents=True)
        (outputs / name / "data" / "manifest.json").write_text("{}")
        (outputs / name / "data.former").mkdir()
    begun = outputs / "begun" / "adapter"
    begun.mkdir(parents=True)
    (begun / "started.json").write_text("{}")
    (begun / "metrics.jsonl").write_text(json.dumps({"step": EVIL, "loss": EVIL}) + "\n")
    cli.status(outputs)
    cli.clean(None, False, outputs)
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": EVIL, "completion": EVIL, "gold": EVIL, "group": EVIL}))
    cli.grade(tmp_path / "answers.jsonl")
    monkeypatch.setattr(sys, "argv", ["sharpen", "clean", EVIL, "--outputs", str(outputs)])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert "[red]x" in said.out and "no run" not in said.out and "nothing was freed" in said.out
    assert not STEERING.search(said.out) and not STEERING.search(said.err) and "\\u001b[2J" in said.out


def test_a_figure_of_a_manifest_steers_no_terminal(outputs, capsys, monkeypatch):
    import papermill

    from lib.pipeline import report

    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")
    stage = start(outputs)
    stage.finish(headline={EVIL: EVIL})
    said = []
    execute.run("demo", "trial", outputs=outputs, stages=["prepare"], echo=said.append)
    assert "\\u001b[2J" in said[-1] and not STEERING.search("".join(said))

    def fail(*_, **__):
        raise ValueError(EVIL)

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(execute.StageFailed):
        execute.run("demo", "trial", outputs=outputs, stages=["train"], echo=said.append)
    assert "stage 'train' failed: ValueError: <script>" in said[-1] and not STEERING.search("".join(said))


# --- keys -------------------------------------------------------------------------------------------------------------
def leaks(folder: Path) -> list[str]:
    """Files under a folder that hold a planted secret, plain, as Python shows it, or either of these as JSON."""
    shown = [form for secret in SECRETS.values() for form in (secret, repr(secret)[1:-1])]
    written = [*shown, *(json.dumps(form)[1:-1] for form in shown)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    return [str(path) for path in files if any(form in path.read_text(errors="replace") for form in written)]


def test_values_of_keys_are_replaced_by_their_names(monkeypatch):
    for name, value in (SECRETS | {"AWS_ACCESS_KEY_ID": "AKIAplanted", "db_password": "hunter22!"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    monkeypatch.setenv("SHORT_TOKEN", "a")  # would replace half of every text
    text = json.dumps({"seen": dict(os.environ), "note": "a falsefalse"})
    told = json.loads(untrusted.redact(text))
    assert {told["seen"][name] for name in SECRETS} == {f"[{name}]" for name in SECRETS}
    assert told["seen"]["AWS_ACCESS_KEY_ID"] == "[AWS_ACCESS_KEY_ID]" and told["seen"]["db_password"] == "[db_password]"
    assert told["note"] == "a falsefalse"


@pytest.mark.parametrize("name", [
    "OPENAI_KEY", "AZURE_STORAGE_KEY", "AWS_BEARER_TOKEN_BEDROCK", "GITHUB_PAT", "SSH_PASSPHRASE", "MYSQL_PWD",
    "APIKEY", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "db_pass", "CLIENT_SECRETS", "API_KEYS", "TOKEN", "HF_TOKEN_2",
])  # fmt: skip
def test_a_secret_is_known_by_its_variables_name(monkeypatch, name):
    monkeypatch.setenv(name, "planted!value")
    assert untrusted.redact("it is planted!value.") == f"it is [{name}]."


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MAX_TOKENS", "PASSENGERS",
                                  "X_COMPAT", "PYTHONPATH"])  # fmt: skip
def test_other_variables_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "/usr/a/plain/value")
    assert untrusted.redact("it is /usr/a/plain/value.") == "it is /usr/a/plain/value."


def test_a_password_in_a_url_is_a_secret_and_its_host_is_none(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:pl4ntedpw@db.example:5432/figures")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:a@b@proxy.example:8080")
    text = "no answer from app:pl4ntedpw@db.example:5432 by http://me:a@b@proxy.example (pl4ntedpw)"
    told = "no answer from [DATABASE_URL]@db.example:5432 by http://me:a@b@proxy.example ([DATABASE_URL])"
    assert untrusted.redact(text) == told  # so short a password would be found in other words


def test_the_token_of_hf_auth_login_is_a_secret(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert untrusted.redact("hf_loggedIn") == "hf_loggedIn"
    (tmp_path / "token").write_text("hf_loggedIn\n")
    assert untrusted.redact("refused: hf_loggedIn") == "refused: [HF_TOKEN]"


def test_a_key_of_several_lines_leaves_no_line_in_a_notebook(monkeypatch):
    lines = [f"{number:02}+{'aB3/'[number % 4] * 60}=" for number in range(4)]
    key = "\n".join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"])
    monkeypatch.setenv("SIGNING_KEY", key + "\n")
    said = [new_output("stream", text=f"  {key}\nfinished\n"), new_output("stream", text=repr(key))]
    text = untrusted.redact(nbformat.writes(new_notebook(cells=[new_code_cell("print(key)", outputs=said)])))
    assert not [line for line in lines if line in text]
    told = nbformat.reads(text, as_version=4).cells[0].outputs
    assert told[0].text.endswith("[SIGNING_KEY]\nfinished\n") and told[1].text == "'[SIGNING_KEY]'"


@pytest.mark.parametrize("key", ["pl4/n\"t\\ed+k'y&<x> =1", "plain0123", "\u00fcber/schl\u00fcssel?", "eight8!~"])
def test_a_key_is_known_in_html_in_a_url_and_in_base64(monkeypatch, key):
    monkeypatch.setenv("SOME_API_KEY", key)
    for written in (html.escape(key), html.escape(key, quote=False), quote(key), quote(key, safe=""), quote_plus(key),
                    json.dumps(html.escape(repr(key)), ensure_ascii=False)):  # fmt: skip
        assert "SOME_API_KEY" in untrusted.redact(f"a {written} b"), written
    for before in ("", "u", "me", "me:"):  # as in `Authorization: Basic ...`
        encoded = base64.b64encode(f"{before}{key}".encode()).decode()
        left = untrusted.redact(encoded)
        assert "[SOME_API_KEY]" in left and len(left) - len("[SOME_API_KEY]") <= 4 + len(before) + 4, left


def test_a_report_holds_no_key_however_a_page_writes_it(outputs, monkeypatch):
    from IPython.display import HTML

    from lib.pipeline import report

    key = "pl4/n\"t\\ed+k'y&<x>"
    stage = start(outputs)
    stage.finish()
    path = outputs / "trial" / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"headline": {"asked": f"with {key}"}}}))
    (outputs / "trial" / "notebooks").mkdir()
    shown = executed(HTML(f"<p>{html.escape(key)}</p>"), {"key": key}, HTML(f"<td>{html.escape(repr(key))}</td>"))
    shown.cells[-1].outputs.append(new_output("stream", text=f"{key} {quote(key)}"))  # run by hand: not redacted yet
    nbformat.write(shown, outputs / "trial" / "notebooks" / "10_prepare_data.ipynb")
    assert "k'y" in Page(report.write(outputs / "trial").read_text()).text
    monkeypatch.setenv("SOME_API_KEY", key)
    text = report.write(outputs / "trial").read_text()
    assert "k'y" not in Page(text).text and "k%27y" not in text and Page(text).text.count("[SOME_API_KEY]") == 6


def test_an_error_on_a_terminal_holds_no_key(outputs, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setattr(sys, "argv", ["sharpen", "reproduce", "hf_planted", "--outputs", str(outputs)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "there is no run '[HF_TOKEN]' in" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", [("HF_MODEL_ID=/opt/ml/model", "OPENAI_KEY=sk-planted"), ("sk-planted",)])
def test_a_secret_in_a_setting_is_refused_and_not_shown(pairs):
    given = {"endpoint_environment": ",".join(pairs)}
    for refused in (lambda: resolve("demo", given), lambda: from_notebook("cloud", {"preset": "demo"} | given)):
        with pytest.raises(SettingsError, match="^endpoint_environment = .*or AWS Secrets Manager") as error:
            refused()
        assert "sk-planted" not in str(error.value)
    plain = ("HF_MODEL_ID=/opt/ml/model", "OPTION_MAX_MODEL_LEN=2048", "TOKENIZERS_PARALLELISM=false")
    assert resolve("demo", {"endpoint_environment": ",".join(plain)}).settings.endpoint_environment == plain


@pytest.mark.notebooks
def test_no_key_of_the_environment_reaches_any_file_of_a_run(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = []
    execute.run("demo", "whole", {"train_rows": 12, "validation_rows": 6, "test_rows": 60}, outputs=tmp_path,
                 stages=["prepare"], echo=said.append)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = ["preset = 'demo'\nrun = None\noutputs = None\nrehearse = False",
             "from lib.run import parameters, runs\nstage = runs.begin(parameters.from_notebook('prepare', globals()))",
             "import os, sys\nprint(dict(os.environ))\nprint(os.environ, file=sys.stderr)\ndict(os.environ)",
             "raise RuntimeError(f'a request failed: {os.environ[\"HF_TOKEN\"]} {dict(os.environ)}')"]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / "10_prepare_data.ipynb")
    monkeypatch.setattr(execute, "NOTEBOOK_FOLDER", folder)
    with pytest.raises(execute.StageFailed, match=r"a request failed: \[HF_TOKEN\] {"):
        execute.run("demo", "failed", outputs=tmp_path, stages=["prepare"], echo=said.append)
    from lib.pipeline import report

    assert "[WANDB_API_KEY]" in report.write(tmp_path / "failed").read_text()
    assert leaks(tmp_path) == [] and not any(secret in "".join(said) for secret in SECRETS.values())
    assert "[HF_TOKEN]" in (tmp_path / "failed/notebooks/10_prepare_data.ipynb").read_text()


# --- disks and writers ------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB: (its folder, a function that makes it read-only)."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_and_what_was_complete_is_kept(outputs, small_disk):
    place, _ = small_disk
    stage = start(place)
    stage.write_rows("train.jsonl", [{"id": 1}])
    stage.finish()
    train = start(place, "train")
    train.log(1, loss=2.5)
    with pytest.raises(runs.RunError, match="rows.jsonl: No space left on device; make room, or name another folder"):
        train.write_rows("rows.jsonl", ({"text": "x" * 1000} for _ in range(1000)))
    assert not [path for path in train.folder.iterdir() if "rows.jsonl" in path.name]  # the torn part made room
    (place / "ballast").write_bytes(b"x" * (256 << 10 >> 1))
    with contextlib.suppress(OSError), open(place / "ballast", "ab", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(runs.RunError, match="metrics.jsonl: No space left on device"):
        for step in range(2, 1000):
            train.log(step, loss=1.5)
    with pytest.raises(runs.RunError, match="manifest.json: No space left on device"):
        train.finish()
    lines = (train.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    with pytest.raises(runs.RunError, match="other: No space left on device|other.*No space left on device"):
        start(place, run="other")
    assert runs.changes(place / "trial", "prepare") == [] and runs.read(place / "trial", "prepare")
    (place / "ballast").unlink()
    train.log(len(lines) + 1, loss=1.0)
    assert train.finish()["outputs"].keys() == {"metrics.jsonl"}


def test_a_line_that_does_not_fit_leaves_no_half_of_it(outputs):
    stage = start(outputs)
    stage.log(1, text="x")
    size = (stage.folder / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(runs.RunError, match="cannot write to .*metrics.jsonl"):
            stage.log(2, text="y")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (stage.folder / "metrics.jsonl").stat().st_size == size
    stage.log(2, text="z")
    assert [json.loads(line)["step"] for line in disk.whole_lines(stage.folder / "metrics.jsonl")] == [1, 2]


def test_a_read_only_folder_is_named_and_can_be_read(outputs, small_disk, capsys):
    place, make_read_only = small_disk
    start(place).finish()
    (place / "trial" / "data.former").mkdir()
    make_read_only()
    for write in (lambda: start(place), lambda: start(place, run="other"),
                  lambda: execute.run("demo", "trial", outputs=place, echo=lambda text: None),
                  lambda: cli.clean(None, True, place)):  # fmt: skip
        with pytest.raises(runs.RunError, match=f"cannot write to {place}.*Read-only file system; .*another folder"):
            write()
    assert not disk._locks
    assert runs.read(place / "trial", "prepare") and runs.changes(place / "trial", "prepare") == []
    cli.status(place)
    assert "trial" in capsys.readouterr().out and (place / "trial" / "data.former").exists()


def write_once(outputs: str, results) -> None:
    """What one of several processes that start at the same moment was told."""
    results[0].wait()
    try:
        stage = start(Path(outputs))
        stage.write_rows("train.jsonl", [{"id": os.getpid()}])
        results[1].put("wrote")
        results[2].wait()
        stage.finish()
    except runs.RunError as error:
        results[1].put(str(error))


def test_of_several_writers_at_once_one_writes_and_the_others_are_told(outputs):
    context = multiprocessing.get_context("fork")
    go, told, end = context.Barrier(4), context.Queue(), context.Event()
    writers = [context.Process(target=write_once, args=(str(outputs), (go, told, end))) for _ in range(4)]
    for writer in writers:
        writer.start()
    heard = [told.get(timeout=60) for _ in writers]
    end.set()
    for writer in writers:
        writer.join()
    assert heard.count("wrote") == 1
    assert all("is being written by process" in text for text in heard if text != "wrote")
    assert len((outputs / "trial/data/train.jsonl").read_text().splitlines()) == 1
    assert runs.changes(outputs / "trial", "prepare") == []
