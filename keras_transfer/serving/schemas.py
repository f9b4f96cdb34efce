"""The protocol's JSON as models, from which /openapi.json is made."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Error(BaseModel):
    """Why a request was not answered."""

    error: str


class Status(BaseModel):
    """What a version ended with, if it ended."""

    error_code: str
    error_message: str


class VersionStatus(BaseModel):
    """One version: AVAILABLE while it answers, END once it is unloaded or was refused."""

    version: str
    state: Literal["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
    status: Status


class ModelStatus(BaseModel):
    """All versions, or the one that was asked for."""

    model_version_status: list[VersionStatus]


class Dimension(BaseModel):
    """One dimension of a tensor; '-1' is any size."""

    size: str
    name: str


class TensorShape(BaseModel):
    """The dimensions of a tensor."""

    dim: list[Dimension]
    unknown_rank: bool


class TensorInfo(BaseModel):
    """One input or output of a signature."""

    dtype: str
    tensor_shape: TensorShape
    name: str


class SignatureDef(BaseModel):
    """One signature."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str


class SignatureDefMap(BaseModel):
    """All signatures by name."""

    signature_def: dict[str, SignatureDef]


class MetadataFields(BaseModel):
    """The kinds of metadata; there is one."""

    signature_def: SignatureDefMap


class ModelSpec(BaseModel):
    """Which version answered."""

    name: str
    signature_name: str
    version: str


class ModelMetadata(BaseModel):
    """What the model's signatures take and return."""

    model_config = ConfigDict(protected_namespaces=())

    model_spec: ModelSpec
    metadata: MetadataFields


class Bytes(BaseModel):
    """Bytes, such as those of an image file."""

    model_config = ConfigDict(extra="forbid")

    b64: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class RowRequest(BaseModel):
    """Row format: a value a row for a signature with one input, else an object of inputs."""

    signature_name: str = "serving_default"
    instances: Annotated[list[Bytes | dict[str, Any] | list[Any] | str], Field(min_length=1)]


class ColumnRequest(BaseModel):
    """Column format: a list a input, or a bare list for a signature with one input."""

    signature_name: str = "serving_default"
    inputs: dict[str, list[Any]] | list[Any]


class RowAnswer(BaseModel):
    """An object of outputs a row."""

    predictions: list[dict[str, Any]]


class ColumnAnswer(BaseModel):
    """A list a output."""

    outputs: dict[str, list[Any]]


class Health(BaseModel):
    """That the server lives, or that it is ready."""

    status: Literal["alive", "ready"]
