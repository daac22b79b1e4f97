# The command `lorauter`. From the repository's root: docker build -f deploy/docker/cli.Dockerfile -t lorauter-cli:0.1.0 .
FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock hatchling
COPY shared shared
COPY services/suite services/suite
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./shared ./services/suite \
    && python -m venv --without-pip /opt/lorauter
RUN pip --python /opt/lorauter/bin/python install --no-cache-dir --constraint requirements.lock /wheels/*.whl

FROM python:3.11.14-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lorauter-cli" \
      org.opencontainers.image.description="The command lorauter, which talks to services elsewhere" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-trixie"
RUN groupadd --gid 65532 lorauter \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lorauter \
    && install --directory --owner=65532 --group=65532 /var/lib/lorauter/manifests
COPY --from=build /opt/lorauter /opt/lorauter
ENV PATH=/opt/lorauter/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
HEALTHCHECK NONE
ENTRYPOINT ["lorauter"]
