"""Training in the cloud: a SageMaker job, shown or sent, its result fetched; SkyPilot's file.

By boto3, whose requests are AWS's own, typed and checked by botocore; the SageMaker SDK wraps them
in classes that change between its major versions, and brings some 30 packages."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import tarfile
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import Field

from lib import SharpenError
from lib.engine import vllm_client
from lib.run import disk, presets, runs, untrusted
from lib.run.paths import ROOT, is_local
from lib.run.settings import CloudSettings, SettingsError, TrainSettings, full_name
from lib.run.stages import CLOUD, STAGES
from lib.ship.deploy import KEY

SKY_ROOT = "~/sharpen-ml"  # where a machine of SkyPilot's has what SageMaker has in /opt/ml
CHANNELS = ("code", "runs")  # folders in the bucket that a container finds under /opt/ml/input/data
PORT = 29500  # where several machines of a job meet; SageMaker calls the first of them algo-1
SERVICE_PORT = 8080  # where a service listens
VLLM = "~/vllm"  # an environment of its own: vLLM needs another torch
SOURCES = (
    "lib/**/*.py", "lib/**/*.json", "notebooks/*.ipynb", "environment.yml", "pyproject.toml", "Makefile", "LICENSE",
)  # fmt: skip
START = (  # at most 256 characters in one line, by SageMaker's rules
    "mkdir /opt/sharpen && cd /opt/sharpen && tar xf /opt/ml/input/data/code/source.tar && "
    "if make setup; then exec .venv/bin/python -m lib.ship.cloud_entry; "
    "else echo make setup failed >/opt/ml/output/failure; exit 1; fi"
)
REMEDIES = {  # AWS's error codes, and what helps
    "ResourceLimitExceeded": "your account's quota is too low: ask for more (console, Service Quotas, SageMaker), or "
                             "name a smaller machine or fewer",
    "ThrottlingException": "AWS slows your account's requests down: wait some minutes, then give the command again",
    "AccessDeniedException": "your credentials may not do this: let the account's administrator allow it",
    "AccessDenied": "your credentials may not do this: let the account's administrator allow it",
    "403": "your credentials may not use the bucket, or it is somebody else's: name one of yours",
    "404": "it is not there: make the bucket, or name another",
    "ExpiredToken": "your credentials have expired: log in again",
    "ExpiredTokenException": "your credentials have expired: log in again",
    "InvalidClientTokenId": "AWS does not know these credentials: look at AWS_ACCESS_KEY_ID, or at AWS_PROFILE",
    "UnrecognizedClientException": "AWS does not know these credentials: look at AWS_ACCESS_KEY_ID, or at AWS_PROFILE",
    "SignatureDoesNotMatch": "AWS does not know these credentials: look at AWS_SECRET_ACCESS_KEY",
}  # fmt: skip


Name = Annotated[str, Field(pattern=r"^sharpen-[A-Za-z0-9-]+$")]
Bucket = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")]


class CloudError(SharpenError):
    """The cloud cannot do what is asked, or did not; the message has the remedy."""


class _Noted(disk.Form):
    """What a run's job.json says; one from elsewhere can name no more than what Sharpen made."""

    job: Name
    folder: Name
    bucket: Bucket


@dataclass(frozen=True)
class Job:
    """A training job as it would be created: the request, and the files that go to the bucket."""

    run_folder: Path
    request: dict[str, Any]
    sources: dict[str, Path]  # path in the archive of sources -> file here
    data: dict[str, Path]  # path under the channel `runs` -> file here
    cost: str
    problem: str | None  # why it cannot be sent

    @property
    def place(self) -> tuple[str, str]:
        """The bucket, and the job's folder in it."""
        return split_uri(self.request["OutputDataConfig"]["S3OutputPath"])

    def text(self) -> str:
        """What would be created, and at which cost."""
        files = {"source files": self.sources, "files of data": self.data}
        text = show([("create_training_job", self.request)], f"s3://{'/'.join(self.place)}", files, self.cost)
        return f"{text}\nit cannot be sent: {self.problem}" if self.problem else text


def show(requests: list[tuple[str, dict]], place: str, files: dict[str, dict[str, Path]], cost: str) -> str:
    """Requests with what they upload, by kind, and what they cost, for a reader."""
    made = "\n".join(f"{operation}:\n{json.dumps(request, indent=2)}" for operation, request in requests)
    counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in files.items())
    size = sum(path.stat().st_size for paths in files.values() for path in paths.values())
    return untrusted.redact(f"{made}\n\nto {place}: {counts}, {size / 2**20:.1f} MiB\n{cost}")


