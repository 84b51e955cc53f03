# A host in a container. Build: docker build -t gumcp .   Run: see compose.yaml.
FROM python:3.13-slim AS build
WORKDIR /source
RUN python -m venv /opt/gumcp
COPY requirements-container.lock ./
RUN /opt/gumcp/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-container.lock
COPY pyproject.toml README.md requirements.txt ./
COPY gateway gateway
COPY gumcp_site gumcp_site
RUN /opt/gumcp/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/gumcp gumcp \
    && install --directory --owner=gumcp --group=gumcp --mode=0700 /var/lib/gumcp \
    && mkdir -p /srv/gumcp/servers
COPY --from=build /opt/gumcp /opt/gumcp
# Inside a container the host listens on all addresses, so it needs keys. PYTHONDONTWRITEBYTECODE: servers/ may be read-only.
ENV PATH=/opt/gumcp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GUMCP_AUTH=keys \
    GUMCP_HOST=0.0.0.0 \
    GUMCP_METRICS_HOST=0.0.0.0 \
    GUMCP_DATA_DIR=/var/lib/gumcp \
    GUMCP_SERVER_DIRS=/srv/gumcp/servers
WORKDIR /srv/gumcp
USER 10001
VOLUME /var/lib/gumcp
EXPOSE 8000 9091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health_check', timeout=4)"]
ENTRYPOINT ["gumcp"]
CMD ["serve", "--prepare"]
