"""A run's model behind an autoscaling SageMaker endpoint: made, asked, and all deleted again."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.run import disk, runs, untrusted
from lib.run.presets import PRESETS
from lib.run.settings import CloudSettings
from lib.run.stages import STAGES
from lib.ship import deploy
from lib.ship.cloud import Bucket, CloudError, Name, aws, check, clear, client, describe, named, needed, show, split_uri

VARIANT = "all"
SCALE_OUT_COOLDOWN_SECONDS, SCALE_IN_COOLDOWN_SECONDS = 60, 180
START_SECONDS = 1800  # that a machine may take to fetch the model, and again to load it
Call = tuple[str, dict[str, Any]]  # an operation of boto3's client, and its arguments


class _Noted(disk.Form):
    """What a run's endpoint.json says; it can name no more than what Sharpen made."""

    endpoint: Name
    bucket: Bucket


@dataclass(frozen=True)
class Piece:
    """One thing in AWS that an endpoint consists of: how it is made, found and removed."""

    service: str
    make: Call
    find: Call
    remove: Call

    def there(self) -> dict[str, Any] | None:
        """What AWS says of it now; None where there is no such thing."""
        operation, which = self.find
        answer = describe(client(self.service), operation, **which)
        for kind in ("ScalableTargets", "ScalingPolicies", "MetricAlarms"):
            if answer and kind in answer:
                return next(iter(answer[kind]), None)
        return answer

    @property
    def operation(self) -> str:
        return self.make[0]

    @property
    def name(self) -> str:
        return " ".join(map(str, self.find[1].values()))

    def call(self, call: Call) -> None:
        operation, arguments = call
        with aws(f"{operation} {self.name}"):
            getattr(client(self.service), operation)(**arguments)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as it would be created: its pieces in order, and files that go to the bucket."""

    run_folder: Path
    name: str
    place: str
    files: dict[str, Path]  # path in the bucket's folder -> file here
    pieces: tuple[Piece, ...]
    score: str
    cost: str

    def text(self) -> str:
        """What would be created, which of the run's scores it would have, and at which cost."""
        requests = [piece.make for piece in self.pieces]
        return show(requests, self.place, {"files": self.files}, f"{self.score}\n{self.cost}")


def plan(run_folder: Path, settings: CloudSettings) -> Endpoint:
    """The endpoint for what notebook 40 left; its name depends on run and artefact's hashes."""
    needed(settings, "bucket", "role_arn", "endpoint_image_uri", "endpoint_instance_type", "endpoint_cost_per_hour")
    files, hashes = _artefact(run_folder, settings.endpoint_artefact)
    name = named(run_folder.name, hashes)
    place = f"s3://{settings.bucket}/{_prefix(name)}"
    least, machines = settings.endpoint_cost_per_hour, settings.endpoint_max_instances
    cost = (f"cost: {least:g} an hour x 1 to {machines} machines = {least:g} to {least * machines:g} an hour, "
            f"until it is deleted, and storage")  # fmt: skip
    score = f"score: {deploy.score_text(run_folder, calculator=False)}"  # the container answers, not Sharpen's front
    return Endpoint(run_folder, name, place, files, _pieces(name, place, settings), score, cost)


def _artefact(run_folder: Path, kind: str) -> tuple[dict[str, Path], dict[str, str]]:
    """({name: file}, {name: sha256}) of the merged model, or of the smallest GGUF file that passed."""
    folder, outputs = run_folder / STAGES["export"].folder, runs.read(run_folder, "export")["outputs"]
    if problems := runs.changes(run_folder, "export"):
        raise runs.RunError(f"{folder}: {problems[0]}: run 40_export again")
    if kind == "merged":
        paths = [folder / name for name in outputs if name.startswith("merged/")]
    else:
        paths = sorted(folder.glob("*.gguf"), key=lambda path: path.stat().st_size)[:1]
    if not paths:
        raise CloudError(f"endpoint_artefact = {kind!r}: {folder} holds no such: run 40_export, or name the other one")
    files = {path.name: path for path in paths}
    return files, {name: outputs[path.relative_to(folder).as_posix()] for name, path in files.items()}