@contextlib.contextmanager
def aws(doing: str) -> Iterator[None]:
    """What AWS or its SDK refuses, as a CloudError that says what was being done and what helps."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as refused

    try:
        yield
    except (refused.NoCredentialsError, refused.PartialCredentialsError, refused.ProfileNotFound,
            refused.CredentialRetrievalError, refused.SSOError) as error:  # fmt: skip
        raise CloudError(f"{doing}: no AWS credentials ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                         f"AWS_PROFILE, in the environment, or log in with `aws configure`") from None
    except refused.NoRegionError:
        raise CloudError(f"{doing}: no AWS region: set AWS_DEFAULT_REGION, e.g. eu-central-1") from None
    except refused.ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        remedy = REMEDIES.get(code, "change what it names, then give the same command again")
        message = textwrap.shorten(message, 400)  # AWS lists every machine that there is where one is unknown
        raise CloudError(untrusted.redact(f"{doing}: {code}: {message}: {remedy}")) from None
    except (Boto3Error, refused.BotoCoreError) as error:  # no connection, a value that AWS's forms do not allow
        raise CloudError(untrusted.redact(f"{doing}: {error}: look at the value, the network, AWS_DEFAULT_REGION and "
                                          f"AWS_ENDPOINT_URL")) from None  # fmt: skip


@functools.cache
def client(service: str) -> Any:
    """A boto3 client; a call that AWS throttles or does not answer is repeated (AWS_MAX_ATTEMPTS)."""
    import boto3
    from botocore.config import Config

    with aws(f"connecting to {service}"):
        return boto3.client(service, config=Config(retries={"mode": "standard"}))


def check(bucket: str) -> None:
    """CloudError, before anything is created, where credentials are refused or there is no bucket."""
    with aws("asking AWS who we are"):
        client("sts").get_caller_identity()
    with aws(f"looking at bucket {bucket!r}"):
        client("s3").head_bucket(Bucket=bucket)


def needed(settings: CloudSettings, *names: str) -> None:
    """SettingsError that names the settings of a request that are none."""
    if absent := [name for name in names if getattr(settings, name) is None]:
        fields = CloudSettings.model_fields
        raise SettingsError([f"{name} = None: needed in the cloud ({fields[name].description})" for name in absent])


def named(run: str, made_from: Any) -> str:
    """A name that AWS takes, the same for the same run and content: sharpen-<run>-<hash>."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return f"sharpen-{re.sub('[^A-Za-z0-9]+', '-', run)[:36].strip('-')}-{digest[:8]}"


# --- training -------------------------------------------------------------------------------------
def job(preset: str, run_folder: Path, overrides: dict[str, Any], rehearse: bool) -> Job:
    """The job that trains a run whose data are here; same settings, code and data: the same job.

    Each setting of training is a hyper-parameter. RunError or SettingsError if it could not
    train."""
    asked, training, sent = _asked(preset, run_folder, overrides, rehearse)
    needed(asked, "bucket", "role_arn", "image_uri", "instance_type", "cost_per_hour")
    sources, data = _sources(training.base_model), _data(run_folder, training)
    name = named(run_folder.name, [sent, asked.image_uri, asked.instance_type, _hashes(sources), _hashes(data)])
    place, seconds = f"s3://{asked.bucket}/sharpen/{name}", round(asked.max_hours * 3600)
    stopping = {"MaxRuntimeInSeconds": seconds}
    if asked.use_spot:
        stopping["MaxWaitTimeInSeconds"] = 2 * seconds
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": asked.image_uri, "TrainingInputMode": "File",
                                   "ContainerEntrypoint": ["bash", "-c", START]},
        "RoleArn": asked.role_arn,
        "HyperParameters": sent,
        "InputDataConfig": [{
            "ChannelName": channel,
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{place}/{channel}/",
                                            "S3DataDistributionType": "FullyReplicated"}},
        } for channel in CHANNELS],
        "OutputDataConfig": {"S3OutputPath": place},
        "CheckpointConfig": {"S3Uri": f"{place}/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {"InstanceType": asked.instance_type, "InstanceCount": asked.instance_count,
                           "VolumeSizeInGB": asked.volume_gib},
        "EnableManagedSpotTraining": asked.use_spot,
        "StoppingCondition": stopping,
        "Tags": [{"Key": "sharpen-run", "Value": run_folder.name}],
    }  # fmt: skip
    most = asked.cost_per_hour * asked.instance_count * asked.max_hours
    discount = ", less the discount of spare machines" if asked.use_spot else ""
    cost = (f"cost: {asked.cost_per_hour:g} an hour x {asked.instance_count} x {asked.max_hours:g} hours = "
            f"at most {most:,.2f}{discount}, and storage")  # fmt: skip
    return Job(run_folder, request, sources, data, cost, _outside(training.base_model))


