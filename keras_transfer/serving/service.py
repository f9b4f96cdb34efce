"""One model's server without its address book: versions, limits, threads and counts."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from keras_transfer.serving.answering import Answering
from keras_transfer.serving.bodies import Bodies
from keras_transfer.serving.metrics import Metrics
from keras_transfer.serving.protocol import RefusedError, parse_request, write_answer, write_json
from keras_transfer.serving.settings import Settings
from keras_transfer.serving.versions import Versions, describe_states


class Service:
    """What the endpoints ask; `versions.start` begins it, `stop` ends it."""

    def __init__(self, settings: Settings, *, say: Callable[[str], None]):
        self.answering = Answering(settings.max_queue)
        self.metrics = Metrics(
            waiting=lambda: self.answering.num_images, version=lambda: self.versions.number or 0
        )
        self.versions = Versions(settings, say=say, on_batch=self.metrics.count_batch)
        self.bodies = Bodies(max_bytes=settings.max_body_bytes)
        self.max_instances = settings.max_instances
        self.is_stopping = False

    async def predict(self, request: Request, name: str, number: int | None) -> Response:
        """Answer a `predict` request.

        Raises:
            RefusedError: with the status that says why not.
        """
        body = await self.bodies.read(request)
        try:
            with self.versions.holding(name, number) as version:
                asked = parse_request(body, version.inputs)
                if asked.num_rows > self.max_instances:
                    words = f"{asked.num_rows} rows are more than {self.max_instances}"
                    raise RefusedError(422, words)
                columns = await self.answering.answer(version, asked)
        finally:
            self.bodies.release(body)
        try:
            return json_response(write_answer(columns, in_rows=asked.in_rows))
        except ValueError as error:
            raise RefusedError(503, "The model answered with numbers that are none") from error

    def status(self, name: str, number: int | None) -> dict[str, Any]:
        """The versions' states, as TensorFlow Serving tells them.

        Raises:
            RefusedError: 404 for another name or number.
        """
        states = self.versions.states()
        if name != self.versions.name or not states:
            raise RefusedError(404, f"Could not find any versions of model {name}")
        if number is not None and number not in states:
            raise RefusedError(404, f"Could not find version {number} of model {name}")
        chosen = states if number is None else {number: states[number]}
        return {"model_version_status": describe_states(chosen)}

    def metadata(self, name: str, number: int | None) -> dict[str, Any]:
        """What the signatures take and return.

        Raises:
            RefusedError: 404 for another name or number, 503 while no version is loaded.
        """
        with self.versions.holding(name, number) as version:
            return {
                "model_spec": {
                    "name": name,
                    "signature_name": "",
                    "version": str(version.number),
                },
                "metadata": {"signature_def": {"signature_def": version.signature_def}},
            }

    def card(self) -> dict[str, Any]:
        """The card of the version that answers.

        Raises:
            RefusedError: 503 while no version is loaded.
        """
        with self.versions.holding(self.versions.name) as version:
            # Under the name that requests have to use, which --name may have changed.
            return {**version.card, "name": self.versions.name}

    def check_ready(self) -> None:
        """Raise RefusedError, 503, while no version is loaded or the server is stopping."""
        if self.is_stopping:
            raise RefusedError(503, "The server is stopping")
        with self.versions.holding(self.versions.name):
            pass

    def stop(self) -> None:
        """End all threads."""
        self.answering.close()
        self.versions.stop()


def json_response(
    content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of plain values, or of bytes that are JSON already."""
    body = content if isinstance(content, bytes) else write_json(content)
    return Response(body, status_code=status, headers=headers, media_type="application/json")
