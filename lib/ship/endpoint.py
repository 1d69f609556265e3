"""A run's model behind an autoscaling SageMaker endpoint: what it consists of, made, asked, and all deleted again."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.run import disk, runs, untrusted
from lib.run.presets import PRESETS
from lib.run.settings import Settings
from lib.run.stages import STAGES
from lib.ship.cloud import Bucket, CloudError, Name, aws, check, clear, client, found, named, needed, split_uri

VARIANT = "all"
SCALE_OUT_COOLDOWN_SECONDS, SCALE_IN_COOLDOWN_SECONDS = 60, 180
START_SECONDS = 1800  # that a machine may take to fetch the model, and again to load it
Call = tuple[str, dict[str, Any]]  # an operation of boto3's client, and its arguments


class _Noted(disk.Form):
    """What a run's endpoint.json says; one from elsewhere can name no more than what Sharpen made."""

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
        told = found(client(self.service), self.find[0], **self.find[1])
        for kind in ("ScalableTargets", "ScalingPolicies", "MetricAlarms"):
            if told and kind in told:
                return next(iter(told[kind]), None)
        return told

    @property
    def name(self) -> str:
        return " ".join(map(str, self.find[1].values()))

    def call(self, call: Call) -> None:
        operation, arguments = call
        with aws(f"{operation} {self.name}"):
            getattr(client(self.service), operation)(**arguments)


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as it would be created: its pieces in order, and the model's files that go to the bucket first."""

    run_folder: Path
    name: str
    place: str
    files: dict[str, Path]  # path in the bucket's folder -> file here
    pieces: tuple[Piece, ...]
    cost: str

    def text(self) -> str:
        """What would be created, and at which cost."""
        size = sum(path.stat().st_size for path in self.files.values())
        made = "\n".join(f"{piece.make[0]}:\n{json.dumps(piece.make[1], indent=2)}" for piece in self.pieces)
        told = f"{made}\n\nto {self.place}: {len(self.files)} files, {size / 2**20:.1f} MiB\n{self.cost}"
        return untrusted.redact(told)


def plan(run_folder: Path, settings: Settings) -> Endpoint:
    """The endpoint for what notebook 40 left in the run; its name hangs on the run and the artefact's hashes."""
    needed(settings, "bucket", "role_arn", "endpoint_image_uri", "endpoint_instance_type", "endpoint_cost_per_hour")
    files, hashes = _artefact(run_folder, settings.endpoint_artefact)
    name = named(run_folder.name, hashes)
    place = f"s3://{settings.bucket}/{_prefix(name)}"
    least, most = (settings.endpoint_cost_per_hour * count for count in (1, settings.endpoint_max_instances))
    cost = (f"cost: {settings.endpoint_cost_per_hour:g} an hour x 1 to {settings.endpoint_max_instances} machines = "
            f"{least:g} to {most:g} an hour, until it is deleted, and storage")  # fmt: skip
    return Endpoint(run_folder, name, place, files, _pieces(name, place, settings), cost)


def _artefact(run_folder: Path, kind: str) -> tuple[dict[str, Path], dict[str, str]]:
    """({name: file}, {name: sha256}) of the merged model, or of the smallest GGUF file that notebook 40 passed."""
    folder, outputs = run_folder / STAGES["export"].folder, runs.read(run_folder, "export")["outputs"]
    if problems := runs.changes(run_folder, "export"):
        raise runs.RunError(f"{folder}: {problems[0]}: run 40_export again")
    if kind == "merged":
        names = [name for name in outputs if name.startswith("merged/")]
    else:
        names = sorted((name for name in outputs if name.endswith(".gguf") and "/" not in name),
                       key=lambda name: (folder / name).stat().st_size)[:1]  # fmt: skip
    if not names:
        raise CloudError(f"endpoint_artefact = {kind!r}: {folder} holds no such: run 40_export, or name the other one")
    return {Path(name).name: folder / name for name in names}, {Path(name).name: outputs[name] for name in names}


