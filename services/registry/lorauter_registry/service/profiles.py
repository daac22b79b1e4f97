"""Routing profiles and generations."""

from __future__ import annotations

from sqlmodel import col, select

from lorauter.identifiers import encode_generation
from lorauter.store import Write, tables
from lorauter_registry.domain.adapter_requests import ActivateProfile, GetGeneration, ListProfiles
from lorauter_registry.domain.answers import Generations, ProfileList
from lorauter_registry.domain.resources import Profile
from lorauter_registry.service.base import Part, touch
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import profile_of


class Profiles(Part):
    """Routing profiles and generations."""

    def list_profiles(self, request: ListProfiles) -> ProfileList:
        """Lists a pool's profiles, newest first; raises NotFound (POOL_NOT_FOUND)."""
        profile = tables.Profile
        statement = select(profile).where(profile.tenant == self.tenant, profile.pool == request.pool)
        with self.reading() as session:
            self.existing(session, tables.Pool, "pool", request.pool)
            profiles, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(profile.create_time), col(profile.digest)],
                lambda rows: [profile_of(row) for row in rows],
                newest_first=True,
            )
        return ProfileList(profiles=profiles, next_page_token=token)

    def activate_profile(self, request: ActivateProfile) -> Profile:
        """Restores an earlier profile's constants, or, with an empty digest, lets them be fitted again.

        The worker carries it out at the new generation, so the answer's ``active`` may still be False.
        With an empty digest the answer is the profile in use, or one that names only its pool if there
        is none yet. Raises NotFound (POOL_NOT_FOUND, PROFILE_NOT_FOUND).
        """

        def change(tx: Write) -> Profile:
            pool = self.existing(tx.session, tables.Pool, "pool", request.pool, lock=True)
            profile = tables.Profile
            if request.digest:
                key = (pool.id, request.digest)
                answer = profile_of(self.existing(tx.session, profile, "profile", key))
            else:
                active = select(profile).where(
                    profile.tenant == self.tenant, profile.pool == pool.id, col(profile.active)
                )
                row = tx.session.exec(active.limit(1)).first()
                answer = profile_of(row) if row else Profile(pool=pool.id)
            if pool.pinned_profile == request.digest:
                tx.withdraw()
                return answer
            pool.pinned_profile = request.digest
            touch(pool, tx)
            tx.owe("index", pool.id)
            return answer

        return self.changing(request, Profile, change)

    def get_generation(self, _: GetGeneration) -> Generations:
        """Returns the newest accepted generation and the newest published one."""
        with self.reading() as session:
            row = session.get(tables.Generation, self.tenant)
        if row is None:
            return Generations(generation=encode_generation(0, self.tenant))
        published = "" if row.published is None else encode_generation(row.published, row.tenant)
        return Generations(
            generation=encode_generation(row.value, row.tenant), published_generation=published
        )
