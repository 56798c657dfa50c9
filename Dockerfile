# What a run needs, for workers of the schedule and for a run by hand. docs/deploy.md
#
#   docker build --tag thinner --build-arg TORCH_INDEX=URL .            without a GPU: URL as in docs/setup.md
#   docker build --tag thinner:cuda .                                   with CUDA: torch's usual wheels bring it
#   docker run --rm --volume "$PWD:$PWD" --workdir "$PWD" --user "$(id -u)" --env HOME="$PWD/.thinner" thinner \
#     python -m flows.pipeline
#
# A change of the code makes the last layer again, and installs nothing.
ARG PYTHON=3.11.14-slim-bookworm
FROM python:${PYTHON}

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

RUN apt-get update \
    && apt-get install --yes --no-install-recommends 'git=1:2.39.*' 'openssh-client=1:9.2*' 'tini=0.19.*' \
    && rm -rf /var/lib/apt/lists/*

# An index with CPU-only wheels; empty: the usual index, whose wheels for Linux bring CUDA (2.5 GB)
ARG TORCH_INDEX=
ARG EXTRAS=s3,gs,ssh,postgres,search,openvino
ARG UID=1000

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1 \
    PREFECT_WORKER_WEBSERVER_PORT=8080 \
    THINNER_ROOT=/thinner \
    LOGNAME=thinner \
    DO_NOT_TRACK=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    DVC_NO_ANALYTICS=1 \
    RAY_USAGE_STATS_ENABLED=0

WORKDIR /thinner

# torch first, and by itself: the largest layer, which only another version or index makes again
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --index-url "$TORCH_INDEX" --no-deps --constraint constraints.txt torch torchvision; \
    else \
        pip install --constraint constraints.txt torch torchvision; \
    fi

# all other libraries, with empty packages in place of the code
COPY pyproject.toml ./
RUN mkdir thinner tasks flows benchmarks \
    && touch README.md LICENSE thinner/__init__.py tasks/__init__.py flows/__init__.py benchmarks/__init__.py \
    && pip install --constraint constraints.txt --editable ".[$EXTRAS]"

# who may write into this folder, and not into the code in it; one that is mounted here may be somebody else's
RUN useradd --create-home --uid "$UID" thinner \
    && chown thinner /thinner \
    && git config --system --add safe.directory /thinner

# the code takes the place of the empty packages, which were installed to be found here
COPY . .

USER ${UID}

# A worker says that it is well at /health. What runs here by hand is well while it runs.
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "grep -qazx '[w]orker' /proc/[0-9]*/cmdline || exit 0; python -c \"import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)\""]

ENTRYPOINT ["tini", "--"]
CMD ["prefect", "worker", "start", "--pool", "thinner", "--type", "process", "--with-healthcheck"]