def _pieces(name: str, place: str, settings: Settings) -> tuple[Piece, ...]:
    scaled = {"ServiceNamespace": "sagemaker", "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
              "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}  # fmt: skip
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
    target = scaled | {"MinCapacity": 1, "MaxCapacity": settings.endpoint_max_instances}
    policy = scaled | {"PolicyName": name}
    model, config, endpoint = ({key: name} for key in ("ModelName", "EndpointConfigName", "EndpointName"))
    return (
        Piece("sagemaker", ("create_model", model | {"ExecutionRoleArn": settings.role_arn,
                                                     "PrimaryContainer": container}),
              ("describe_model", model), ("delete_model", model)),
        Piece("sagemaker", ("create_endpoint_config", config | {"ProductionVariants": [variant]}),
              ("describe_endpoint_config", config), ("delete_endpoint_config", config)),
        Piece("sagemaker", ("create_endpoint", endpoint | config),
              ("describe_endpoint", endpoint), ("delete_endpoint", endpoint)),
        Piece("application-autoscaling", ("register_scalable_target", target),
              ("describe_scalable_targets", {"ResourceIds": [scaled["ResourceId"]]} | {
                  key: scaled[key] for key in ("ServiceNamespace", "ScalableDimension")}),
              ("deregister_scalable_target", scaled)),
        Piece("application-autoscaling", ("put_scaling_policy", policy | {
                  "PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": tracking}),
              ("describe_scaling_policies", {"PolicyNames": [name]} | scaled), ("delete_scaling_policy", policy)),
        *(Piece("cloudwatch", ("put_metric_alarm", alarm), ("describe_alarms", {"AlarmNames": [alarm["AlarmName"]]}),
                ("delete_alarms", {"AlarmNames": [alarm["AlarmName"]]})) for alarm in (errors, latency)),
    )  # fmt: skip


def create(asked: Endpoint, echo: Callable[[str], Any] = print) -> list[str]:
    """Make what is missing of an endpoint, and return the operations that this took: none where it is whole.

    An endpoint that failed is made anew. Where something cannot be made, what this call made is removed again.
    CloudError too where it is there with another container or machine: deleting it is yours to decide."""
    bucket, prefix = split_uri(asked.place)
    check(bucket)
    there = [piece.there() for piece in asked.pieces]
    for piece, told in zip(asked.pieces, there):
        differs = different(piece.make[1], told) if told and piece.make[0].startswith("create") else None
        if differs:
            raise CloudError(f"{asked.name} is there already, but {differs}: "
                             f"sharpen cloud delete {asked.run_folder.name} first")  # fmt: skip
    noted, made, done = asked.run_folder / "cloud" / "endpoint.json", [], []
    if noted.exists() and (former := disk.load(noted, _Noted))["endpoint"] != asked.name:
        raise CloudError(f"run {asked.run_folder.name!r} has the endpoint {former['endpoint']} for another artefact: "
                         f"sharpen cloud delete {asked.run_folder.name} first")  # fmt: skip
    disk.write_atomically(noted, [json.dumps({"endpoint": asked.name, "bucket": bucket}) + "\n"])
    try:
        if not there[0]:
            echo(f"uploading {len(asked.files)} files to {asked.place}")
            with aws(f"uploading to {asked.place}"):
                for name, path in asked.files.items():
                    client("s3").upload_file(str(path), bucket, prefix + name)
        for piece, told in zip(asked.pieces, there):
            if told and told.get("EndpointStatus") == "Failed":
                _remove(piece)
                told = None
            if not told or different(piece.make[1], told):
                made += [piece] * (not told)
                echo(f"{piece.make[0]} {piece.name}")
                piece.call(piece.make)
                done.append(piece.make[0])
            if piece.make[0] == "create_endpoint":
                _wait("endpoint_in_service", asked.name)
    except BaseException:
        echo("it could not be made whole: removing what was made")
        for piece in reversed(made):
            _remove(piece)
        if not there[0]:
            clear(bucket, prefix)
            noted.unlink()
        raise
    return done


def _remove(piece: Piece) -> bool:
    """Remove a piece, and say whether it was there; an endpoint is gone before its configuration and its model go."""
    told = piece.there()
    if told and told.get("EndpointStatus") in ("Creating", "Updating"):  # AWS removes none that is on its way
        with contextlib.suppress(CloudError):
            _wait("endpoint_in_service", piece.name)
    if told:
        piece.call(piece.remove)
    if piece.make[0] == "create_endpoint":
        _wait("endpoint_deleted", piece.name)
    return bool(told)


def _wait(state: str, name: str) -> None:
    """Until the endpoint is as wanted; CloudError says why it failed."""
    from botocore.exceptions import WaiterError

    sagemaker = client("sagemaker")
    with aws(f"waiting for endpoint {name}"):
        try:
            sagemaker.get_waiter(state).wait(EndpointName=name)
        except WaiterError as error:
            told = found(sagemaker, "describe_endpoint", EndpointName=name) or {}
            reason = told.get("FailureReason", f"it is {told.get('EndpointStatus', 'gone')} ({error})")
            raise CloudError(untrusted.redact(f"endpoint {name} failed: {reason.strip()}; its log is in CloudWatch, "
                                              f"group /aws/sagemaker/Endpoints/{name}")) from None  # fmt: skip


def different(wanted: Any, told: Any, place: str = "") -> str | None:
    """The first value that AWS tells otherwise than it was asked for, in words; what it adds is left alone."""
    if isinstance(wanted, dict) and isinstance(told, dict):
        pairs = [(wanted[key], told[key], f"{place}.{key}".strip(".")) for key in wanted if key in told]
    elif isinstance(wanted, list) and isinstance(told, list) and len(wanted) == len(told):
        pairs = [(*pair, place) for pair in zip(wanted, told)]
    else:
        return None if wanted == told else f"its {place} is {told!r} and not {wanted!r}"
    return next(filter(None, (different(*pair) for pair in pairs)), None)


def invoke(run_folder: Path, question: str, max_new_tokens: int = 256) -> str:
    """The answer of a run's endpoint, whose container speaks OpenAI's chat completions; busy ones are asked again."""
    noted = run_folder / "cloud" / "endpoint.json"
    if not noted.exists():
        raise CloudError(f"run {run_folder.name!r} has no endpoint that was made from here: sharpen cloud endpoint "
                         f"{run_folder.name} --submit")  # fmt: skip
    name = disk.load(noted, _Noted)["endpoint"]
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_new_tokens, "temperature": 0}
    with aws(f"asking endpoint {name}"):
        asked = {"EndpointName": name, "ContentType": "application/json", "Body": json.dumps(body)}
        answer = client("sagemaker-runtime").invoke_endpoint(**asked)
        text = answer["Body"].read().decode(errors="replace")
    try:
        return json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise CloudError(f"endpoint {name} gave no chat completion: {text[:200]!r}: name a container that speaks "
                         f"OpenAI's protocol on /invocations") from None  # fmt: skip


def delete(run_folder: Path) -> list[str]:
    """Remove a run's endpoint and all that belongs to it, the last made first; a line for each thing done."""
    path, done = run_folder / "cloud" / "endpoint.json", []
    if not path.exists():
        return done
    noted = disk.load(path, _Noted)
    name, place = noted["endpoint"], f"s3://{noted['bucket']}/{_prefix(noted['endpoint'])}"
    for piece in reversed(_pieces(name, place, PRESETS["demo"].settings)):  # only what makes them hangs on settings
        if _remove(piece):
            done.append(f"{piece.remove[0]} {piece.name}")
    done.append(f"{clear(*split_uri(place))} files removed from {place}")
    path.unlink()
    return done


def _prefix(name: str) -> str:
    return f"sharpen/{name}/model/"