def again(run_folder: Path, asked: CloudSettings) -> Job:
    """The job that would train a run in the cloud as it was trained here."""
    prepared, trained = (runs.read(run_folder, stage) for stage in ("prepare", "train"))
    overrides = runs.made_with(prepared) | runs.made_with(trained) | vars(asked)
    return job(trained["preset"], run_folder, overrides, trained["rehearse"])


def completed(settings: CloudSettings, made_up: dict[str, Any]) -> tuple[CloudSettings, list[str]]:
    """The cloud's settings with made-up ones for those that are none, and the names of these."""
    absent = [name for name in made_up if getattr(settings, name) is None]
    given = {name: getattr(settings, name) for name in CLOUD}
    return SimpleNamespace(**given | {name: made_up[name] for name in absent}), absent


def _asked(
    preset: str, run_folder: Path, overrides: dict[str, Any], rehearse: bool
) -> tuple[CloudSettings, TrainSettings, dict[str, str]]:
    """(the cloud's settings, training's, the hyper-parameters) of a run to be trained elsewhere.

    RunError where its data are of other settings."""
    overrides = {full_name(name): value for name, value in overrides.items()}
    asked = presets.resolve(preset, overrides, rehearse, "cloud").settings
    if asked.instance_count > 1:
        overrides = {"rdzv_endpoint": f"algo-1:{PORT}"} | overrides | {"nodes": asked.instance_count}
    resolved = presets.resolve(preset, overrides, rehearse, "train")
    manifest, training = runs.read(run_folder, "prepare"), resolved.of_stage("train")
    made = {"preset": manifest["preset"], "rehearse": manifest["rehearse"]} | manifest["settings"]
    wanted = {"preset": preset, "rehearse": rehearse} | resolved.of_stage("prepare")
    if problem := runs.differences(made, wanted) or "; ".join(runs.changes(run_folder, "prepare")):
        raise runs.RunError(f"the data of run {run_folder.name!r} are others: {problem}: run 10_prepare_data again")
    sent = {name: json.dumps(value) for name, value in training.items()} | {
        "preset": preset, "run": run_folder.name, "rehearse": json.dumps(rehearse),
        "overrides": json.dumps(sorted(overrides.keys() & training.keys())),
    }  # fmt: skip
    return asked, resolved.settings, sent


def _data(run_folder: Path, settings: TrainSettings) -> dict[str, Path]:
    """The files of earlier stages that training reads: {path under the outputs: file}."""
    folders = {run_folder: "prepare"}
    if settings.continue_from:
        folders[run_folder.with_name(settings.continue_from)] = "train"
    paths = []
    for folder, stage in folders.items():
        names = (*runs.read(folder, stage)["outputs"], "manifest.json")
        paths += [folder / STAGES[stage].folder / name for name in names]
    return {path.relative_to(run_folder.parent).as_posix(): path for path in paths}


def _sources(base_model: str) -> dict[str, Path]:
    """The project's code, and the base model where it is a folder or GGUF file of the project."""
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    if is_local(base_model) and not _outside(base_model):
        files += [ROOT / base_model, *(ROOT / base_model).glob("*")]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(files) if path.is_file()}


def _hashes(files: dict[str, Path]) -> dict[str, str]:
    return {name: disk.sha256(path) for name, path in files.items()}


def _outside(base_model: str) -> str | None:
    """Why a base model cannot be sent, or None: in the container the project lies elsewhere."""
    path = os.path.normpath(os.path.expanduser(base_model))
    inside = not os.path.isabs(path) and not path.startswith("..")
    if inside or not is_local(base_model):
        return None
    return f"base_model = {base_model!r}: only what lies in the project is sent: put it under data/, or name a hub id"