def _pieces(name: str, place: str, settings: CloudSettings) -> tuple[Piece, ...]:
    resource = f"endpoint/{name}/variant/{VARIANT}"
    scaled = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
    one_scaled, policy = scaled | {"ResourceId": resource}, scaled | {"ResourceId": resource, "PolicyName": name}
    container = {
        "Image": settings.endpoint_image_uri,
        "ModelDataSource": {"S3DataSource": {"S3Uri": place, "S3DataType": "S3Prefix", "CompressionType": "None"}},
        "Environment": dict(pair.split("=", 1) for pair in settings.endpoint_environment),
    }
    variant = {
        "VariantName": VARIANT, "ModelName": name, "InitialInstanceCount": 1,
        "InstanceType": settings.endpoint_instance_type, "ModelDataDownloadTimeoutInSeconds": START_SECONDS,
        "ContainerStartupHealthCheckTimeoutInSeconds": START_SECONDS,
    }  # fmt: skip
    tracking = {
        "TargetValue": settings.endpoint_invocations,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        "ScaleOutCooldown": SCALE_OUT_COOLDOWN_SECONDS, "ScaleInCooldown": SCALE_IN_COOLDOWN_SECONDS,
    }  # fmt: skip
    watched = {
        "Namespace": "AWS/SageMaker", "Period": 60, "TreatMissingData": "notBreaching",
        "Dimensions": [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": VARIANT}],
    }  # fmt: skip
    errors = watched | {
        "AlarmName": f"{name}-errors", "MetricName": "Invocation5XXErrors", "Statistic": "Sum",
        "Threshold": 1.0, "EvaluationPeriods": 1, "ComparisonOperator": "GreaterThanOrEqualToThreshold",
    }  # fmt: skip
    latency = watched | {  # CloudWatch has it in microseconds
        "AlarmName": f"{name}-latency", "MetricName": "ModelLatency", "ExtendedStatistic": "p95",
        "Threshold": settings.endpoint_latency_seconds * 1e6, "EvaluationPeriods": 3,
        "ComparisonOperator": "GreaterThanThreshold",
    }  # fmt: skip
    model, config, endpoint = ({key: name} for key in ("ModelName", "EndpointConfigName", "EndpointName"))
    return (
        _sagemaker("model", model, {"ExecutionRoleArn": settings.role_arn, "PrimaryContainer": container}),
        _sagemaker("endpoint_config", config, {"ProductionVariants": [variant]}),
        _sagemaker("endpoint", endpoint, config),
        Piece("application-autoscaling",
              ("register_scalable_target",
               one_scaled | {"MinCapacity": 1, "MaxCapacity": settings.endpoint_max_instances}),
              ("describe_scalable_targets", {"ResourceIds": [resource]} | scaled),
              ("deregister_scalable_target", one_scaled)),
        Piece("application-autoscaling",
              ("put_scaling_policy", policy | {"PolicyType": "TargetTrackingScaling",
                                               "TargetTrackingScalingPolicyConfiguration": tracking}),
              ("describe_scaling_policies", {"PolicyNames": [name]} | one_scaled),
              ("delete_scaling_policy", policy)),
        _alarm(errors),
        _alarm(latency),
    )  # fmt: skip


def _sagemaker(kind: str, which: dict[str, str], request: dict[str, Any]) -> Piece:
    create, describe, delete = (f"{deed}_{kind}" for deed in ("create", "describe", "delete"))
    return Piece("sagemaker", (create, which | request), (describe, which), (delete, which))


def _alarm(request: dict[str, Any]) -> Piece:
    which = {"AlarmNames": [request["AlarmName"]]}
    return Piece("cloudwatch", ("put_metric_alarm", request), ("describe_alarms", which), ("delete_alarms", which))


def create(asked: Endpoint, echo: Callable[[str], Any] = print) -> list[str]:
    """Make what is missing of an endpoint; the operations that this took: none where it is whole.

    An endpoint that failed is made anew. Where something cannot be made, what this call made is
    removed again. CloudError too where it is there with another container or machine: deleting it
    is yours to decide."""
    bucket, prefix = split_uri(asked.place)
    check(bucket)
    states = [(piece, piece.there()) for piece in asked.pieces]
    remedy = f"sharpen cloud delete {asked.run_folder.name} first"
    for piece, state in states:
        if state and piece.operation.startswith("create") and (differs := different(piece.make[1], state)):
            raise CloudError(f"{asked.name} is there already, but {differs}: {remedy}")
    noted, made, done = asked.run_folder / "cloud" / "endpoint.json", [], []
    if noted.exists() and (former := disk.load(noted, _Noted)["endpoint"]) != asked.name:
        raise CloudError(f"run {asked.run_folder.name!r} has the endpoint {former} for another artefact: {remedy}")
    disk.write_atomically(noted, [json.dumps({"endpoint": asked.name, "bucket": bucket}) + "\n"])
    is_new = not states[0][1]
    try:
        if is_new:
            echo(f"uploading {len(asked.files)} files to {asked.place}")
            with aws(f"uploading to {asked.place}"):
                for name, path in asked.files.items():
                    client("s3").upload_file(str(path), bucket, prefix + name)
        for piece, state in states:
            if state and state.get("EndpointStatus") == "Failed":
                _remove(piece)
                state = None
            if not state:
                made.append(piece)
            if not state or different(piece.make[1], state):
                echo(f"{piece.operation} {piece.name}")
                piece.call(piece.make)
                done.append(piece.operation)
            if piece.operation == "create_endpoint":
                _wait("endpoint_in_service", asked.name)
    except BaseException:
        echo("it could not be made whole: removing what was made")
        for piece in reversed(made):
            _remove(piece)
        if is_new:
            clear(bucket, prefix)
            noted.unlink()
        raise
    return done


def _remove(piece: Piece) -> bool:
    """Remove a piece, and say whether it was there; of an endpoint it waits until it is gone."""
    state = piece.there()
    if state:
        if state.get("EndpointStatus") in ("Creating", "Updating"):  # AWS removes none that is on its way
            with contextlib.suppress(CloudError):
                _wait("endpoint_in_service", piece.name)
        piece.call(piece.remove)
    if piece.operation == "create_endpoint":
        _wait("endpoint_deleted", piece.name)
    return bool(state)


def _wait(state: str, name: str) -> None:
    """Until the endpoint is as wanted; CloudError says why it failed."""
    from botocore.exceptions import WaiterError

    sagemaker = client("sagemaker")
    with aws(f"waiting for endpoint {name}"):
        try:
            sagemaker.get_waiter(state).wait(EndpointName=name)
        except WaiterError as error:
            description = describe(sagemaker, "describe_endpoint", EndpointName=name) or {}
            reason = description.get("FailureReason", f"it is {description.get('EndpointStatus', 'gone')} ({error})")
            raise CloudError(untrusted.redact(f"endpoint {name} failed: {reason.strip()}; its log is in CloudWatch, "
                                              f"group /aws/sagemaker/Endpoints/{name}")) from None  # fmt: skip


def different(wanted: Any, actual: Any, place: str = "") -> str | None:
    """The first value that AWS tells otherwise than asked for, in words; what it adds is left alone."""
    if isinstance(wanted, dict) and isinstance(actual, dict):
        pairs = [(wanted[key], actual[key], f"{place}.{key}".strip(".")) for key in wanted if key in actual]
    elif isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        pairs = [(*pair, place) for pair in zip(wanted, actual)]
    else:
        return None if wanted == actual else f"its {place} is {actual!r} and not {wanted!r}"
    return next(filter(None, (different(*pair) for pair in pairs)), None)


def invoke(run_folder: Path, question: str, max_new_tokens: int = 256) -> str:
    """The answer of a run's endpoint, which speaks OpenAI's protocol; a busy one is asked again."""
    run, noted = run_folder.name, run_folder / "cloud" / "endpoint.json"
    if not noted.exists():
        raise CloudError(f"run {run!r} has no endpoint that was made from here: sharpen cloud endpoint {run} --submit")
    name = disk.load(noted, _Noted)["endpoint"]
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_new_tokens, "temperature": 0}
    with aws(f"asking endpoint {name}"):
        answer = client("sagemaker-runtime").invoke_endpoint(
            EndpointName=name, ContentType="application/json", Body=json.dumps(body)
        )
        text = answer["Body"].read().decode(errors="replace")
    try:
        return json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise CloudError(f"endpoint {name} gave no chat completion: {text[:200]!r}: name a container that speaks "
                         f"OpenAI's protocol on /invocations") from None  # fmt: skip


def delete(run_folder: Path) -> list[str]:
    """Remove a run's endpoint and all of it, the last made first; a line for each thing done."""
    path = run_folder / "cloud" / "endpoint.json"
    if not path.exists():
        return []
    noted = disk.load(path, _Noted)
    name, place = noted["endpoint"], f"s3://{noted['bucket']}/{_prefix(noted['endpoint'])}"
    pieces = _pieces(name, place, PRESETS["demo"].settings)  # only what makes them depends on settings
    done = [f"{piece.remove[0]} {piece.name}" for piece in reversed(pieces) if _remove(piece)]
    done.append(f"{clear(*split_uri(place))} files removed from {place}")
    path.unlink()
    return done


def _prefix(name: str) -> str:
    return f"sharpen/{name}/model/"
