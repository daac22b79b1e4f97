"""The index process answers the official client as its local mode does, errors in Qdrant's form."""

from __future__ import annotations

import uuid

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse


def identifier(number):
    return str(uuid.UUID(int=number))


def point(number, generation):
    vector = {
        "dense": [0.5 * number, 1.0, -2.0, 0.25],
        "lexical": models.SparseVector(indices=[7, 4_000_000_000], values=[1.0, 2.0]),
    }
    payload = {"generation": generation, "tags": ["a", "ü"], "nothing": None}
    return models.PointStruct(id=identifier(number), vector=vector, payload=payload)


def up_to(generation):
    return models.Filter(must=[models.FieldCondition(key="generation", range=models.Range(lte=generation))])


@pytest.fixture
def name():
    return f"calls-{uuid.uuid4().hex}"


@pytest.fixture(params=["local mode", "index process"])
def client(request, name):
    if request.param == "local mode":
        client = QdrantClient(":memory:")
    else:
        client = QdrantClient(url=request.getfixturevalue("qdrant_url"))
    client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=4, distance=models.Distance.DOT)},
        sparse_vectors_config={"lexical": models.SparseVectorParams()},
    )
    yield client
    client.delete_collection(name)
    client.close()


def test_points_come_back_as_they_were_when_retrieved(client, name):
    client.upsert(name, [point(1, 5), point(2, 6)])
    found = client.retrieve(name, [identifier(2), identifier(9)], with_vectors=True)
    assert [record.id for record in found] == [identifier(2)]
    assert found[0].payload == {"generation": 6, "tags": ["a", "ü"], "nothing": None}
    assert found[0].vector["dense"] == [1.0, 1.0, -2.0, 0.25]
    lexical = found[0].vector["lexical"]
    assert dict(zip(lexical.indices, lexical.values, strict=True)) == {7: 1.0, 4_000_000_000: 2.0}


@pytest.mark.parametrize(("generation", "kept"), [(4, 5), (6, 6)])
def test_an_older_point_stays_away_when_the_update_filter_says_so(client, name, generation, kept):
    client.upsert(name, [point(1, 5)])
    client.upsert(name, [point(1, generation)], update_filter=up_to(generation))
    assert client.retrieve(name, [identifier(1)])[0].payload["generation"] == kept


def test_points_are_counted_scrolled_and_deleted_when_a_filter_chooses_them(client, name):
    client.upsert(name, [point(number, number) for number in range(1, 8)])
    assert client.count(name, count_filter=up_to(3)).count == 3
    first, following = client.scroll(name, limit=4, with_payload=["generation"])
    rest, end = client.scroll(name, limit=4, offset=following)
    assert sorted(record.payload["generation"] for record in (*first, *rest)) == list(range(1, 8))
    assert end is None
    client.delete(name, models.FilterSelector(filter=up_to(5)))
    client.delete(name, [identifier(6)])
    assert client.count(name).count == 1


def test_search_is_exact_when_dense_or_sparse(client, name):
    client.upsert(name, [point(number, number) for number in range(1, 5)])
    dense = client.query_points(name, query=[1.0, 0.0, 0.0, 0.0], using="dense", limit=2).points
    assert [(hit.id, hit.score) for hit in dense] == [(identifier(4), 2.0), (identifier(3), 1.5)]
    wanted = models.SparseVector(indices=[4_000_000_000], values=[3.0])
    sparse = client.query_points(name, query=wanted, using="lexical", limit=1, query_filter=up_to(1)).points
    assert [(hit.id, hit.score) for hit in sparse] == [(identifier(1), 6.0)]


def test_an_alias_moves_at_once_when_swapped(client, name):
    other = f"{name}-other"
    client.create_collection(other, vectors_config={})
    alias = f"{name}-alias"
    make = models.CreateAlias(collection_name=name, alias_name=alias)
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=make)])
    client.upsert(alias, [point(1, 1)])
    assert client.count(alias).count == 1
    client.update_collection_aliases(
        [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=other, alias_name=alias)
            ),
        ]
    )
    assert client.count(alias).count == 0
    assert (alias, other) in {(a.alias_name, a.collection_name) for a in client.get_aliases().aliases}
    assert [a.alias_name for a in client.get_collection_aliases(other).aliases] == [alias]
    client.delete_collection(other)
    assert not client.collection_exists(alias)


def test_payload_is_merged_when_set(client, name):
    client.upsert(name, [point(1, 1)])
    client.set_payload(name, {"generation": 2}, points=[identifier(1)])
    found = client.retrieve(name, [identifier(1)])[0].payload
    assert found["generation"] == 2
    assert found["tags"] == ["a", "ü"]


def test_collections_are_listed_and_described_when_they_exist(client, name):
    client.create_payload_index(name, "tenant", models.PayloadSchemaType.KEYWORD)
    assert name in {collection.name for collection in client.get_collections().collections}
    assert client.get_collection(name).config.params.vectors["dense"].size == 4
    assert not client.delete_collection(f"{name}-none")


@pytest.mark.parametrize(
    ("status", "call"),
    [
        (404, lambda client, name: client.count(f"{name}-none")),
        (404, lambda client, name: client.upsert(f"{name}-none", [point(1, 1)])),
        (409, lambda client, name: client.create_collection(name, vectors_config={})),
        (400, lambda client, name: client.upsert(name, [models.PointStruct(id=1, vector={"dense": [1.0]})])),
        (400, lambda client, name: client.upsert(name, [models.PointStruct(id=1, vector={"no": [1.0]})])),
    ],
)
def test_errors_have_qdrants_form_when_a_call_is_wrong(qdrant_url, name, status, call):
    client = QdrantClient(url=qdrant_url)
    client.create_collection(
        name, vectors_config={"dense": models.VectorParams(size=4, distance=models.Distance.DOT)}
    )
    with pytest.raises(UnexpectedResponse) as caught:
        call(client, name)
    client.delete_collection(name)
    assert caught.value.status_code == status
    assert caught.value.structured()["status"]["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"points": 3}', b'{"points": [{"id": 1}]}'])
def test_a_body_is_refused_when_it_is_no_request(qdrant_url, body):
    answer = httpx.put(f"{qdrant_url}/collections/any/points", content=body)
    assert answer.status_code == 400
    assert answer.json()["status"]["error"].startswith("Format error in JSON body")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_it_says_that_it_is_alive_when_asked(qdrant_url, path):
    assert httpx.get(f"{qdrant_url}{path}").status_code == 200


def test_a_body_of_32_mib_is_read_when_sent(qdrant_url):
    body = b'{"ids": [' + b" " * (32 * 1024 * 1024 - 10) + b"]}"
    answer = httpx.post(f"{qdrant_url}/collections/none/points", content=body, timeout=30)
    assert answer.status_code == 404