def submit(asked: Job) -> str:
    """Upload and create the job, and say so; nothing where it is there already and has not failed.

    A job that failed or was stopped is followed by another of the same name and a number, which
    goes on from the same checkpoints. Where the job cannot be created, what was uploaded is removed
    again."""
    if asked.problem:
        raise CloudError(asked.problem)
    (bucket, prefix), sagemaker, run = asked.place, client("sagemaker"), asked.run_folder.name
    check(bucket)
    first, noted = asked.request["TrainingJobName"], _noted(asked.run_folder)
    if noted and noted["folder"] != first:
        raise CloudError(f"run {run!r} was sent with other settings, code or data, as training job {noted['job']}: "
                         f"sharpen cloud delete {run} first, or name another run")  # fmt: skip
    name, attempt = first, 1
    while job := describe(sagemaker, "describe_training_job", TrainingJobName=name):
        if job["TrainingJobStatus"] not in ("Failed", "Stopped"):
            _note(asked, name)
            return f"training job {name} is there already ({job['TrainingJobStatus']}); nothing was created"
        attempt += 1
        name = f"{first}-{attempt}"
    try:
        _upload(asked, bucket, prefix)
        with aws(f"creating training job {name}"):
            sagemaker.create_training_job(**asked.request | {"TrainingJobName": name})
    except BaseException:
        _clear_inputs(bucket, prefix)
        raise
    _note(asked, name)
    return f"training job {name} is created; to fetch its result: sharpen cloud fetch {run} --wait"


def _upload(asked: Job, bucket: str, prefix: str) -> None:
    s3 = client("s3")
    with aws(f"uploading to s3://{bucket}/{prefix}"), tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, path in asked.sources.items():
                archive.add(path.resolve(), name, recursive=False)
        file.seek(0)
        s3.upload_fileobj(file, bucket, f"{prefix}/code/source.tar")
        for name, path in asked.data.items():
            s3.upload_file(str(path), bucket, f"{prefix}/runs/{name}")


def _clear_inputs(bucket: str, prefix: str) -> None:
    for channel in CHANNELS:
        clear(bucket, f"{prefix}/{channel}/")


def _note(asked: Job, name: str) -> None:
    """Where the run is trained: `fetch` and `delete` read it."""
    note = {"job": name, "folder": asked.request["TrainingJobName"], "bucket": asked.place[0]}
    disk.write_atomically(asked.run_folder / "cloud" / "job.json", [json.dumps(note, indent=2) + "\n"])


def _noted(run_folder: Path) -> dict[str, str] | None:
    path = run_folder / "cloud" / "job.json"
    return disk.load(path, _Noted) if path.exists() else None


