"""Affinities over REST, as JSON and as CSV."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from lorauter.errors import InvalidArgument, PayloadTooLarge
from lorauter_registry.api.convert import checked
from lorauter_registry.api.rest.http import Http, Reading, Writing
from lorauter_registry.domain.affinity_csv import read_affinities, write_affinities, write_header
from lorauter_registry.domain.affinity_requests import MAX_IMPORT_BYTES, ImportAffinities, ListAffinities
from lorauter_registry.domain.answers import AffinityList, ImportedAffinities
from lorauter_registry.domain.fields import MAX_PAGE_SIZE

MAX_JSON_BYTES = MAX_IMPORT_BYTES // 2
"""Largest import as JSON, of which any byte may take thirty in memory."""

router = APIRouter(tags=["affinities"])

_CSV = {
    "schema": {"type": "string", "description": "A header that names an affinity's fields, then one a line."}
}
_IMPORT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/ImportAffinities"}},
            "text/csv": _CSV,
        },
    }
}


class Format(StrEnum):
    """How affinities are written."""

    JSON = "json"
    CSV = "csv"


class AffinitiesPage(ListAffinities):
    """Asks for a page of affinities as JSON, or for all of them as CSV."""

    format: Format | None = None


@router.get(
    "/v1/affinities",
    response_model=AffinityList,
    responses={200: {"description": "A page as JSON, or all of them as CSV.", "content": {"text/csv": _CSV}}},
)
async def list_affinities(
    query: Annotated[AffinitiesPage, Query()], request: Request, http: Reading
) -> AffinityList | StreamingResponse:
    """Lists what was measured: scores of adapters on tasks.

    With `format=csv`, or `Accept: text/csv`, all pages come at once as CSV that an import takes back.
    """
    asked = checked(ListAffinities, query.model_dump(exclude={"format"}))
    accepts_csv = "text/csv" in request.headers.get("accept", "").lower()
    if query.format is Format.CSV or (query.format is None and accepts_csv):
        return await _all_as_csv(http, asked)
    return await http.run(http.registry.list_affinities, asked)


@router.post("/v1/affinities", openapi_extra=_IMPORT)
async def import_affinities(request: Request, http: Writing) -> ImportedAffinities:
    """Imports measured scores, as JSON or CSV, 1 to 100,000 at once. All of them are taken or none."""
    body = await request.body()
    is_csv = request.headers.get("content-type", "").split(";")[0].strip().lower() == "text/csv"

    def import_affinities() -> ImportedAffinities:
        if is_csv:
            asked = http.request(ImportAffinities, affinities=read_affinities(body))
        else:
            asked = http.request(ImportAffinities, checked(ImportAffinities, _object(body)))
        return http.registry.import_affinities(asked)

    return await http.calls.run_alone(import_affinities)


async def _all_as_csv(http: Http, asked: ListAffinities) -> StreamingResponse:
    if asked.page_size or asked.page_token:
        raise InvalidArgument(
            "INVALID_FIELD", "CSV has no pages: leave out page_size and page_token", field="page_size"
        )
    asked = asked.model_copy(update={"page_size": MAX_PAGE_SIZE})
    # The first is awaited here, so that an unknown pool is answered 404 and not by an empty stream.
    first = await http.run(http.registry.list_affinities, asked)
    return StreamingResponse(_lines(http, asked, first), media_type="text/csv")


async def _lines(http: Http, asked: ListAffinities, page: AffinityList) -> AsyncIterator[str]:
    yield write_header()
    while True:
        yield await http.calls.run(write_affinities, page.affinities, rpc="ListAffinities")
        if not page.next_page_token:
            return
        asked = asked.model_copy(update={"page_token": page.next_page_token})
        page = await http.run(http.registry.list_affinities, asked)


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            "BODY_TOO_LARGE",
            f"an import as JSON is over {MAX_JSON_BYTES} bytes: send CSV, or several",
            limit_bytes=str(MAX_JSON_BYTES),
        )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("MALFORMED_JSON", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgument("INVALID_FIELD", 'the body is not an object: send {"affinities": […]}')
    if value.get("next_page_token") == "":
        # what the list gave out as its only page
        del value["next_page_token"]
    return value
