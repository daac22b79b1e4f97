"""Records what was published: the generation, the profiles, and how far tasks are."""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from lorauter.store.tables import Profile
from lorauter_worker.service.projection import Projection

_PUBLISHED = text(
    "UPDATE generation SET published = GREATEST(COALESCE(published, 0), :generation) "
    "WHERE tenant = :tenant RETURNING published"
)
_EMBEDDED = text(
    "UPDATE task SET state = 'EMBEDDED', update_time = clock_timestamp() "
    "FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS seen (id, version) "
    "WHERE task.tenant = :tenant AND task.id = seen.id AND task.version = seen.version "
    "AND task.generation <= :generation AND task.state = 'REGISTERED'"
)
_INACTIVE = text(
    "UPDATE profile SET active = false "
    "WHERE tenant = :tenant AND pool = :pool AND active AND digest <> :digest"
)
_POOLS = text("SELECT id FROM pool WHERE tenant = :tenant")
_PRUNE = text(
    "DELETE FROM profile USING pool WHERE pool.tenant = profile.tenant AND pool.id = profile.pool "
    "AND profile.tenant = :tenant AND profile.pool = :pool "
    "AND NOT profile.active AND profile.digest <> pool.pinned_profile AND profile.digest NOT IN ("
    "SELECT digest FROM profile WHERE tenant = :tenant AND pool = :pool "
    "ORDER BY create_time DESC, digest DESC LIMIT :kept)"
)
_CHURN = text(
    "UPDATE profile SET figures = figures || jsonb_build_object('churn', CAST(:churn AS float8)) "
    "WHERE tenant = :tenant AND pool = :pool AND digest = :digest AND generation = :generation"
)

KEPT_PROFILES = 100
"""A pool's newest profiles are kept, besides the active and the pinned one: what can be restored."""


def record_published(connection: Connection, projection: Projection) -> None:
    """Writes what follows from a published marker.

    Idempotent; a projection that a newer one overtook changes no profile.
    """
    snapshot = projection.snapshot
    tenant, generation = snapshot.tenant, snapshot.generation
    newest = connection.execute(_PUBLISHED, {"tenant": tenant, "generation": generation}).scalar_one()
    seen = {"ids": [id_ for id_, _ in projection.tasks], "versions": [v for _, v in projection.tasks]}
    connection.execute(_EMBEDDED, {"tenant": tenant, "generation": generation, **seen})
    if newest > generation:
        return
    # the generation's lock, taken above, holds off whoever would restore a profile that goes here
    held = set(connection.execute(_POOLS, {"tenant": tenant}).scalars())
    for pool in snapshot.pools.values():
        if pool.pool_id not in held:
            continue
        row = {
            "tenant": tenant,
            "pool": pool.pool_id,
            "digest": pool.profile.digest,
            "generation": generation,
            "constants": dict(pool.profile.constants),
            "figures": {**pool.profile.figures, **projection.fitted[pool.pool_id].refit.report},
            "active": True,
        }
        key = [Profile.tenant, Profile.pool, Profile.digest]
        upsert = insert(Profile).on_conflict_do_update(index_elements=key, set_={"active": True})
        connection.execute(upsert, [row])
        of_pool = {"tenant": tenant, "pool": pool.pool_id}
        connection.execute(_INACTIVE, {**of_pool, "digest": pool.profile.digest})
        connection.execute(_PRUNE, {**of_pool, "kept": KEPT_PROFILES})


def record_churn(connection: Connection, projection: Projection, pool_id: str, churn: float) -> None:
    """Adds the churn, 0..1, to the figures of the profile that came with this projection, if one did."""
    snapshot = projection.snapshot
    key = {"tenant": snapshot.tenant, "pool": pool_id, "digest": snapshot.pools[pool_id].profile.digest}
    connection.execute(_CHURN, {**key, "generation": snapshot.generation, "churn": round(churn, 6)})
