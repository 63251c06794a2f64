# The production server. Nothing of the embedded stack, no compiler and no source is in the final image.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md requirements-server.lock ./
COPY migrations ./migrations
COPY policies ./policies
COPY broker ./broker
# Wheels first, so that what is installed is what would be published; the others by version and hash.
RUN python -m pip wheel --no-cache-dir --wheel-dir /wheels --require-hashes -r requirements-server.lock \
 && python -m pip wheel --no-cache-dir --wheel-dir /wheels --no-deps .
RUN python -m venv /opt/broker \
 && /opt/broker/bin/pip install --no-cache-dir --no-index --compile /wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="model-access-broker" \
      org.opencontainers.image.description="Zero-trust access broker for model weights and datasets" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/broker /opt/broker
# HOME is not to be the root of everything: keys inside the home folder are refused.
ENV PATH=/opt/broker/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that an orchestrator can tell that it is not root. The root file system may be read-only;
# /tmp is the one folder that has to be writable.
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/livez' % os.environ.get('BROKER_PORT', '8000'), timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["broker"]
CMD ["serve"]
