# The registry. From the repository's root: docker build -f deploy/docker/registry.Dockerfile -t lorauter-registry:0.1.0 .
FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock hatchling
COPY shared shared
COPY services/registry services/registry
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./shared ./services/registry \
    && python -m venv --without-pip /opt/lorauter
RUN pip --python /opt/lorauter/bin/python install --no-cache-dir --constraint requirements.lock /wheels/*.whl

FROM python:3.11.14-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lorauter-registry" \
      org.opencontainers.image.description="Stores pools, tasks, validation sets and adapters; gRPC and REST" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-trixie"
RUN groupadd --gid 65532 lorauter \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lorauter \
    && install --directory --owner=65532 --group=65532 /var/lib/lorauter/adapters
COPY --from=build /opt/lorauter /opt/lorauter
COPY deploy/docker/healthcheck.py /opt/healthcheck.py
ENV PATH=/opt/lorauter/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    MALLOC_ARENA_MAX=2 \
    LORAUTER_HOST=0.0.0.0 \
    LORAUTER_HTTP_PORT=8080 \
    LORAUTER_GRPC_PORT=9090
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["/opt/lorauter/bin/python", "-I", "-S", "/opt/healthcheck.py", "/healthz"]
ENTRYPOINT ["lorauter-registry"]
