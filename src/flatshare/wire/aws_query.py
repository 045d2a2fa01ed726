"""Ground floor: AWS's query protocol. A form comes in (`Action=…&Version=…&Dimensions.member.1.Name=…`), XML goes out."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.etree.ElementTree import Element, SubElement, tostring  # written only: nothing from outside is parsed

from botocore.model import OperationModel, ServiceModel, Shape

from flatshare.core.errors import BadInput
from flatshare.wire.aws_codec import ServiceFault
from flatshare.wire.aws_shapes import Params, render
from flatshare.wire.http import Reply, Request

_TYPE = b"text/xml"
_OWN_CODES = {"UnknownOperationException": "InvalidAction"}  # what services that speak this protocol say
_MAX_FIELDS = 20_000  # 1000 metrics of 20 fields
_MAX_ITEMS = 10_000


class QueryNotation:
    """Forms and XML. Every value is text; the model says what it means."""

    example = "POST / with a form of Action=<operation>&Version=…"

    def operation(self, service: ServiceModel, request: Request) -> str | None:
        if not request.header("content-type").startswith("application/x-www-form-urlencoded"):
            return None
        form = _form(request.body)
        return form.get("Action") if form.get("Version") == service.metadata["apiVersion"] else None

    def data(self, shape: Shape, body: bytes) -> Any:
        return _Form(_form(body)).read(shape, "") or {}

    def reply(self, operation: OperationModel, output: Params, request_id: str) -> Reply:
        root = Element(f"{operation.name}Response", xmlns=operation.service_model.metadata["xmlNamespace"])
        shape = operation.output_shape
        if shape is not None:
            result = SubElement(root, shape.serialization.get("resultWrapper", f"{operation.name}Result"))
            _fill(result, shape, render(shape, output, moment=_iso8601))
        SubElement(SubElement(root, "ResponseMetadata"), "RequestId").text = request_id
        return _reply(200, root, request_id)

    def error(self, service: ServiceModel, fault: ServiceFault, request_id: str) -> Reply:
        root = Element("ErrorResponse", xmlns=service.metadata["xmlNamespace"])
        error = SubElement(root, "Error")
        code = _OWN_CODES.get(fault.query_code, fault.query_code)
        for name, text in (("Type", fault.side), ("Code", code), ("Message", fault.message)):
            SubElement(error, name).text = text
        SubElement(root, "RequestId").text = request_id
        return _reply(fault.status, root, request_id)


class _Form:
    """Reads the fields of a form into data, as the shapes say."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields
        self._prefixes = {key[:end] for key in fields for end, letter in enumerate(key) if letter == "."}

    def read(self, shape: Any, path: str) -> Any:
        """None if the form says nothing under `path`."""
        if path and path not in self._fields and path not in self._prefixes:
            return None
        if shape.type_name == "structure":
            members = ((name, self.read(member, _joined(path, _name(member, name)))) for name, member in shape.members.items())
            return {name: value for name, value in members if value is not None}
        if shape.type_name == "list":
            return self._list(shape, path)
        if shape.type_name == "map":
            return self._map(shape, path)
        return _scalar(shape.type_name, self._fields[path]) if path in self._fields else None

    def _list(self, shape: Any, path: str) -> list[Any]:
        flat = shape.serialization.get("flattened")
        return self._row(lambda prefix: self.read(shape.member, prefix), path if flat else f"{path}.{_name(shape.member, 'member')}")

    def _map(self, shape: Any, path: str) -> dict[str, Any]:
        key_name, value_name = _name(shape.key, "key"), _name(shape.value, "value")

        def entry(prefix: str) -> Any:
            key = self.read(shape.key, f"{prefix}.{key_name}")
            return None if key is None else [key, self.read(shape.value, f"{prefix}.{value_name}")]

        return dict(self._row(entry, path if shape.serialization.get("flattened") else f"{path}.entry"))

    def _row(self, read: Callable[[str], Any], path: str) -> list[Any]:
        """`path.1`, `path.2` and so on, up to the first that is not there."""
        row: list[Any] = []
        while len(row) < _MAX_ITEMS and (item := read(f"{path}.{len(row) + 1}")) is not None:
            row.append(item)
        return row


def _form(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise BadInput(f"the body is not a form: {error}") from None


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _name(shape: Any, default: str) -> str:
    return str(shape.serialization.get("name", default))


def _scalar(type_name: str, text: str) -> Any:
    """The text as a value of the model's type; one that is none stays a text, and the reader refuses it."""
    if type_name == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    kind = {"integer": int, "long": int, "float": float, "double": float}.get(type_name)
    if kind is None:
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def _fill(node: Element, shape: Any, value: Any) -> None:
    """Write the value below the node, or as its text."""
    if shape.type_name == "structure":
        for name, item in value.items():
            member = shape.members[name]
            if member.type_name in {"list", "map"} and member.serialization.get("flattened"):
                _fill_row(node, member, item, _name(member, name))
            else:
                _fill(SubElement(node, _name(member, name)), member, item)
    elif shape.type_name in {"list", "map"}:
        _fill_row(node, shape, value, _name(shape.member, "member") if shape.type_name == "list" else "entry")
    elif shape.type_name == "boolean":
        node.text = "true" if value else "false"
    else:
        node.text = str(value)


def _fill_row(node: Element, shape: Any, value: Any, name: str) -> None:
    if shape.type_name == "list":
        for item in value:
            _fill(SubElement(node, name), shape.member, item)
        return
    for key, item in value.items():
        entry = SubElement(node, name)
        SubElement(entry, _name(shape.key, "key")).text = key
        _fill(SubElement(entry, _name(shape.value, "value")), shape.value, item)


def _iso8601(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reply(status: int, root: Element, request_id: str) -> Reply:
    return Reply(status, tostring(root), _TYPE, [(b"x-amzn-requestid", request_id.encode())])