def fetch(run_folder: Path, wait: bool = False) -> str:
    """Bring a finished job's artefact into the run, as if trained here, and say so.

    CloudError where the job failed (what it had uploaded is removed, its checkpoints are kept), or
    its archive holds anything but the files that the stage's manifest names."""
    run, noted = run_folder.name, _noted(run_folder)
    if not noted:
        raise CloudError(f"run {run!r} was not sent from here: sharpen cloud train PRESET --run {run} --submit")
    name, bucket, prefix = noted["job"], noted["bucket"], f"sharpen/{noted['folder']}"
    if wait:
        _wait(name)
    with aws(f"asking for training job {name}"):
        job = client("sagemaker").describe_training_job(TrainingJobName=name)
    state = job["TrainingJobStatus"]
    if state in ("Failed", "Stopped"):
        _clear_inputs(bucket, prefix)
        reason = job.get("FailureReason", "it was stopped, or its time was over")
        raise CloudError(untrusted.redact(
            f"training job {name} {state.lower()}: {reason.strip()}\nits log is in CloudWatch, group "
            f"/aws/sagemaker/TrainingJobs; submit it again after the cause is mended, and it goes on from its "
            f"checkpoints in s3://{bucket}/{prefix}; `sharpen cloud delete {run}` removes those"))  # fmt: skip
    if state != "Completed":
        return f"training job {name}: {state}, {job.get('SecondaryStatus', '')}; ask again later, or with --wait"
    place = job["ModelArtifacts"]["S3ModelArtifacts"]
    disk.lock(run_folder, "writer")
    try:
        with aws(f"fetching {place}"), tempfile.TemporaryDirectory(dir=run_folder, prefix=".fetch-") as folder:
            archive, unpacked = Path(folder) / "model.tar.gz", Path(folder) / run
            client("s3").download_file(*split_uri(place), str(archive))
            unpack(archive, unpacked)
            _take(unpacked, run_folder)
    finally:
        disk.unlock(run_folder, "writer")
    return f"training job {name}: its adapter is in {run_folder / STAGES['train'].folder}; 30_evaluate goes on with it"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files and folders; CloudError for links, devices, paths out of it, and bombs."""

    def plain(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        if not (member.isfile() or member.isdir()):
            raise CloudError(f"{archive.name} holds {member.name!r}, which is neither file nor folder: not unpacked")
        return tarfile.data_filter(member, path)

    try:
        with untrusted.opened(archive) as file, tarfile.open(fileobj=file, mode="r|") as members:
            members.extractall(folder, filter=plain)
    except (tarfile.TarError, untrusted.UntrustedError) as error:
        raise CloudError(f"{archive.name} is not unpacked: {error}") from None


def _take(unpacked: Path, run_folder: Path) -> None:
    """Move a stage that was trained elsewhere into the run; CloudError where it is another."""
    adapter = unpacked / STAGES["train"].folder
    manifest = runs.read(unpacked, "train")
    problems = runs.changes(unpacked, "train") + untrusted.model_problems(adapter)
    if manifest["inputs"].get("data") != runs.read(run_folder, "prepare")["outputs"]:
        problems.append("it was trained on other data than are in the run now")
    if problems:
        raise CloudError(f"the artefact is not taken: {'; '.join(problems)}")
    there = run_folder / adapter.name
    if there.exists():
        if (there / "manifest.json").exists() and runs.read(run_folder, "train")["outputs"] == manifest["outputs"]:
            return
        raise CloudError(f"{there} holds another training: move it away, then fetch again")
    (run_folder / "notebooks").mkdir(exist_ok=True)
    for notebook in (unpacked / "notebooks").glob("2?_train_*.ipynb"):
        shutil.move(notebook, run_folder / "notebooks" / notebook.name)
    shutil.move(adapter, there)


def delete(run_folder: Path) -> list[str]:
    """Stop a run's job and remove its files from the bucket; a line for each thing done.

    CloudError where it is complete and was not fetched: its adapter is nowhere else."""
    noted, done = _noted(run_folder), []
    if not noted:
        return done
    sagemaker, path = client("sagemaker"), run_folder / "cloud" / "job.json"
    name, bucket, prefix = noted["job"], noted["bucket"], f"sharpen/{noted['folder']}/"
    job = describe(sagemaker, "describe_training_job", TrainingJobName=name) or {}
    state = job.get("TrainingJobStatus")
    if state == "Completed" and not runs.is_complete(run_folder, "train"):
        raise CloudError(f"training job {name} is complete and was not fetched: sharpen cloud fetch {run_folder.name} "
                         f"first, or remove {path} and the job's folder in the bucket yourself")  # fmt: skip
    if state == "InProgress":
        with aws(f"stopping training job {name}"):
            sagemaker.stop_training_job(TrainingJobName=name)
        _wait(name)  # until then it writes to the bucket
        done.append(f"training job {name} is stopped")
    done.append(f"{clear(bucket, prefix)} files removed from s3://{bucket}/{prefix}")
    path.unlink()
    return done


def _wait(name: str) -> None:
    """Until a job has ended in any way, or for six hours."""
    from botocore.exceptions import WaiterError

    with aws(f"waiting for training job {name}"), contextlib.suppress(WaiterError):
        client("sagemaker").get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=name)


# --- S3 and SageMaker -----------------------------------------------------------------------------
def split_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/key as (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def clear(bucket: str, prefix: str) -> int:
    """Remove every object under a prefix; how many there were."""
    s3, count = client("s3"), 0
    with aws(f"removing s3://{bucket}/{prefix}"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            if keys := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})
                count += len(keys)
    return count


def describe(service: Any, operation: str, **which: Any) -> dict[str, Any] | None:
    """What AWS says of a thing, or None where there is no such thing."""
    from botocore.exceptions import ClientError

    with aws(f"{operation} {', '.join(map(str, which.values()))}"):
        try:
            return getattr(service, operation)(**which)
        except ClientError as error:
            if re.search("could not find|not found", str(error), re.IGNORECASE):
                return None
            raise


# --- other clouds ---------------------------------------------------------------------------------
def sky(preset: str, run_folder: Path, overrides: dict[str, Any], rehearse: bool) -> Path:
    """Write outputs/<run>/cloud/sky.yaml, SkyPilot's task for another cloud or Kubernetes.

    Each machine runs what a SageMaker container does; its outputs lie in the mounted bucket."""
    import yaml

    asked, training, sent = _asked(preset, run_folder, overrides, rehearse)
    needed(asked, "bucket", "accelerators")
    if problem := _outside(training.base_model):
        raise CloudError(problem)
    run, folder = run_folder.name, run_folder / "cloud"
    bucket = asked.bucket if "://" in asked.bucket else f"s3://{asked.bucket}"
    parameters = disk.write_atomically(folder / "hyperparameters.json", [json.dumps(sent, indent=2) + "\n"])
    mounts = {f"{SKY_ROOT}/input/config/hyperparameters.json": str(parameters)}
    for name, path in _data(run_folder, training).items():
        mounts[f"{SKY_ROOT}/input/data/runs/{Path(name).parent}"] = str(path.parent)
    mounts[f"{SKY_ROOT}/checkpoints"] = {"source": bucket, "mode": "MOUNT_CACHED"}
    resources = {"accelerators": asked.accelerators, "use_spot": asked.use_spot,
                 "disk_size": asked.volume_gib}  # fmt: skip
    if asked.image_uri:
        resources["image_id"] = f"docker:{asked.image_uri}"
    task = {
        "name": _sky_name(run),
        "workdir": str(ROOT),
        "num_nodes": asked.instance_count,
        "resources": resources,
        "file_mounts": mounts,
        "setup": "make setup\n",
        "run": f"SHARPEN_ML_ROOT={SKY_ROOT.replace('~', '$HOME')} .venv/bin/python -m lib.ship.cloud_entry\n",
    }
    head = (f"# sky jobs launch {folder / 'sky.yaml'}   (a managed job: started again where its machines are lost)\n"
            f"# The result: copy {bucket}/{run}/ to {folder.parent}\n")  # fmt: skip
    return disk.write_atomically(folder / "sky.yaml", [head, yaml.safe_dump(task, sort_keys=False)])


def service(run_folder: Path, settings: CloudSettings) -> Path:
    """Write outputs/<run>/cloud/service.yaml, SkyPilot's service of a run: `sharpen serve`, so with the calculator, on
    machines that come and go with the requests.

    The key that requests must bear is given when it is started, and stands in no file."""
    import yaml

    run, folder = run_folder.name, run_folder / "cloud"
    base = runs.read(run_folder, "train")["settings"]["base_model"]
    if problem := _outside(base):
        raise CloudError(problem)
    stages = [stage for stage in ("train", "evaluate", "export") if runs.is_complete(run_folder, stage)]
    mounts = {f"~/sky_workdir/outputs/{run}/{STAGES[stage].folder}": str(run_folder / STAGES[stage].folder)
              for stage in stages}  # fmt: skip
    resources = {"use_spot": settings.use_spot, "ports": SERVICE_PORT}
    if settings.accelerators:
        resources["accelerators"] = settings.accelerators
    replicas = {"min_replicas": 1, "max_replicas": settings.endpoint_max_instances,
                "target_qps_per_replica": settings.endpoint_invocations / 60}  # fmt: skip
    probe = {"path": "/health", "initial_delay_seconds": 1800}
    task = {
        "name": _sky_name(run),
        "service": {"readiness_probe": probe, "replica_policy": replicas},
        "workdir": str(ROOT),
        "resources": resources,
        "file_mounts": mounts,
        "secrets": {KEY: None},
        "setup": "make setup\n",
        "run": f".venv/bin/python -m lib.cli serve {shlex.quote(run)} --host 0.0.0.0 --port {SERVICE_PORT}\n",
    }
    if "export" not in stages or "Modelfile" not in runs.read(run_folder, "export")["outputs"]:  # no file for llama.cpp
        task["setup"] += f"python3 -m venv {VLLM} && {VLLM}/bin/pip install vllm\n"
        task["run"] = f"{vllm_client.PYTHON}={VLLM}/bin/python {task['run']}"
    head = f"# {KEY}=... sky serve up {folder / 'service.yaml'} --secret {KEY}\n"
    return disk.write_atomically(folder / "service.yaml", [head, yaml.safe_dump(task, sort_keys=False)])


def _sky_name(run: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"sharpen-{run}".lower()).strip("-")
